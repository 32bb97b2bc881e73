"""Influence of landmarks on audited samples: scores, signs and rankings.

With k_lt = k(x_l, x_t), dA_l the step row of landmark l and f = K A + gamma:

    is                      |k_lt| |dA_l|                      the paper's influence score
    aligned                 k_lt cos(df_t, df_l), df = K dA    same direction of change
    unique                  (K_t S^-1)_l / (S^-1)_ll           leave-one-out kernel
    kernel                  k_lt                               control without the step
    contribution            k_lt <dA_l, f_t / |f_t|>           > 0 attracts, < 0 repels
    embedding_contribution  <k_lt A_l, f_t>                    share of landmark l in |f_t|^2

Source of the first: KREPES (arXiv 2509.24467); the others are this project's choice.
Blocks are [audited, landmark]; the functions speak the array API and are meant for float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from krepes_ooc.core.landmark_rows import split_views, strongest_view, sum_views
from krepes_ooc.errors import UsageError

Array = Any
Float = npt.NDArray[np.float64]
MEASURES = ("is", "aligned", "unique", "kernel")

# Of the mean diagonal of S: below it the float32 kernel decides, not the data.
_RIDGE = 1e-4


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


def grouped_influence_score(kernel: Array, step: Array, n_views: int) -> Array:
    """|sum over the rows l of one landmark of k_lt dA_l| [audited, landmark].

    The rows of a landmark's views are summed before the norm is taken, by the Gram matrix of the
    few rows of a landmark, so that no [audited, row, component] array is formed.

    Args:
        kernel: values [audited, row], rows as ``core.landmark_rows`` orders them.
        step: [row, component].
        n_views: rows of a landmark.
    """
    xp = array_namespace(kernel, step)
    k = split_views(kernel, n_views)
    rows = split_views(step, n_views, axis=0)
    # |sum_i k_i r_i|^2 = sum_ij k_i k_j <r_i, r_j>; the Gram matrix is symmetric
    total = 0.0
    for i in range(len(k)):
        for j in range(i, len(k)):
            inner = xp.sum(rows[i] * rows[j], axis=1)[None, :]
            total = total + (1.0 if i == j else 2.0) * k[i] * k[j] * inner
    return xp.sqrt(xp.clip(total, 0.0, None))


def aligned(kernel: Array, step: Array, landmark_kernel: Array) -> Array:
    """k_lt cos(df_t, df_l) [audited, landmark]; 0 where sample or landmark has no displacement."""
    return aligned_with(kernel, step, landmark_kernel @ step)


def aligned_with(kernel: Array, step: Array, landmark_displacement: Array) -> Array:
    """``aligned`` with df_l = K_mm dA [landmark, component] known: no K_mm is needed."""
    return kernel * (unit_rows(kernel @ step) @ unit_rows(landmark_displacement).T)


def leave_one_out(second: Float) -> Float:
    """W [landmark, landmark_] = S^-1 with column l divided by (S^-1)_ll.

    K_t W is then the residual of kernel column l on all other columns. A ridge of 1e-4 of the mean
    diagonal is added to S: without it rounding of the moments decides the smallest directions, and
    duplicate landmarks make S singular.

    Args:
        second: un-centred S [landmark, landmark_], mean over samples and views of k k^T.
    """
    from scipy.linalg import inv  # on first use: scipy costs 0.2 s

    m = len(second)
    ridge = _RIDGE * np.trace(second) / m
    # A matrix of zeros needs a ridge as well
    inverse = inv(second + max(ridge, np.finfo(float).tiny) * np.eye(m))
    return np.asarray(inverse / np.diagonal(inverse)[None, :])


def kernel_score(kernel: Array) -> Array:
    """The kernel as the score: a control without the step."""
    return kernel


def positive_only(score: Callable[[Array], Array], kernel: Array) -> Array:
    """The scores [audited, landmark] of landmarks with a positive kernel; 0 for the others."""
    xp = array_namespace(kernel)
    values = score(kernel)
    return xp.where(kernel > 0, values, xp.zeros_like(values))


def unique(kernel: Array, weights: Array) -> Array:
    """Leave-one-out kernel (K_t S^-1)_l / (S^-1)_ll [audited, landmark].

    Args:
        kernel: [audited, landmark].
        weights: of ``leave_one_out`` [landmark, landmark_].
    """
    return kernel @ weights


def contribution(kernel: Array, step: Array, embedding: Array) -> Array:
    """k_lt <dA_l, f_t / |f_t|> [audited, landmark]: > 0 attracts, < 0 repels.

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
    is_nonzero = length > 0
    # Never 1 / 0, not even where it would be thrown away
    divisor = xp.where(is_nonzero, length, xp.ones_like(length))
    return rows * xp.where(is_nonzero, 1.0 / divisor, length)[:, None]


def scorer(
    measure: str,
    step: Array,
    landmark_kernel: Array,
    second: Array | None = None,
    n_views: int = 1,
) -> Callable[[Array], Array]:
    """The function from a kernel block [audited, row] to its scores [audited, landmark].

    Of a landmark with several rows ``is`` is the norm of their sum and ``unique`` a sum; ``kernel``
    and ``aligned`` say how near a landmark is, and take its row of largest score.

    Args:
        measure: one of ``MEASURES``.
        step: dA [landmark, component].
        landmark_kernel: K_mm [landmark, landmark_]; only ``aligned`` reads it.
        second: un-centred S [landmark, landmark_], needed by ``unique``.
        n_views: rows of a landmark.

    Raises:
        UsageError: no such measure, or ``unique`` without moments.
    """
    # Partial functions: their arrays can be moved to where the kernel block is.
    if n_views > 1:
        if measure == "is":
            return partial(grouped_influence_score, step=step, n_views=n_views)
        by_row = scorer(measure, step, landmark_kernel, second)
        if measure == "unique":
            return partial(_summed_scores, by_row, n_views)
        return strongest_scores(by_row, n_views)
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


def strongest_scores(score: Callable[[Array], Array], n_views: int) -> Callable[[Array], Array]:
    """The scores of landmarks [audited, landmark], each by its row of largest score.

    Args:
        score: from kernel blocks to scores of rows [audited, row].
        n_views: rows of a landmark.
    """
    return score if n_views == 1 else partial(_strongest_scores, score, n_views)


def _strongest_scores(score: Callable[[Array], Array], n_views: int, kernel: Array) -> Array:
    return strongest_view(score(kernel), n_views)


def _summed_scores(score: Callable[[Array], Array], n_views: int, kernel: Array) -> Array:
    return sum_views(score(kernel), n_views)


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
    """The most repelling landmarks [audited, repelled], strongest first, and their contributions.

    Ties go to the lower landmark index. Where fewer than ``count`` values are below 0, the places
    left hold landmark -1 and value 0.

    Args:
        signed: of ``contribution`` [audited, landmark].
        count: places for every audited sample.
    """
    xp = array_namespace(signed)
    order = xp.argsort(signed, axis=1, stable=True)[:, : min(count, signed.shape[1])]
    value = xp.take_along_axis(signed, order, axis=1)
    repels = value < 0
    landmark = xp.where(repels, order, xp.full_like(order, -1))
    return landmark, xp.where(repels, value, xp.zeros_like(value))
