"""Weighted greedy k-means++ in kernel space: a choice that can stop and go on.

Source: Arthur and Vassilvitskii (2007), "k-means++"; greedy trials as in its section 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc import counter
from krepes_ooc.algebra.landmarks import squared_distance

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
KernelRows = Callable[[Index], Float]

_SEEDING = 102


def kmeans_plus_plus(
    kernel: Float | KernelRows,
    count: int,
    seed: int,
    *,
    weights: Float | None = None,
    self_kernel: Float | None = None,
    trials: int | None = None,
) -> tuple[Index, Index]:
    """Choose ``count`` of c candidates by weighted greedy k-means++ in kernel space.

    The chosen come in the order of choice, so a prefix is a choice of its own. Once every candidate
    coincides with a chosen one, the unused candidates of lowest index fill the rest.
    Source: Arthur and Vassilvitskii (2007); greedy trials as in its section 8.

    Args:
        kernel: values [candidate, candidate_], or a function from indices to such rows.
        count: how many to choose; all candidates if there are fewer.
        seed: of the sampler.
        weights: samples that a candidate stands for [candidate]; default 1.
        self_kernel: k(c, c) [candidate]; default the diagonal of an array, else 1.
        trials: candidates drawn per step, the best is kept; default 2 + ln(count).

    Returns:
        indices of the chosen [landmark] and, for every candidate, the position of its nearest
        chosen one [candidate].
    """
    rows, own = _rows_and_diagonal(kernel, self_kernel, weights)
    mass = np.ones(len(own)) if weights is None else np.asarray(weights, dtype=np.float64)
    trials = seeding_trials(count) if trials is None else trials
    seeding = Seeding.begin(len(own))
    seeding = extend_seeding(seeding, rows, own, mass, min(count, len(own)), seed, trials)
    return seeding.chosen, seeding.owner


@dataclass(frozen=True)
class Seeding:
    """How far k-means++ has come; enough to go on.

    Args:
        chosen: candidates in order of choice [landmark].
        distance: squared distance to the nearest chosen one [candidate].
        owner: position of the nearest chosen one [candidate].
    """

    chosen: Index
    distance: Float
    owner: Index

    @classmethod
    def begin(cls, n_candidates: int) -> Seeding:
        """Nothing chosen yet."""
        return cls(
            np.empty(0, dtype=np.int64),
            np.full(n_candidates, np.inf),
            np.zeros(n_candidates, dtype=np.int64),
        )


def seeding_trials(count: int) -> int:
    """Candidates drawn per step of k-means++: 2 + ln(count)."""
    return 2 + int(math.log(max(count, 1)))


def extend_seeding(
    seeding: Seeding,
    rows: KernelRows,
    own: Float,
    mass: Float,
    upto: int,
    seed: int,
    trials: int,
) -> Seeding:
    """Go on with k-means++ until ``upto`` candidates are chosen; draws are keyed by the step.

    Args:
        seeding: where to begin.
        rows: from indices to kernel values [index, candidate].
        own: k(c, c) [candidate].
        mass: samples that a candidate stands for [candidate].
        upto: number of chosen candidates at the end, at most all.
        seed: of the sampler.
        trials: candidates drawn per step, the best is kept.
    """
    chosen = seeding.chosen.tolist()
    distance, owner = seeding.distance.copy(), seeding.owner
    for step in range(len(chosen), upto):
        potential = mass * distance if step else mass
        drawn = _draw(potential, seed, step, trials if step else 1)
        if not drawn.size:
            drawn = np.setdiff1d(np.arange(len(own)), chosen)[:1]
        away = squared_distance(rows(drawn), own[drawn], own)
        best = int(np.argmin(np.minimum(away, distance) @ mass))
        closer = away[best] < distance
        distance, owner = np.minimum(away[best], distance), np.where(closer, step, owner)
        # A chosen candidate never comes again, and belongs to itself unless it is a duplicate.
        distance[drawn[best]] = 0.0
        chosen.append(int(drawn[best]))
    return Seeding(np.array(chosen, dtype=np.int64), distance, owner)


def reduce_candidates(
    kernel: Float | KernelRows,
    weights: Float,
    count: int,
    seed: int,
    *,
    self_kernel: Float | None = None,
    trials: int | None = None,
) -> tuple[Index, Float]:
    """The last step of k-means||: weighted k-means++ from the candidates down to ``count``.

    Returns:
        indices of the chosen [landmark] (fewer if there are fewer candidates), and for each the
        summed weight of the candidates nearest to it [landmark].
    """
    chosen, owner = kmeans_plus_plus(
        kernel, count, seed, weights=weights, self_kernel=self_kernel, trials=trials
    )
    share = np.bincount(owner, weights=weights, minlength=len(chosen))
    return chosen, share.astype(np.float64)


def _rows_and_diagonal(
    kernel: Float | KernelRows, self_kernel: Float | None, weights: Float | None
) -> tuple[KernelRows, Float]:
    if callable(kernel):
        if self_kernel is None and weights is None:
            raise ValueError("a kernel function needs weights or a self kernel to tell its size")
        own = np.ones(len(weights)) if self_kernel is None else self_kernel  # type: ignore[arg-type]
        return kernel, np.asarray(own, dtype=np.float64)
    values = np.asarray(kernel)
    own = np.diagonal(values) if self_kernel is None else self_kernel
    return lambda index: values[index], np.asarray(own, dtype=np.float64)


def _draw(potential: Float, seed: int, step: int, trials: int) -> Index:
    """Indices drawn in proportion to the potential; none if it is zero everywhere."""
    cumulated = np.cumsum(potential)
    if not cumulated[-1] > 0:
        return np.zeros(0, dtype=np.int64)
    wanted = counter.uniform(seed, _SEEDING, step, np.arange(trials)) * cumulated[-1]
    found = np.searchsorted(cumulated, wanted, side="right")
    return np.unique(np.minimum(found, np.flatnonzero(potential)[-1])).astype(np.int64)
