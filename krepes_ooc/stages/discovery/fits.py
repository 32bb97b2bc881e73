"""Fits of concepts on the first stored rows of view 0: starts, refits on halves, controls.

Rows are stored in keyed random order, so the first ones are a sample. Every fit is kept as one
partial result; a stopped stage goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.float16 import to_float32
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.writing import partial_path, read_partial, write_partial
from krepes_ooc.stages.discovery.concept_map import (
    ConceptMap,
    half_sample,
    nystrom_projection,
    random_centres,
    stability,
)
from krepes_ooc.stages.discovery.spherical_kmeans import Clusters, fit_clusters, unit_rows
from krepes_ooc.stages.spectrum.nystrom import eigenpairs
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.views.spec import CLEAN

FIT_ROWS = 20_000
STARTS, REFITS = 2, 3
# Rows that are read or encoded at a time: a constant, so that no budget changes a bit.
READ_ROWS = 1024
# Inputs that k-means is fitted on: longer ones are no control that people can afford.
MAX_INPUTS, INPUT_VALUES = 4096, 16 * 2**20
PREFIX = "fit"
Float = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Encode = Callable[[Ids, int], tuple[Any, str]]


@dataclass(frozen=True)
class DiscoveredConcepts:
    """Fitted concepts and the maps of their controls.

    Args:
        concepts: the map from kernel rows.
        stability: mean cosine with the refits on half samples [concept].
        random: the map of random directions.
        objective: mean cosine of the fit rows to their centres, of every start.
        rank: directions of the Nystrom map.
        n_rows: rows that were fitted on.
    """

    concepts: ConceptMap
    stability: Float
    random: ConceptMap
    objective: tuple[float, ...]
    rank: int
    n_rows: int


@dataclass(frozen=True)
class ConceptFits:
    """Fits of a stage, one unit of resume each.

    Args:
        context: the stage.
        seed: key of all draws.
        count: concepts at most.
    """

    context: StageContext
    seed: int
    count: int

    def of_kernel(self, kernel: StoreReader, spectrum: StoreReader) -> DiscoveredConcepts | None:
        """Concepts of the kernel rows; None where no two rows differ in direction.

        Args:
            kernel: the store ``kernel``.
            spectrum: the store ``spectrum``.
        """
        projection = read_projection(kernel, spectrum)
        rows, mean = self._mapped_rows(kernel, projection)
        directed = unit_rows(rows)
        rows = rows if directed.all() else rows[directed]
        rank = projection.shape[1]
        if len(rows) < 2 or rank < 2:
            return None
        # More concepts than directions cannot be told apart.
        count = min(self.count, rank, len(rows))
        starts = [self._fit(rows, count, start) for start in range(STARTS)]
        best = max(starts, key=lambda clusters: clusters.mean_cosine)
        if len(best.centres) < 2:
            return None
        refits = []
        for refit in range(REFITS):
            half = half_sample(len(rows), self.seed, refit)
            refits.append(self._fit(rows, count, STARTS + refit, half).centres)
        return DiscoveredConcepts(
            ConceptMap.of_centres(best.centres, mean, projection),
            stability(best.centres, refits),
            ConceptMap.of_centres(
                random_centres(len(best.centres), rank, self.seed), mean, projection
            ),
            tuple(clusters.mean_cosine for clusters in starts),
            rank,
            len(rows),
        )

    def of_inputs(self, encode: Encode, positions: Ids, n_inputs: int) -> ConceptMap | None:
        """The same k-means on the network's inputs; None where they are long or all equal.

        Args:
            encode: inputs [sample, ...] of source positions in a view.
            positions: of the first stored rows.
            n_inputs: numbers of one input.
        """
        if n_inputs > MAX_INPUTS:
            return None
        positions = positions[: max(2, INPUT_VALUES // max(1, n_inputs))]
        rows = np.empty((len(positions), n_inputs), dtype=np.float32)
        for start in range(0, len(positions), READ_ROWS):
            part = positions[start : start + READ_ROWS]
            rows[start : start + len(part)] = encode(part, CLEAN)[0].reshape(len(part), -1)
        mean = rows.mean(axis=0, dtype=np.float64)
        rows -= mean.astype(np.float32)
        directed = unit_rows(rows)
        rows = rows if directed.all() else rows[directed]
        if len(rows) < 2:
            return None
        clusters = self._fit(rows, min(self.count, len(rows)), STARTS + REFITS)
        return ConceptMap.of_centres(clusters.centres, mean)

    def _mapped_rows(self, kernel: StoreReader, projection: Float) -> tuple[Rows, Float]:
        """Z - zbar of the fit rows [sample, direction], and zbar [direction]."""
        plan = self.context.plan
        rows = np.empty((min(FIT_ROWS, plan.n_samples), projection.shape[1]), dtype=np.float32)
        for block in plan.blocks():
            if block.start >= len(rows):
                break
            stored = kernel.block("values", block, 0)
            for start in range(0, min(block.rows, len(rows) - block.start), READ_ROWS):
                self.context.stop.check()
                part = stored[start : min(start + READ_ROWS, len(rows) - block.start)]
                product = to_float32(part).astype(np.float64) @ projection
                rows[block.start + start : block.start + start + len(part)] = product
        mean = rows.mean(axis=0, dtype=np.float64)
        rows -= mean.astype(np.float32)
        return rows, mean

    def _fit(self, rows: Rows, count: int, key: int, chosen: Ids | None = None) -> Clusters:
        """One fit, from its partial result where there is one."""
        context = self.context
        path = partial_path(context, PREFIX, key)
        saved = read_partial(context, path)
        if saved is None:
            taken = rows if chosen is None else rows[chosen]
            clusters = fit_clusters(taken, count, self.seed, key, context.stop.check)
            saved = {name: np.asarray(value) for name, value in vars(clusters).items()}
            write_partial(context, path, saved)
        context.progress.advance(1)
        return Clusters(saved["centres"], saved["count"], float(saved["mean_cosine"]))


def read_projection(kernel: StoreReader, spectrum: StoreReader) -> Float:
    """P = U_r Lambda_r^(-1/2) [landmark, direction] at the usable rank.

    Where the spectrum was iterated, only its leading components are known, and taken.

    Args:
        kernel: the store ``kernel``.
        spectrum: the store ``spectrum``.
    """
    rank = int(spectrum.attributes["usable_rank"])
    values, vectors = spectrum.array("eigenvalues"), spectrum.array("eigenvectors")
    if len(values) == len(vectors) and vectors.shape[1] < rank:
        values, vectors = eigenpairs(np.asarray(kernel.whole("landmark_kernel")))
    return nystrom_projection(values, vectors, rank)
