"""Samples that are odd: far from all landmarks, or between groups."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

NEAREST = 10
# Kernel rows that are looked at at a time.
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
