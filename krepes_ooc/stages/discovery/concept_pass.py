"""The pass over all samples: winners of every view, their agreement, column values by concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.writing import (
    partial_path,
    pending_shards,
    read_partial,
    write_partial,
)
from krepes_ooc.stages.discovery.column_differences import ColumnCodes, ColumnSums
from krepes_ooc.stages.discovery.concept_map import ConceptMap
from krepes_ooc.stages.discovery.stored_concepts import ROWS, block_winners
from krepes_ooc.storage.store_reader import StoreReader

PREFIX = "sums"
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Sums = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ConceptPass:
    """One pass over kernel and source; a shard is one partial result.

    Args:
        kernel: the store ``kernel``.
        recipe: source of the table rows and their order; None: there are no columns.
        codes: of the columns.
        maps: the concepts, then their random control.
        context: the stage.
    """

    kernel: StoreReader
    recipe: RecipeInputs | None
    codes: ColumnCodes
    maps: Sequence[ConceptMap]
    context: StageContext

    def run(self) -> ConceptSums:
        """Sum the missing shards, then all shards in their order."""
        context = self.context
        context.executor().run(self._sum_shard, pending_shards(context, PREFIX))
        total: Sums | None = None
        for shard in range(context.plan.n_shards):
            part = self._saved(shard)
            total = part if total is None else {name: total[name] + part[name] for name in part}
        assert total is not None
        columns = ColumnSums(*(total[name] for name in ("known", "total", "square", "level")))
        return ConceptSums(total["won"], total["agreed"], columns)

    def _sum_shard(self, shard: int) -> None:
        """Sum the blocks of one shard, and keep the sums on disk."""
        context = self.context
        views, count = self.kernel.info("values").shape[0], len(self.maps[0].const)
        counts = {
            name: np.zeros((len(self.maps), views, count), dtype=np.int64)
            for name in ("won", "agreed")
        }
        columns = ColumnSums.zeros(count, self.codes)
        for block in context.plan.shard(shard):
            context.stop.check()
            winners = self._winners(block, views)
            for index, of_map in enumerate(winners):
                for view, here in enumerate(of_map):
                    same = of_map[0][here == of_map[0]]
                    counts["won"][index, view] += np.bincount(here, minlength=count)
                    counts["agreed"][index, view] += np.bincount(same, minlength=count)
            self._add_columns(block, winners[0][0], columns)
        sums: Mapping[str, npt.NDArray[Any]] = {**counts, **vars(columns)}
        write_partial(context, partial_path(context, PREFIX, shard), sums)
        context.progress.advance(1)

    def _winners(self, block: Block, views: int) -> list[list[Index]]:
        """Winning concept of every sample of a block, by map and view."""
        return [
            [block_winners(each, self.kernel, block, view) for view in range(views)]
            for each in self.maps
        ]

    def _add_columns(self, block: Block, winners: Index, columns: ColumnSums) -> None:
        if self.recipe is None:
            return
        for start in range(0, block.rows, ROWS):
            stop = min(start + ROWS, block.rows)
            positions = self.recipe.order.positions(block.start + start, block.start + stop)
            rows = np.asarray(self.recipe.source.read(positions), dtype=np.float64)
            columns.add_rows(rows, winners[start:stop], self.codes)

    def _saved(self, shard: int) -> Sums:
        """The sums of one shard, read back from the disk.

        Raises:
            StageFailed: the file was damaged after it was written.
        """
        saved = read_partial(self.context, partial_path(self.context, PREFIX, shard))
        if saved is None:
            raise StageFailed(
                f"the partial sum of shard {shard} is damaged",
                where="discovery",
                advice="run the same command again: it is computed anew",
            )
        return saved


@dataclass(frozen=True)
class ConceptSums:
    """Sums over all samples.

    Args:
        won: samples whose view shows the concept [map, view, concept].
        agreed: those of them whose view 0 shows it too [map, view, concept].
        columns: sums of table values by concept.
    """

    won: Index
    agreed: Index
    columns: ColumnSums

    def share(self) -> Float:
        """Share of the samples whose view 0 shows the concept [concept]."""
        return np.asarray(self.won[0, 0] / self.won[0, 0].sum())

    def view_agreement(self, index: int) -> Float:
        """Share of a concept's samples that show it in another view too; NaN without [concept].

        Args:
            index: of the map.
        """
        views = self.won.shape[1]
        agreed = self.agreed[index, 1:].sum(axis=0)
        pairs = self.won[index, 0] * (views - 1)
        return np.asarray(np.where(pairs > 0, agreed / np.maximum(pairs, 1), np.nan))

    def chance_agreement(self, index: int) -> float:
        """Agreement of all samples if views were drawn apart; 0 with a single view."""
        views = self.won.shape[1]
        if views < 2:
            return 0.0
        share = self.won[index] / self.won[index].sum(axis=1, keepdims=True)
        return float(np.mean(share[1:] @ share[0]))

    def overall_agreement(self, index: int) -> float:
        """Share of all samples that show the same concept in view 0 and in another view."""
        views = self.won.shape[1]
        pairs = int(self.won[index, 0].sum()) * (views - 1)
        return float(self.agreed[index, 1:].sum() / pairs) if pairs else 0.0
