"""Mathematics of the landmark samplers: distances, draws, seeding and leverage scores.

Every draw is keyed by (seed, stream, round or step, sample id), so the chosen landmarks do not
depend on block size, workers or the order of calls. Distances are squared distances in kernel
space, d(x, y) = k(x, x) + k(y, y) - 2 k(x, y), which is 2 - 2 k for ccos and cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import StageFailed, UsageError

Array = Any
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Below this share of k(x, x) + k(y, y) a squared distance is rounding noise of float32 products.
SAME = 2.0**-20
# Streams of the keyed draws.
_OVERSAMPLE = 101
_SEEDING = 102
_GUMBEL = 103
KernelRows = Callable[[Index], Float]


def choose_uniform(n_samples: int, count: int, seed: int) -> Index:
    """``count`` distinct positions [landmark] of ``n_samples``, sorted.

    Raises:
        UsageError: more landmarks than samples.
    """
    if count > n_samples:
        raise UsageError(
            f"{count} landmarks of {n_samples} samples",
            where="stages.landmarks.count",
            expected=f"at most {n_samples}",
        )
    return np.sort(uniform_order(n_samples, count, seed))


def uniform_order(n_samples: int, count: int, seed: int) -> Index:
    """``count`` distinct positions [landmark] of ``n_samples``; a prefix is a choice of fewer."""
    positions: Index = counter_rng.Bijection(n_samples, seed)(np.arange(count))
    return positions


def squared_distance(
    kernel: Array, self_x: Array | None = None, self_y: Array | None = None
) -> Array:
    """Squared distances [x, y] from kernel values [x, y]; rounding noise gives exactly 0.

    Args:
        kernel: normalised kernel values.
        self_x: k(x, x) [x]; None means 1 (ccos, cosine).
        self_y: k(y, y) [y]; None means 1.
    """
    xp = array_namespace(kernel)
    # k(x, x) + k(y, y) - 2 k(x, y)
    k_xx = 1.0 if self_x is None else xp.astype(self_x, kernel.dtype)[:, None]
    k_yy = 1.0 if self_y is None else xp.astype(self_y, kernel.dtype)[None, :]
    largest = k_xx + k_yy
    distance = largest - 2.0 * kernel
    # A duplicate must have distance 0: rounding noise would draw it as another landmark.
    return xp.where(distance > SAME * largest, distance, xp.zeros_like(distance))


def oversample(
    distance: Float, sample_id: Index, total: float, expected: float, seed: int, turn: int
) -> npt.NDArray[np.bool_]:
    """Which samples [sample] a round of k-means|| draws: p_i = min(1, expected d_i / total).

    Source: Bahmani, Moseley, Vattani, Kumar and Vassilvitskii (2012), algorithm 2.

    Args:
        distance: squared distance to the nearest candidate [sample].
        sample_id: keys of the draws [sample].
        total: sum of ``distance`` over all samples of the store.
        expected: samples drawn per round on average (the paper's l).
        seed: of the sampler.
        turn: number of the round.
    """
    if not total > 0:
        return np.zeros(len(distance), dtype=np.bool_)
    drawn = counter_rng.uniform(seed, _OVERSAMPLE, turn, sample_id)
    return np.asarray(drawn < expected * (np.asarray(distance, dtype=np.float64) / total))


def nearest(kernel: Array, self_y: Array | None = None) -> Array:
    """Index [x] of the nearest candidate from kernel values [x, candidate]; the first wins ties."""
    xp = array_namespace(kernel)
    if self_y is None:
        return xp.argmax(kernel, axis=1)
    return xp.argmin(xp.astype(self_y, kernel.dtype)[None, :] - 2.0 * kernel, axis=1)


def closest(kernel: Array) -> Array:
    """Squared distance to the nearest candidate, and its index [x, 2], float64; k(x, x) = 1.

    Args:
        kernel: kernel values [x, candidate]; the first candidate wins ties.
    """
    xp = array_namespace(kernel)
    distance = squared_distance(kernel)
    index = xp.argmin(distance, axis=1)
    least = xp.take_along_axis(distance, index[:, None], axis=1)[:, 0]
    return xp.stack([xp.astype(least, xp.float64), xp.astype(index, xp.float64)], axis=1)


def pilot_damping(eigenvalues: Float, n_samples: int, n_pilot: int, n_landmarks: int) -> float:
    """Damping of the ridge leverage scores: tail trace / m, estimated from the pilot kernel.

    The n-sample kernel's trace beyond its m-th eigenvalue is (n / q) times the pilot's; at least
    1e-10 of the whole trace, so that the scores exist for a kernel of rank m or less.

    Args:
        eigenvalues: of K_CC [pilot], any order.
        n_samples: n.
        n_pilot: q, number of pilot samples.
        n_landmarks: m.

    Raises:
        StageFailed: the pilot kernel is zero.
    """
    # Rounding can make the smallest eigenvalues negative.
    values = np.sort(np.maximum(eigenvalues, 0.0))[::-1]
    trace = float(values.sum())
    if not trace > 0:
        raise StageFailed(
            "the kernel of the pilot samples is zero",
            where="stages.landmarks",
            expected="samples that differ",
        )
    tail = max(float(values[n_landmarks:].sum()), 1e-10 * trace)
    return n_samples / n_pilot * tail / n_landmarks


def pilot_whitening(pilot_kernel: Float, n_samples: int, damping: float) -> Float:
    """L^-1 [pilot, pilot_] with L L^T = K_CC + damping (q / n) I."""
    from scipy.linalg import solve_triangular  # on first use: scipy costs 0.2 s

    q = len(pilot_kernel)
    L = np.linalg.cholesky(pilot_kernel + damping * q / n_samples * np.eye(q))
    return np.asarray(solve_triangular(L, np.eye(q), lower=True))


def leverage_scores(
    self_kernel: Array, pilot_rows: Array, whitening: Array, damping: float
) -> Array:
    """Approximate ridge leverage scores l_i = (k_ii - |L^-1 k_iC|^2) / damping, within (0, 1].

    Source: Musco and Musco (2017); Rudi, Calandriello, Carratino and Rosasco (2018).

    Args:
        self_kernel: k_ii [sample].
        pilot_rows: k_iC [sample, pilot].
        whitening: L^-1 [pilot, pilot_] of ``pilot_whitening``.
        damping: of ``pilot_damping``.
    """
    xp = array_namespace(pilot_rows)
    # |L^-1 k_iC|^2: the part of k_ii in the span of the pilot samples
    projected = pilot_rows @ xp.astype(whitening, pilot_rows.dtype).T
    explained = xp.sum(projected * projected, axis=1, dtype=xp.float64)
    residual = xp.astype(self_kernel, xp.float64) - explained
    # A floor above 0, because the keys of the draw take logarithms of the scores.
    return xp.clip(residual / damping, 2.0**-52, 1.0)


def unit_scores(pilot_rows: Array, whitening: Array, damping: float) -> Array:
    """``leverage_scores`` in float64 of rows [sample, pilot] with k(x, x) = 1.

    In float64, because the difference is small beside both terms.
    """
    xp = array_namespace(pilot_rows)
    exact = xp.astype(pilot_rows, xp.float64)
    return leverage_scores(xp.ones_like(exact[:, 0]), exact, whitening, damping)


def gumbel_keys(log_scores: Float, sample_id: Index, seed: int) -> Float:
    """Keys [sample] whose m largest are m draws without replacement, p proportional to the scores.

    Source: Efraimidis and Spirakis (2006) in the form of the Gumbel trick.
    """
    # Gumbel noise -log(-log u); the offset keeps u = 0 from giving minus infinity.
    drawn = counter_rng.uniform(seed, _GUMBEL, sample_id) + 2.0**-54
    return np.asarray(log_scores - np.log(-np.log(drawn)))


def top_m(keys: Float, sample_id: Index, count: int) -> tuple[Float, Index]:
    """The ``count`` largest keys, descending, with their ids; ties by lower id.

    The result joined with the keys and ids of the next block and cut again is the top of both.
    """
    order = np.lexsort((sample_id, -np.asarray(keys)))[:count]
    return keys[order], sample_id[order]


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

    They are returned in the order of choice, so a prefix is the choice of a smaller count. Once
    every candidate coincides with a chosen one, the unused ones of lowest index fill the rest.
    Source: Arthur and Vassilvitskii (2007); greedy trials as in its section 8.

    Args:
        kernel: values [candidate, candidate_], or a function from indices to such rows.
        count: how many to choose; all candidates if there are fewer.
        seed: of the sampler.
        weights: samples that a candidate stands for [candidate]; default 1.
        self_kernel: k(c, c) [candidate]; default the diagonal of an array, else 1.
        trials: candidates drawn per step, the best is chosen; default 2 + ln(count).

    Returns:
        indices of the chosen [landmark] and, for every candidate, the position of its nearest
        chosen one [candidate].
    """
    rows, k_cc = _rows_and_diagonal(kernel, self_kernel, weights)
    mass = np.ones(len(k_cc)) if weights is None else np.asarray(weights, dtype=np.float64)
    trials = seeding_trials(count) if trials is None else trials
    seeding = Seeding.begin(len(k_cc))
    seeding = extend_seeding(seeding, rows, k_cc, mass, min(count, len(k_cc)), seed, trials)
    return seeding.chosen, seeding.owner


@dataclass(frozen=True)
class Seeding:
    """State of k-means++ after some steps, from which it continues.

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
        """The state before the first step."""
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
    self_kernel: Float,
    mass: Float,
    target: int,
    seed: int,
    trials: int,
) -> Seeding:
    """Continue k-means++ until ``target`` candidates are chosen; draws are keyed by the step.

    Args:
        seeding: the state to continue from.
        rows: from indices to kernel values [index, candidate].
        self_kernel: k(c, c) [candidate].
        mass: samples that a candidate stands for [candidate].
        target: number of chosen candidates at the end, at most all.
        seed: of the sampler.
        trials: candidates drawn per step, the best is chosen.
    """
    chosen = seeding.chosen.tolist()
    distance = seeding.distance.copy()
    owner = seeding.owner
    for step in range(len(chosen), target):
        # Trials drawn in proportion to the squared distance; the first step by mass alone.
        potential = mass * distance if step else mass
        drawn = _draw(potential, seed, step, trials if step else 1)
        # Every candidate coincides with a chosen one: the first unused index fills the place.
        if not drawn.size:
            drawn = np.setdiff1d(np.arange(len(self_kernel)), chosen)[:1]
        # The trial that lowers the summed distance most is chosen.
        to_drawn = squared_distance(rows(drawn), self_kernel[drawn], self_kernel)
        best = int(np.argmin(np.minimum(to_drawn, distance) @ mass))
        closer = to_drawn[best] < distance
        distance = np.minimum(to_drawn[best], distance)
        owner = np.where(closer, step, owner)
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
    """The function from indices to kernel rows, and k(c, c) [candidate]."""
    if callable(kernel):
        if self_kernel is None and weights is None:
            raise ValueError("a kernel function needs weights or a self kernel for its size")
        k_cc = np.ones(len(weights)) if self_kernel is None else self_kernel  # type: ignore[arg-type]
        return kernel, np.asarray(k_cc, dtype=np.float64)
    values = np.asarray(kernel)
    k_cc = np.diagonal(values) if self_kernel is None else self_kernel
    return lambda index: values[index], np.asarray(k_cc, dtype=np.float64)


def _draw(potential: Float, seed: int, step: int, trials: int) -> Index:
    """Indices drawn in proportion to the potential; none if it is zero everywhere."""
    cumulated = np.cumsum(potential)
    if not cumulated[-1] > 0:
        return np.zeros(0, dtype=np.int64)
    # Inverse of the cumulative distribution; rounding may point beyond the last positive entry.
    levels = counter_rng.uniform(seed, _SEEDING, step, np.arange(trials)) * cumulated[-1]
    index = np.searchsorted(cumulated, levels, side="right")
    return np.unique(np.minimum(index, np.flatnonzero(potential)[-1])).astype(np.int64)
