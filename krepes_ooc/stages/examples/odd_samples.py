"""Samples that are odd: far from all landmarks, nearly the same as another, between groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

NEAREST = 10
# Rows whose distances to all others are computed at a time.
ROWS = 256


def closeness(kernel: Float, own: Index, count: int = NEAREST) -> Float:
    """Mean of the largest kernel values to other landmarks [sample]; the least is the most novel.

    Args:
        kernel: clean rows [sample, landmark].
        own: landmark that is the sample itself, or -1 [sample].
        count: values that are averaged.
    """
    count = min(count, max(1, kernel.shape[1] - 1))
    found = np.empty(len(kernel))
    for start in range(0, len(kernel), ROWS):
        cut = slice(start, start + ROWS)
        rows = np.array(kernel[cut], dtype=np.float64)
        is_landmark = np.flatnonzero(own[cut] >= 0)
        if rows.shape[1] > 1:
            rows[is_landmark, own[cut][is_landmark]] = -np.inf
        largest = np.partition(rows, -count, axis=1)[:, -count:]
        found[cut] = largest.mean(axis=1)
    return found


@dataclass(frozen=True)
class NearPairs:
    """Pairs of samples by distance, nearest first, and the nearest other sample of each.

    Args:
        first: sample of a pair, the lower one [pair].
        second: the other one [pair].
        distance: over the root mean square distance from the mean [pair].
        nearest: [sample]; -1 for a single one.
        nearest_distance: of it [sample].
    """

    first: Index
    second: Index
    distance: Float
    nearest: Index
    nearest_distance: Float


def near_pairs(embedding: Float, count: int) -> NearPairs:
    """Pairs of samples that lie nearest in an embedding; no matrix of all pairs is made.

    Args:
        embedding: [sample, output].
        count: pairs at most.
    """
    n = len(embedding)
    centred = embedding - embedding.mean(axis=0)
    square = np.sum(centred**2, axis=1)
    spread = float(np.sqrt(square.mean())) or 1.0
    nearest, nearest_distance = np.full(n, -1, dtype=np.int64), np.zeros(n)
    pairs = np.empty((0, 2), dtype=np.int64)
    distances = np.empty(0)
    for start in range(0, n if n > 1 else 0, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        found = square[rows, None] + square - 2.0 * centred[rows] @ centred.T
        found[rows - start, rows] = np.inf
        nearest[rows] = np.argmin(found, axis=1)
        nearest_distance[rows] = found[rows - start, nearest[rows]]
        # Every pair once, at its lower sample.
        found[np.arange(n) < rows[:, None]] = np.inf
        flat = found.reshape(-1)
        kept = np.argpartition(flat, min(count, flat.size) - 1)[:count] if count else np.empty(0)
        kept = kept[np.isfinite(flat[kept])].astype(np.int64)
        new = np.stack([rows[kept // n], kept % n], axis=1)
        pairs, distances = np.concatenate([pairs, new]), np.append(distances, flat[kept])
        order = np.lexsort((pairs[:, 1], pairs[:, 0], distances))[:count]
        pairs, distances = pairs[order], distances[order]
    return NearPairs(
        pairs[:, 0],
        pairs[:, 1],
        np.sqrt(np.maximum(distances, 0.0)) / spread,
        nearest,
        np.sqrt(np.maximum(nearest_distance, 0.0)) / spread,
    )


def mixing(weights: Float, groups: Index) -> Float:
    """1 - the largest share of the weights in one group [sample]; 0 without weights.

    Args:
        weights: of landmarks, sum 1 or 0 [sample, rank].
        groups: group of each of these landmarks, -1 for none [sample, rank].
    """
    n_groups = int(groups.max(initial=-1)) + 1
    share = np.zeros((len(weights), n_groups + 1))
    rows = np.repeat(np.arange(len(weights)), weights.shape[1])
    np.add.at(share, (rows, groups.reshape(-1)), weights.reshape(-1))
    # Landmarks without a group, counted last, mix nothing.
    known = share[:, :n_groups]
    total = known.sum(axis=1)
    largest = known.max(axis=1, initial=0.0)
    return np.where(total > 0, 1.0 - largest / np.where(total > 0, total, 1.0), 0.0)
