"""Stage moments: mean and centred second moments of the kernel rows, one pass, a fixed tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from krepes_ooc.algebra.moments import (
    TILE,
    CrossSums,
    MomentSums,
    block_shift,
    cross_sums,
    finish,
    finish_cross,
    merge,
    merge_cross,
    moment_sums,
    pair_index,
)
from krepes_ooc.algebra.moments import tiles as landmark_tiles
from krepes_ooc.blocks import Block
from krepes_ooc.engine.budget import Need
from krepes_ooc.engine.executor import tree_fold
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base import (
    Cost,
    Stage,
    StageContext,
    partial_path,
    pending_shards,
    write_whole,
)
from krepes_ooc.stages.inputs import Rows
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.files import read_arrays, write_arrays
from krepes_ooc.widen import to_float32

# Rows of one product: more than elsewhere, because each adds a whole matrix in float64.
GRAM_ROWS = 2048


@dataclass(frozen=True)
class MomentsSettings:
    """Recipe key ``stages.moments``: nothing to set."""


def read_views(
    context: StageContext, block: Block, landmarks: slice = slice(None)
) -> tuple[Rows, ...]:
    """Kernel rows [sample, landmark] of one block, one array for each view, as float32."""
    kernel = context.reader("kernel")
    views = range(kernel.info("values").shape[0])
    return tuple(to_float32(kernel.block("values", block, view)[:, landmarks]) for view in views)


def run(context: StageContext) -> None:
    """Sum the missing shards tile by tile, fold all of them, seal."""
    plan = context.plan
    views, n, m = context.reader("kernel").info("values").shape
    tiles = [Tile(context, left, right) for left, right in landmark_tiles(m)]
    shift = block_shift(read_views(context, plan.block(0)))
    pending = [tile.pending() for tile in tiles]
    total = plan.n_shards * len(tiles)
    context.progress.begin("moments", total, total - sum(map(len, pending)))
    mean, second = np.empty((views, m)), np.empty((views, views, m, m))
    for tile, shards in zip(tiles, pending, strict=True):
        tile.sum_shards(shards, shift)
        tile.put(mean, second, shift)
    spec = StoreSpec(load_contract("moments"), {"view": views, "landmark": m})
    write_whole(context, spec, {"mean": mean, "second": second}, {"n_samples": n})


@dataclass(frozen=True)
class Tile:
    """The moments between two landmark ranges, summed in one pass of their own.

    A single tile up to ``TILE`` landmarks. The accumulators of a worker are those of one tile; the
    tiles are constants, because the width of a matrix product can change its rounding.

    Args:
        context: the stage.
        left: landmarks of the rows.
        right: landmarks of the columns; the same range on the diagonal.
    """

    context: StageContext
    left: slice
    right: slice

    @property
    def prefix(self) -> str:
        """Name of the tile's partial sums."""
        return f"sums-{self.left.start}-{self.right.start}"

    def pending(self) -> list[int]:
        """Shards that are not summed yet."""
        return pending_shards(self.context, self.prefix)

    def sum_shards(self, shards: list[int], shift: Any) -> None:
        """Sum the blocks of every shard and keep the sums on disk."""
        context = self.context

        def task(shard: int) -> None:
            sums: Any = None
            for block in context.plan.shard(shard):
                context.stop.check()
                part = self._block_sums(block, shift)
                sums = part if sums is None else self._merge(sums, part)
            arrays = {name: np.asarray(value) for name, value in vars(sums).items()}
            write_arrays(partial_path(context, self.prefix, shard), arrays, context.record.temp)
            context.progress.advance(1)

        context.executor().run(task, shards)

    def put(self, mean: Any, second: Any, shift: Any) -> None:
        """Write the folded tile, and its mirror, into mean and second moments."""
        sums = tree_fold(self.context.plan.n_shards, self._partial, self._merge)
        if self.left == self.right:
            mean[:, self.left], second[:, :, self.left, self.left] = finish(sums)
            return
        found = finish_cross(sums)
        second[:, :, self.left, self.right] = found
        second[:, :, self.right, self.left] = found.transpose(1, 0, 3, 2)

    def _block_sums(self, block: Block, shift: Any) -> MomentSums | CrossSums:
        rows = min(self.context.plan.block_rows, GRAM_ROWS)
        left = read_views(self.context, block, self.left)
        if self.left == self.right:
            return moment_sums(left, shift[self.left], rows)
        right = read_views(self.context, block, self.right)
        return cross_sums(left, right, shift[self.left], shift[self.right], rows)

    @property
    def _merge(self) -> Any:
        return merge if self.left == self.right else merge_cross

    def _partial(self, shard: int) -> Any:
        """The sums of one shard, read back from the disk.

        Raises:
            StageFailed: the file was damaged after it was written.
        """
        known: dict[str, Any] | None = read_arrays(partial_path(self.context, self.prefix, shard))
        if known is None:
            raise StageFailed(
                f"the partial sum of shard {shard} is damaged",
                where="moments",
                advice="run the same command again: it is computed anew",
            )
        kind = MomentSums if self.left == self.right else CrossSums
        return kind(**{**known, "rows": int(known["rows"])})


def predict(shape: AuditShape, settings: MomentsSettings) -> Cost:
    """A pass over the kernel for each tile; a product for every pair of views."""
    plan, m, views = shape.plan, shape.n_landmarks, shape.n_views
    pairs, tiles = len(pair_index(views)), len(landmark_tiles(m))
    width, held = min(m, TILE), pairs if tiles == 1 else views * views
    sums = 8 * held * width * width
    rows = plan.block_rows + min(plan.block_rows, GRAM_ROWS)
    per_worker = 4 * width * views * rows + 2 * sums
    fixed = 8 * m * m * views * views + sums * (2 + plan.n_shards.bit_length())
    flops = 2.0 * plan.n_samples * m * m * pairs
    disk, scratch = 8 * m * (m * views + 1) * views, sums * plan.n_shards * tiles
    return Cost(plan.n_shards * tiles, disk, Need(fixed, per_worker), flops, scratch)


STAGE = Stage(
    name="moments",
    version=1,
    reads=("kernel",),
    store="moments",
    settings=MomentsSettings,
    run=run,
    predict=predict,
    about="mean and second moments of the kernel rows",
)
