"""Rows of landmarks: one each, or one for every view of each, all landmarks of a view together.

With m landmarks and J views, row j m + l is the row of landmark l in view j. The first m rows name
the landmarks, so that a landmark's number is that of its first row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

Array = Any
Index = npt.NDArray[np.int64]


def rows_of_each(sample_id: Index) -> int:
    """Rows of every landmark; 1 unless each has a row for every view.

    Args:
        sample_id: position in the source of every row's sample [row].
    """
    return len(sample_id) // max(1, len(np.unique(sample_id)))


def split_views(values: Array, n_views: int, axis: int = 1) -> list[Array]:
    """Parts [audited, landmark] of values [audited, row], one of every view.

    Args:
        values: [audited, row], or [row, component] along axis 0.
        n_views: rows of a landmark.
        axis: of the rows.
    """
    m = values.shape[axis] // n_views
    cuts = [slice(view * m, (view + 1) * m) for view in range(n_views)]
    return [values[:, cut] if axis == 1 else values[cut, :] for cut in cuts]


def sum_views(values: Array, n_views: int, axis: int = 1) -> Array:
    """Sums over the rows of every landmark [audited, landmark] of values [audited, row].

    Args:
        values: [audited, row], or [row, component] along axis 0.
        n_views: rows of a landmark.
        axis: of the rows.
    """
    total, *others = split_views(values, n_views, axis)
    for part in others:
        total = total + part
    return total


def strongest_view(values: Array, n_views: int) -> Array:
    """Of every landmark the value of its row of largest size, with its sign [audited, landmark].

    Args:
        values: [audited, row].
        n_views: rows of a landmark.
    """
    xp = array_namespace(values)
    largest, *others = split_views(values, n_views)
    for part in others:
        largest = xp.where(xp.abs(part) > xp.abs(largest), part, largest)
    return largest


def mean_views(values: Array, n_views: int, axis: int = 1) -> Array:
    """Means over the rows of every landmark [audited, landmark]; of one row each, no copy.

    Args:
        values: [audited, row], or [row, component] along axis 0.
        n_views: rows of a landmark.
        axis: of the rows.
    """
    return values if n_views == 1 else sum_views(values, n_views, axis) / n_views


def rows_of(landmarks: Index, n_landmarks: int, n_views: int) -> Index:
    """All rows of some landmarks [sample, rank * view].

    Args:
        landmarks: [sample, rank].
        n_landmarks: landmarks m.
        n_views: rows of a landmark.
    """
    if n_views == 1:
        return landmarks
    return np.concatenate([landmarks + view * n_landmarks for view in range(n_views)], axis=1)
