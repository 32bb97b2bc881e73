"""Spherical k-means: clusters of directions, by the cosine to a unit centre.

    max over unit centres c_1 .. c_k and winners w(i)  of  sum_i <z_i, c_w(i)>,   |z_i| = 1

Source: Dhillon and Modha (2001), "Concept decompositions for large sparse text data using
clustering"; starts as k-means++ (Arthur and Vassilvitskii 2007) on 1 - cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng

Float = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

MAX_ROUNDS = 60
# Rows of one product: a constant, so that no budget changes a bit.
CHUNK = 2048
# Cosine distances below this are float32 noise: the row coincides with the centre.
COINCIDENT = 1e-6
_STREAM = 811


@dataclass(frozen=True)
class Clusters:
    """Centres of one fit.

    Args:
        centres: unit vectors [cluster, direction], by descending number of rows.
        count: rows that each one wins [cluster].
        mean_cosine: mean cosine of the rows to their centre.
    """

    centres: Float
    count: Index
    mean_cosine: float


def fit_clusters(
    rows: Rows, count: int, seed: int, key: int, check: Callable[[], None] = lambda: None
) -> Clusters:
    """Fit centres to unit rows from one keyed start.

    Fewer centres come back where fewer rows differ in direction.

    Args:
        rows: unit rows [sample, direction], at least one.
        count: centres at most.
        seed: key of the start.
        key: number of the start.
        check: called before every round; may raise to stop.
    """
    centres = _seed_centres(rows, min(count, len(rows)), seed, key)
    winners = np.full(len(rows), -1, dtype=np.int64)
    for _ in range(MAX_ROUNDS):
        check()
        moved, cosine = nearest_centres(rows, centres)
        if np.array_equal(moved, winners):
            break
        winners = moved
        centres = _mean_directions(rows, winners, cosine, centres)
    winners, cosine = nearest_centres(rows, centres)
    won = np.bincount(winners, minlength=len(centres))
    # A centre that wins nothing coincides with another one.
    order = np.argsort(-won, kind="stable")[: int(np.count_nonzero(won))]
    return Clusters(centres[order], won[order].astype(np.int64), float(cosine.mean()))


def nearest_centres(rows: Rows, centres: Float) -> tuple[Index, Float]:
    """Centre of the largest cosine, the first among equals, and that cosine [sample]."""
    narrow = centres.astype(np.float32).T
    winners = np.empty(len(rows), dtype=np.int64)
    cosine = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        cut = slice(start, start + CHUNK)
        product = rows[cut] @ narrow
        winners[cut] = np.argmax(product, axis=1)
        cosine[cut] = np.take_along_axis(product, winners[cut, None], axis=1)[:, 0]
    return winners, cosine


def unit_rows(rows: Rows) -> npt.NDArray[np.bool_]:
    """Divide rows by their norms, in place; a mask of those that have a direction [sample].

    Rows below a millionth of the largest norm are rounding: they become 0.
    """
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    directed = norm > 1e-6 * float(norm.max(initial=0.0))
    rows *= np.where(directed, 1.0 / np.where(directed, norm, 1.0), 0.0).astype(np.float32)[:, None]
    return np.asarray(directed)


def _seed_centres(rows: Rows, count: int, seed: int, key: int) -> Float:
    """Keyed k-means++ draw of rows; fewer if all others coincide with one of them."""
    drawn = [int(counter_rng.integers(seed, len(rows), _STREAM, key))]
    distance = np.maximum(0.0, 1.0 - rows @ rows[drawn[0]]).astype(np.float64)
    for turn in range(1, count):
        # Probability proportional to 1 - cosine, half the squared distance of unit rows.
        mass = np.cumsum(np.where(distance > COINCIDENT, distance, 0.0))
        if not mass[-1] > 0:
            break
        point = float(counter_rng.uniform(seed, _STREAM, key, turn)) * mass[-1]
        drawn.append(min(int(np.searchsorted(mass, point, side="right")), len(rows) - 1))
        distance = np.minimum(distance, np.maximum(0.0, 1.0 - rows @ rows[drawn[-1]]))
    return rows[drawn].astype(np.float64)


def _mean_directions(rows: Rows, winners: Index, cosine: Float, centres: Float) -> Float:
    """Directions of the sums of the rows that every centre wins."""
    count = len(centres)
    sums = np.zeros_like(centres)
    for start in range(0, len(rows), CHUNK):
        cut = slice(start, start + CHUNK)
        member = np.zeros((count, len(winners[cut])), dtype=np.float32)
        member[winners[cut], np.arange(member.shape[1])] = 1.0
        sums += member @ rows[cut]
    norm = np.linalg.norm(sums, axis=1)
    moved = sums / np.where(norm > 0, norm, 1.0)[:, None]
    # A centre that won nothing moves to the row that lies farthest from its own.
    far = iter(np.argsort(cosine, kind="stable"))
    for empty in np.flatnonzero(norm == 0):
        farthest = next(far, None)
        if farthest is None or cosine[farthest] > 1.0 - COINCIDENT:
            moved[empty] = centres[empty]
        else:
            moved[empty] = rows[farthest]
    return np.asarray(moved)
