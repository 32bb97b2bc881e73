"""Influence of landmarks on audited samples: scores, signs and rankings.

With k_lt = k(x_l, x_t), dA_l the step row of landmark l and f = K A + gamma:

    is          |k_lt| |dA_l|                                   the paper's influence score
    aligned     k_lt cos(df_t, df_l),  df = K dA                same direction of change
    unique      (K_t S^-1)_l / (S^-1)_ll                        leave-one-out kernel
    kernel      k_lt                                            control without the step
    attraction  k_lt <dA_l, f_t / |f_t|>                        > 0 pulls, < 0 pushes away
    contribution   <k_lt A_l, f_t>                              share of landmark l in |f_t|^2

Source of the first: KREPES (arXiv 2509.24467); attraction and the others are this project's choice.
Blocks are [audited, landmark]; the functions speak the array API and are meant for float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device

from krepes_ooc.errors import UsageError

Array = Any
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
MEASURES = ("is", "aligned", "unique", "kernel")

# S is singular where its smallest eigenvalue falls below this share of the largest one.
_SINGULAR = 1e-12
_RIDGE = 1e-10


def embedding(kernel: Array, coefficients: Array, offset: Array) -> Array:
    """F = K A + gamma [audited, component]."""
    return kernel @ coefficients + offset[None, :]


def row_norms(rows: Array) -> Array:
    """Euclidean length of every row [row] of [row, component]."""
    xp = array_namespace(rows)
    return xp.sqrt(xp.sum(rows * rows, axis=1))


def influence_score(kernel: Array, step: Array) -> Array:
    """The paper's influence score |k_lt| |dA_l| [audited, landmark]."""
    return abs(kernel) * row_norms(step)[None, :]


def grouped_influence_score(kernel: Array, step: Array, groups: Index) -> Array:
    """|sum over the rows l of one landmark sample of k_lt dA_l| [audited, landmark sample].

    The rows of one sample's views are summed before the norm is taken, by the Gram matrix of the
    few rows of a sample, so that no [audited, landmark, component] array is formed.

    Args:
        kernel: values [audited, landmark row].
        step: [landmark row, component].
        groups: rows of every landmark sample, as ``group_rows`` lists them.
    """
    xp = array_namespace(kernel, step)
    k, rows = _by_group(kernel, groups, 1), _by_group(step, groups, 0)
    total = 0.0
    for i in range(len(k)):
        for j in range(i, len(k)):
            inner = xp.sum(rows[i] * rows[j], axis=1)[None, :]
            total = total + (1.0 if i == j else 2.0) * k[i] * k[j] * inner
    return xp.sqrt(xp.clip(total, 0.0, None))


def aligned(kernel: Array, step: Array, landmark_kernel: Array) -> Array:
    """k_lt cos(df_t, df_l) [audited, landmark]; 0 where sample or landmark does not move."""
    return aligned_with(kernel, step, landmark_kernel @ step)


def aligned_with(kernel: Array, step: Array, landmark_displacement: Array) -> Array:
    """``aligned`` with df_l = K_mm dA [landmark, component] known: no K_mm is needed."""
    return kernel * (unit_rows(kernel @ step) @ unit_rows(landmark_displacement).T)


def leave_one_out(second: Float) -> Float:
    """W [landmark, landmark_] = S^-1 with column l divided by (S^-1)_ll.

    K_t W is then the residual of kernel column l on all other columns. Where S is singular
    (duplicate landmarks), 1e-10 of its mean diagonal is added to the diagonal.

    Args:
        second: un-centred S [landmark, landmark_], mean over samples and views of k k^T.
    """
    from scipy.linalg import inv  # on first use: scipy costs 0.2 s

    m = len(second)
    extremes = np.linalg.eigvalsh(second)[[0, -1]]
    ridge = _RIDGE * np.trace(second) / m if extremes[0] <= _SINGULAR * extremes[1] else 0.0
    inverse = inv(second + max(ridge, np.finfo(float).tiny) * np.eye(m))
    return np.asarray(inverse / np.diagonal(inverse)[None, :])


def kernel_score(kernel: Array) -> Array:
    """The kernel as the score: a control without the step."""
    return kernel


def positive_only(score: Callable[[Array], Array], kernel: Array) -> Array:
    """The scores [audited, landmark] of landmarks with a positive kernel; 0 for the others."""
    xp = array_namespace(kernel)
    found = score(kernel)
    return xp.where(kernel > 0, found, xp.zeros_like(found))


def unique(kernel: Array, weights: Array) -> Array:
    """Leave-one-out kernel (K_t S^-1)_l / (S^-1)_ll [audited, landmark].

    Args:
        kernel: [audited, landmark].
        weights: of ``leave_one_out`` [landmark, landmark_].
    """
    return kernel @ weights


def contribution(kernel: Array, step: Array, embedding: Array) -> Array:
    """k_lt <dA_l, f_t / |f_t|> [audited, landmark]: the step pulls f_t outward (> 0) or back (< 0).

    Args:
        kernel: [audited, landmark].
        step: dA [landmark, component].
        embedding: f of the audited samples [audited, component]; a zero row gives 0.
    """
    return kernel * (unit_rows(embedding) @ step.T)


def embedding_contribution(kernel: Array, coefficients: Array, embedding: Array) -> Array:
    """<k_lt A_l, f_t> [audited, landmark]: what landmark l adds to |f_t|^2, with sign.

    Over all landmarks it sums to |f_t|^2 - <gamma, f_t>.
    """
    return kernel * (embedding @ coefficients.T)


def unit_rows(rows: Array) -> Array:
    """Rows divided by their length; a zero row stays zero."""
    xp = array_namespace(rows)
    length = row_norms(rows)
    moved = length > 0
    return (
        rows * xp.where(moved, 1.0 / xp.where(moved, length, xp.ones_like(length)), length)[:, None]
    )


def scorer(
    measure: str,
    step: Array,
    landmark_kernel: Array,
    second: Array | None = None,
    groups: Index | None = None,
) -> Callable[[Array], Array]:
    """The function from a kernel block [audited, landmark] to its scores [audited, landmark].

    With ``groups`` the scores are those of landmark samples, the rows of their views summed.

    Args:
        measure: one of ``MEASURES``.
        step: dA [landmark, component].
        landmark_kernel: K_mm [landmark, landmark_].
        second: un-centred S [landmark, landmark_], needed by ``unique``.
        groups: rows of every landmark sample, as ``group_rows`` lists them; None = one row each.

    Raises:
        UsageError: no such measure, or ``unique`` without moments.
    """
    if groups is not None:
        if measure == "is":
            return partial(grouped_influence_score, step=step, groups=groups)
        by_row = scorer(measure, step, landmark_kernel, second)
        return lambda kernel: group_views(by_row(kernel), groups)
    # Partial functions: their arrays can be moved to where the kernel block is.
    if measure == "is":
        return partial(influence_score, step=step)
    if measure == "aligned":
        return partial(aligned, step=step, landmark_kernel=landmark_kernel)
    if measure == "kernel":
        return kernel_score
    if measure == "unique" and second is not None:
        return partial(unique, weights=leave_one_out(second))
    raise UsageError(
        "measure 'unique' without moments" if measure == "unique" else f"no measure {measure!r}",
        where="stages.influence.measure",
        expected="a moments store" if measure == "unique" else "one of " + ", ".join(MEASURES),
    )


def group_rows(landmark_sample: Index) -> Index:
    """Landmark rows of every landmark sample [landmark sample, view], padded with -1.

    Args:
        landmark_sample: number of the sample of every landmark row [landmark row], from 0.
    """
    order = np.argsort(landmark_sample, kind="stable")
    counts = np.bincount(landmark_sample)
    rows = np.full((len(counts), int(counts.max())), -1, dtype=np.int64)
    first = np.cumsum(counts) - counts
    column = np.arange(len(order)) - np.repeat(first, counts)
    rows[landmark_sample[order], column] = order
    return rows


def group_views(score: Array, groups: Index) -> Array:
    """Scores [audited, landmark row] summed over every sample's rows [audited, landmark sample]."""
    parts = _by_group(score, groups, 1)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def top_k(score: Array, k: int, first_landmark: int = 0) -> tuple[Array, Array]:
    """Landmarks [audited, rank] of the k largest |score| per row and their scores, largest first.

    Ties go to the lower landmark index. ``first_landmark`` is the index of column 0, where the
    block holds only a range of landmarks.
    """
    xp = array_namespace(score)
    order = xp.argsort(-xp.abs(score), axis=1, stable=True)
    order = order[:, : min(k, score.shape[1])]
    return order + first_landmark, xp.take_along_axis(score, order, axis=1)


def repelling(signed: Array, count: int) -> tuple[Array, Array]:
    """Landmarks [audited, repelled] that push most, strongest first, and their signed values.

    Ties go to the lower landmark index. Where fewer than ``count`` values are below 0, the places
    left hold landmark -1 and value 0: nothing pushes there.

    Args:
        signed: of ``contribution`` [audited, landmark].
        count: places for every audited sample.
    """
    xp = array_namespace(signed)
    order = xp.argsort(signed, axis=1, stable=True)[:, : min(count, signed.shape[1])]
    value = xp.take_along_axis(signed, order, axis=1)
    pushes = value < 0
    landmark = xp.where(pushes, order, xp.full_like(order, -1))
    return landmark, xp.where(pushes, value, xp.zeros_like(value))


def merge_top_k(
    left: tuple[Array, Array], right: tuple[Array, Array], k: int
) -> tuple[Array, Array]:
    """The top k of two results of ``top_k``; the left one holds the lower landmark indices."""
    xp = array_namespace(left[1], right[1])
    landmark = xp.concat([left[0], right[0]], axis=1)
    score = xp.concat([left[1], right[1]], axis=1)
    order = xp.argsort(-xp.abs(score), axis=1, stable=True)
    order = order[:, : min(k, score.shape[1])]
    return xp.take_along_axis(landmark, order, axis=1), xp.take_along_axis(score, order, axis=1)


def _by_group(values: Array, groups: Index, axis: int) -> list[Array]:
    """For every view the entries of its row in each group along ``axis``; a missing row gives 0."""
    xp = array_namespace(values)
    parts = []
    for rows in groups.T:
        index = xp.asarray(np.maximum(rows, 0), device=device(values))
        picked = xp.take(values, index, axis=axis)
        if rows.min() < 0:
            there = xp.asarray((rows >= 0).astype(np.float64), device=device(values))
            picked = picked * (there[None, :] if axis == 1 else there[:, None])
        parts.append(picked)
    return parts
