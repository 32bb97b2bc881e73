"""The k-means|| sampler over the feature store: a few passes, each resumable.

Source: Bahmani, Moseley, Vattani, Kumar and Vassilvitskii (2012), "Scalable k-means++", with squared
distances 2 - 2 k^ of the centred cosine kernel on view 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import counter
from krepes_ooc.algebra import kernel
from krepes_ooc.algebra.kernel import KernelMap
from krepes_ooc.algebra.landmarks import nearest, oversample, reduce_candidates, squared_distance
from krepes_ooc.algebra.normalisation import Normalisation
from krepes_ooc.blocks import Block
from krepes_ooc.layout import FeatureLayout
from krepes_ooc.stages.base import StageContext
from krepes_ooc.stages.features import Rows, unscaled
from krepes_ooc.storage.files import read_arrays, write_arrays

Ids = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
_FIRST_STREAM = 302


@dataclass(frozen=True)
class KmeansParallel:
    """One choice of ``count`` landmarks.

    Args:
        context: the landmarks stage.
        count: number of landmarks.
    """

    context: StageContext
    count: int

    def choose(self) -> tuple[Ids, Float]:
        """Store rows of the chosen candidates and the samples that each stands for."""
        rounds, n = self.context.settings.rounds, self.context.plan.n_samples
        self.context.progress.begin("landmarks", rounds + 2, 0)
        first = int(counter.integers(self.context.inputs.seed, n, _FIRST_STREAM))
        candidates = np.array([first], dtype=np.int64)
        distance = np.full(n, np.inf, dtype=np.float32)
        new = candidates
        for turn in range(rounds + 1):
            candidates, distance = self._round(turn, candidates, new, distance)
            self.context.progress.advance(1)
            if turn < rounds:
                new = np.setdiff1d(self._drawn(turn, distance), candidates)
        weights = self._weights(candidates)
        self.context.progress.advance(1)
        chosen, weight = reduce_candidates(
            self._candidate_kernel(candidates), weights, self.count, self.context.inputs.seed
        )
        return candidates[chosen], weight

    def _round(
        self, turn: int, candidates: Ids, new: Ids, distance: npt.NDArray[np.float32]
    ) -> tuple[Ids, npt.NDArray[np.float32]]:
        """Add the new candidates and update every sample's distance; one pass, kept on disk."""
        path = self.context.record.partials / f"round-{turn:03d}.npz"
        known = read_arrays(path)
        if known is not None:
            return known["candidates"], known["distance"]
        candidates = np.union1d(candidates, new).astype(np.int64)
        if len(new):
            near = self._map(new)

            def update(block: Block) -> npt.NDArray[np.float32]:
                away = self._per_rows(block, near, lambda k: squared_distance(k).min(axis=1))
                return np.minimum(distance[block.start : block.stop], away).astype(np.float32)

            parts = self.context.executor().map(update, list(self.context.plan.blocks()))
            distance = np.concatenate(list(parts))
        write_arrays(path, {"candidates": candidates, "distance": distance}, self.context.record.temp)
        return candidates, distance

    def _drawn(self, turn: int, distance: npt.NDArray[np.float32]) -> Ids:
        """Store rows that one round draws, keyed by sample id."""
        total = float(distance.sum(dtype=np.float64))
        if total <= 0:
            return np.empty(0, dtype=np.int64)
        expected = self.context.settings.oversampling * self.count
        drawn = [
            block.start
            + np.flatnonzero(
                oversample(
                    distance[block.start : block.stop].astype(np.float64),
                    np.array(self._features.block("sample_id", block)),
                    total,
                    expected,
                    self.context.inputs.seed,
                    turn,
                )
            )
            for block in self.context.plan.blocks()
        ]
        return np.concatenate(drawn).astype(np.int64)

    def _weights(self, candidates: Ids) -> Float:
        """Number of samples nearest to every candidate; one pass."""
        mapped = self._map(candidates)

        def count(block: Block) -> Float:
            owner = self._per_rows(block, mapped, nearest)
            return np.bincount(owner, minlength=len(candidates)).astype(np.float64)

        blocks = list(self.context.plan.blocks())
        return self.context.executor().fold(count, blocks, np.add)

    def _per_rows(self, block: Block, mapped: KernelMap, reduce: Any) -> npt.NDArray[Any]:
        """Apply a row-wise reduction to the kernel of view 0 of one block, in short row ranges."""
        stored, own = self._features.block("values", block), self._features.block("self_kernel", block)
        step = self.context.plan.sub_rows
        parts = [
            reduce(mapped.rows(unscaled(stored[i : i + step], self._layout), own[i : i + step]))
            for i in range(0, block.rows, step)
        ]
        return np.concatenate(parts)

    def _candidate_kernel(self, candidates: Ids) -> Float:
        rows = self._gather(candidates).astype(np.float64)
        return np.asarray(
            kernel.landmark_kernel(rows, self._layout, self._centre, self._normalisation)
        )

    def _map(self, rows: Ids) -> KernelMap:
        gathered = self._gather(rows)
        return kernel.kernel_map(gathered, self._layout, self._centre, self._normalisation)

    def _gather(self, rows: Ids) -> Rows:
        """Unscaled rows of view 0, [row, feature], read block by block."""
        out = np.empty((len(rows), self._layout.n_features), dtype=np.float32)
        index = rows // self.context.plan.block_rows
        for block_index in np.unique(index).tolist():
            block, here = self.context.plan.block(block_index), index == block_index
            stored = self._features.block("values", block)[rows[here] - block.start]
            out[here] = unscaled(stored, self._layout)
        return out

    @property
    def _features(self) -> Any:
        return self.context.reader("features")

    @cached_property
    def _layout(self) -> FeatureLayout:
        return FeatureLayout.from_attributes(self._features.attributes["layout"])

    @cached_property
    def _centre(self) -> Float:
        return np.asarray(self._features.array("centre"))

    @cached_property
    def _normalisation(self) -> Normalisation:
        return Normalisation("ccos", kernel.centre_self(self._centre))
