"""Partitions of samples: clusters of landmarks, levels of a column, ranges of a number.

A partition gives every sample one code, -1 where it belongs to none of its groups. Groups that
overlap belong to different partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng

NONE = -1
STARTS, MAX_ROUNDS = 10, 100
_CLUSTER_STREAM = 521
Float = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


def cluster_landmarks(kernel: Float, count: int, seed: int) -> Codes:
    """Cluster of every landmark by kernel k-means (Schoelkopf, Smola and Mueller 1998).

    The squared distance of landmark i from the centre of cluster c is, in feature space,
    K_ii - 2 mean_{j in c} K_ij + mean_{j, j' in c} K_jj'. Of ``STARTS`` keyed starts the one with
    the least within-cluster scatter is taken; clusters are numbered by their first landmark.

    Args:
        kernel: landmark kernel K_mm [landmark, landmark_].
        count: clusters at most.
        seed: key of the starts.

    Returns:
        Codes [landmark], 0 to at most ``count - 1``; every code occurs.
    """
    best: tuple[float, Codes] | None = None
    for start in range(STARTS):
        centres = _seed_centres(kernel, min(count, len(kernel)), seed, start)
        scatter, codes = _lloyd(kernel, np.argmin(_distances_to(kernel, centres), axis=1))
        if best is None or scatter < best[0]:
            best = (scatter, codes)
    assert best is not None
    return _renumbered(best[1])


def nearest_landmark(views: Sequence[npt.NDArray[np.float32]]) -> Codes:
    """Landmark with the largest kernel, summed over views [sample]; the first among equals.

    Args:
        views: kernel rows [sample, landmark] of each view.
    """
    total = views[0].astype(np.float32)
    for rows in views[1:]:
        total += rows
    return np.asarray(np.argmax(total, axis=1), dtype=np.int64)


def range_codes(values: Float, edges: Sequence[float]) -> Codes:
    """Number of ascending edges that are at most the value [sample]; -1 where it is NaN."""
    codes = np.searchsorted(np.asarray(edges), values, side="right").astype(np.int64)
    return np.where(np.isnan(values), NONE, codes)


def range_names(name: str, edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the ranges between edges, in the order of their codes."""
    inner = [f"{low:g} <= {name} < {high:g}" for low, high in pairwise(edges)]
    return (f"{name} < {edges[0]:g}", *inner, f"{name} >= {edges[-1]:g}")


def level_codes(values: Float, chosen: Codes) -> Codes:
    """Codes of chosen levels [sample]; -1 for other levels and missing values.

    Args:
        values: level codes as numbers [sample].
        chosen: level of each group [group].
    """
    known = np.isfinite(values) & (values >= 0)
    levels = np.where(known, values, NONE).astype(np.int64)
    table = np.full(max(int(levels.max(initial=0)), int(chosen.max(initial=0))) + 1, NONE)
    table[chosen] = np.arange(len(chosen))
    return np.where(levels >= 0, table[levels], NONE).astype(np.int64)


def _seed_centres(kernel: Float, count: int, seed: int, start: int) -> Codes:
    """Keyed k-means++ draw of ``count`` different landmarks, fewer if all others coincide."""
    diagonal = np.diagonal(kernel)
    first = int(counter_rng.integers(seed, len(kernel), _CLUSTER_STREAM, start))
    centres, nearest = [first], diagonal + diagonal[first] - 2 * kernel[:, first]
    for turn in range(1, count):
        # Probability proportional to the squared distance from the centres so far.
        mass = np.cumsum(np.maximum(nearest, 0.0))
        if not mass[-1] > 0:
            break
        drawn = float(counter_rng.uniform(seed, _CLUSTER_STREAM, start, turn)) * mass[-1]
        chosen = min(int(np.searchsorted(mass, drawn, side="right")), len(kernel) - 1)
        centres.append(chosen)
        nearest = np.minimum(nearest, diagonal + diagonal[chosen] - 2 * kernel[:, chosen])
    return np.array(centres, dtype=np.int64)


def _distances_to(kernel: Float, centres: Codes) -> Float:
    diagonal = np.diagonal(kernel)
    return np.asarray(diagonal[:, None] + diagonal[centres] - 2 * kernel[:, centres])


def _lloyd(kernel: Float, codes: npt.NDArray[np.intp]) -> tuple[float, Codes]:
    """Within-cluster scatter and codes after Lloyd's iteration in feature space."""
    diagonal = np.diagonal(kernel)
    distance = np.empty((len(kernel), 1))
    for _ in range(MAX_ROUNDS):
        _, codes = np.unique(codes, return_inverse=True)
        member = np.zeros((len(kernel), int(codes.max()) + 1))
        member[np.arange(len(kernel)), codes] = 1.0
        member /= member.sum(axis=0)
        centre_products = kernel @ member
        within = np.sum(member * centre_products, axis=0)
        distance = diagonal[:, None] - 2 * centre_products + within
        moved = np.argmin(distance, axis=1)
        if np.array_equal(moved, codes):
            break
        codes = moved
    return float(np.min(distance, axis=1).sum()), codes.astype(np.int64)


def _renumbered(codes: Codes) -> Codes:
    """The same clusters, numbered by the first landmark of each."""
    values, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(values))
    return rank[inverse]
