"""Figures as functions of the audit samples, with what each sample adds to their error.

By the infinitesimal jackknife a figure T of n samples with equal weights has, for sample i,

    U_i = n dT / dw_i       at weights w = 1/n that keep their sum,    var(T) = sum_i U_i^2 / n^2

so that two figures of the same samples differ by T - T' with variance sum (U_i - U'_i)^2 / n^2: a
normal interval with covariance, paired over the samples. Source: Jaeckel (1972), "The infinitesimal
jackknife"; Efron and Stein (1981).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed

Float = npt.NDArray[np.float64]
Interval = tuple[float, float]

NORMAL_QUANTILE = 1.96
_ROWS = 256


@dataclass(frozen=True, eq=False)
class SampleEstimate:
    """A figure of n samples.

    Args:
        value: T.
        influence: U [sample], mean 0.
    """

    value: float
    influence: Float

    @property
    def error(self) -> float:
        """Standard error; infinite for one sample, which tells nothing of it."""
        if len(self.influence) < 2:
            return float("inf")
        return float(np.sqrt(np.sum(self.influence**2)) / len(self.influence))

    @property
    def interval(self) -> Interval:
        """Normal interval of 95 %."""
        half_width = NORMAL_QUANTILE * self.error
        return self.value - half_width, self.value + half_width

    def minus(self, other: SampleEstimate) -> SampleEstimate:
        """The difference of two figures of the same samples."""
        return SampleEstimate(self.value - other.value, self.influence - other.influence)


Paired = dict[str, tuple[float, Interval | None]]


def paired(first: SampleEstimate, others: Mapping[str, SampleEstimate | None]) -> Paired:
    """Differences of one figure and others of the same samples, with intervals of 95 %.

    Args:
        first: what is subtracted from.
        others: what is subtracted, by the key of the difference; None: not there.
    """
    found: Paired = {}
    for key, other in others.items():
        if other is not None:
            difference = first.minus(other)
            found[key] = difference.value, difference.interval
    return found


def mean_estimate(values: Float) -> SampleEstimate:
    """Mean of values [sample]."""
    mean = float(values.mean())
    return SampleEstimate(mean, values - mean)


def ratio_estimate(numerator: Float, denominator: Float) -> SampleEstimate:
    """Mean of one value [sample] over the mean of another [sample].

    Raises:
        StageFailed: the denominator's mean is 0.
    """
    below = float(denominator.mean())
    if below == 0:
        raise _undefined("a ratio", "a denominator other than 0")
    ratio = float(numerator.mean()) / below
    return SampleEstimate(ratio, (numerator - ratio * denominator) / below)


def r_squared_estimate(target: Float, predicted: Float) -> SampleEstimate:
    """Share of the target's variance [sample, output] that is predicted, as ``r_squared``.

    Raises:
        StageFailed: the target is constant.
    """
    spread = np.sum((target - target.mean(axis=0)) ** 2, axis=1)
    if not spread.any():
        raise _undefined("R squared", "a target that is not constant")
    # 1 - error / spread; the mean of the target has no first-order share
    missed = ratio_estimate(np.sum((target - predicted) ** 2, axis=1), spread)
    return SampleEstimate(1.0 - missed.value, -missed.influence)


def cka_estimate(first: Float, second: Float) -> SampleEstimate:
    """Linear CKA of two embeddings [sample, component], as ``linear_cka``.

    Raises:
        StageFailed: one embedding is constant.
    """
    X = first - first.mean(axis=0)
    Y = second - second.mean(axis=0)
    both = _squared_covariance(X, Y)
    own = [_squared_covariance(X, X), _squared_covariance(Y, Y)]
    size = float(np.sqrt(own[0].value * own[1].value))
    if not size > 0:
        raise _undefined("CKA", "two embeddings that are not constant")
    value = both.value / size
    # d (a / sqrt(b c)) = da / sqrt(b c) - value (db / b + dc / c) / 2
    relative = [part.influence / part.value for part in own]
    return SampleEstimate(value, both.influence / size - value * (relative[0] + relative[1]) / 2)


def _squared_covariance(X: Float, Y: Float) -> SampleEstimate:
    """|C|^2 of the covariance C = X^T Y / n of centred rows.

    dC / dw_i = x_i y_i^T - C, so that the influence is 2 (x_i^T C y_i - |C|^2).
    """
    C = X.T @ Y / len(X)
    value = float(np.sum(C * C))
    return SampleEstimate(value, 2.0 * (np.einsum("ic,ic->i", X @ C, Y) - value))


def tau_estimate(first: Float, second: Float) -> SampleEstimate:
    """Kendall's tau-b of two figures of the same samples [sample].

    tau = s / sqrt(t u) with s, t, u the means over pairs of sign(x_i - x_j) sign(y_i - y_j) and of
    both squared signs; the influence of sample i on a mean over pairs is twice its own mean over
    the other samples, less twice the mean.

    Raises:
        StageFailed: fewer than two samples, or one side is constant.
    """
    n = len(first)
    pairs = np.empty((3, n))
    for start in range(0, n, _ROWS):
        part = slice(start, start + _ROWS)
        x = np.sign(first[part, None] - first)
        y = np.sign(second[part, None] - second)
        pairs[0, part] = np.einsum("ij,ij->i", x, y)
        pairs[1, part] = np.einsum("ij,ij->i", x, x)
        pairs[2, part] = np.einsum("ij,ij->i", y, y)
    s, t, u = (float(row.mean()) / n for row in pairs)
    if not t * u > 0:
        raise _undefined("Kendall's tau", "two rankings that are not constant")
    size = np.sqrt(t * u)
    tau = s / size
    concordance, first_pairs, second_pairs = 2.0 * (pairs / n - np.array([[s], [t], [u]]))
    ties = first_pairs / t + second_pairs / u
    return SampleEstimate(float(tau), np.asarray(concordance / size - tau * ties / 2))


def _undefined(what: str, needed: str) -> StageFailed:
    return StageFailed(f"{what} is not defined", where="fidelity", expected=needed)
