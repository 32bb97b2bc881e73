"""Alignment gap: agreement of a sample with its top landmarks minus its agreement with all.

    v(t, l) = 1 - min(|x_t - x_l| / range, 1)   for numbers,   [x_t = x_l]   for categories
    gap     = mean_t [ mean_{l in R_t} v(t, l) - mean_l v(t, l) ]                within [-1, 1]

with R_t the top landmarks of sample t. The second mean is the exact expectation over landmarks
drawn at random, so that no random draw adds noise. The weighted gap weighs both means by |k_lt|;
the paper's literal form, whose influence score is |grad f| v, multiplies every v by |k_lt| instead.
Source: KREPES (arXiv 2509.24467); the exact expectation and both errors are this project's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ColumnValues:
    """One column of the audited samples and of the landmarks.

    Args:
        audited: value or code [audited]; NaN or a negative code is missing.
        landmark: value or code [landmark].
        span: range of a number within which agreement falls from 1 to 0; None for a category.
    """

    audited: Float
    landmark: Float
    span: float | None = None


@dataclass(frozen=True)
class Gap:
    """The alignment gap of one column.

    Args:
        gap: agreement with the top landmarks minus agreement with all.
        stderr: its bootstrap standard error over samples, with fixed landmarks.
        chance: standard deviation of the gap were the column shuffled over the landmarks.
        weighted: the same gap, both means weighted by the kernel's size.
        paper: the same gap of |k_lt| v(t, l), the paper's literal form.
    """

    gap: float
    stderr: float
    chance: float
    weighted: float
    paper: float


def agreement(column: ColumnValues) -> Float:
    """Agreement v [audited, landmark] in [0, 1]; a missing value agrees with a missing one.

    Raises:
        StageFailed: all values of the column are the same, so that agreement is not defined.
    """
    audited = _nan_if_missing(column.audited, column)
    landmark = _nan_if_missing(column.landmark, column)
    values = np.concatenate([audited, landmark])
    if np.all(np.isnan(values)) or np.all(values == values[0]):
        raise StageFailed(
            "the column is constant",
            where="alignment",
            expected="at least two values among audited samples and landmarks",
        )
    x = audited[:, None]
    y = landmark[None, :]
    # v = [x = y] for categories, 1 - min(|x - y| / range, 1) for numbers
    if column.span is None or not column.span > 0:
        same = (x == y).astype(np.float64)
    else:
        same = 1.0 - np.minimum(np.abs(np.nan_to_num(x) - np.nan_to_num(y)) / column.span, 1.0)
    lacks_x = np.isnan(x)
    lacks_y = np.isnan(y)
    return np.where(lacks_x | lacks_y, (lacks_x & lacks_y).astype(np.float64), same)


def alignment_gap(agreed: Float, top: Index, kernel: Float) -> Gap:
    """The gap of one column with its errors.

    Args:
        agreed: v [audited, landmark], as ``agreement`` gives it.
        top: top landmarks [audited, rank], distinct in every row.
        kernel: k [audited, landmark], for the weighted gap.

    Raises:
        StageFailed: there is no audited sample or no landmark.
    """
    if not agreed.size or not top.size:
        raise StageFailed("the alignment gap has no samples", where="alignment", expected="some")
    per_sample = sample_gaps(agreed, top)
    return Gap(
        gap=float(per_sample.mean()),
        stderr=bootstrap_error(per_sample),
        chance=shuffled_deviation(agreed, top),
        weighted=float(np.mean(_weighted(agreed, top, np.abs(kernel)))),
        paper=float(sample_gaps(np.abs(kernel) * agreed, top).mean()),
    )


def sample_gaps(agreed: Float, top: Index) -> Float:
    """Agreement with the top landmarks minus agreement with all, of every sample [audited]."""
    chosen = np.take_along_axis(agreed, top, axis=1)
    return np.asarray(chosen.mean(axis=1) - agreed.mean(axis=1))


def bootstrap_error(values: Float) -> float:
    """Bootstrap standard error of the mean of values [sample], in closed form.

    A resample of n picks has a mean of variance sum_t (x_t - mean)^2 / n^2: what endless bootstrap
    draws would converge to.
    """
    return float(np.std(values) / np.sqrt(len(values)))


def shuffled_deviation(agreed: Float, top: Index) -> float:
    """Standard deviation of the gap over all shuffles of the column's values over the landmarks.

    With w_tl = [l in R_t] / |R| - 1 / m, whose rows sum to 0, the gap of a shuffle p is
    sum_l M[l, p(l)] with M = W^T V / n. Its mean is 0 and its variance is
    sum of (M - row mean - column mean + mean)^2 / (m - 1).
    Source: Hoeffding (1951), "A combinatorial central limit theorem", theorem 2.

    Args:
        agreed: v [audited, landmark].
        top: top landmarks [audited, rank].
    """
    n, m = agreed.shape
    if m < 2:
        return 0.0
    # M = W^T V / n, doubly centred
    W = np.full((n, m), -1.0 / m)
    np.put_along_axis(W, top, 1.0 / top.shape[1] - 1.0 / m, axis=1)
    M = W.T @ agreed / n
    centred = M - M.mean(axis=0) - M.mean(axis=1, keepdims=True) + M.mean()
    return float(np.sqrt(np.sum(centred**2) / (m - 1)))


def _nan_if_missing(values: Float, column: ColumnValues) -> Float:
    """Values with missing ones as NaN."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(values < 0, np.nan, values) if column.span is None else values


def _weighted(agreed: Float, top: Index, size: Float) -> Float:
    """The weighted gap of every sample [audited]; 0 where all weights are 0."""
    chosen, weight = (np.take_along_axis(a, top, axis=1) for a in (agreed, size))
    top_weight = weight.sum(axis=1)
    all_weight = size.sum(axis=1)
    is_defined = (top_weight > 0) & (all_weight > 0)
    # Weighted means over the top landmarks and over all, never divided by 0
    top_mean = (chosen * weight).sum(axis=1) / np.where(is_defined, top_weight, 1.0)
    all_mean = (agreed * size).sum(axis=1) / np.where(is_defined, all_weight, 1.0)
    return np.asarray(np.where(is_defined, top_mean - all_mean, 0.0))
