"""Does the ranking of landmarks differ from the rankings of networks with random weights?

    O_t(i, j) = |R_t(i) & R_t(j)| / |R|      top landmarks R_t of sample t under networks i and j
    d_t       = mean_j O_t(0, j) - mean_{i<j} O_t(i, j)          0: trained, i, j >= 1: draws

A network that learned nothing is one more draw, so that d has mean 0; below 0 means that its
ranking is further from random networks than they are from each other. The draws are few and each
is more or less central, O(i, j) = mu + a_i + a_j, so that d of one more draw varies by
sd(a) sqrt(1 + 1 / draws) even with endless samples; the interval counts that beside the samples:

    d +- t_{0.975, draws - 1} sqrt(var_t(d) / n + var(a) (1 + 1 / draws))

Source: Adebayo et al. (2018), "Sanity checks for saliency maps", for the control; the criterion
is this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

MIN_DRAWS = 3
CONFIDENCE = 0.975


@dataclass(frozen=True)
class RankingComparison:
    """A ranking beside those of networks with random weights.

    Args:
        with_draws: mean overlap of the ranking with those of the draws.
        among_draws: mean overlap of the draws' rankings with each other.
        difference: the first minus the second.
        interval: of the difference, 95 %, over samples and draws.
        sample_error: standard error of the difference over samples alone.
        draw_deviation: standard deviation of a draw's effect a_i.
    """

    with_draws: float
    among_draws: float
    difference: float
    interval: tuple[float, float]
    sample_error: float
    draw_deviation: float

    @property
    def distinguishable(self) -> bool:
        """Whether the ranking lies further from the draws than they do from each other."""
        return self.interval[1] < 0.0


def sample_overlap(first: Index, second: Index) -> Float:
    """Share of landmarks that two rankings [sample, rank] have in common, per sample [sample]."""
    shared = (first[:, :, None] == second[:, None, :]).any(axis=2)
    return np.asarray(shared.mean(axis=1))


def overlap_table(rankings: Sequence[Index]) -> Float:
    """O_t(i, j) [network, network_, sample] of rankings [sample, rank]; 1 on the diagonal."""
    count = len(rankings)
    n_samples = len(rankings[0]) if count else 1
    table = np.ones((count, count, n_samples))
    for i in range(count):
        for j in range(i + 1, count):
            table[i, j] = table[j, i] = sample_overlap(rankings[i], rankings[j])
    return table


def correlation_table(kernels: Sequence[npt.NDArray[Any]]) -> Float:
    """Correlation of kernel rows [network, network_, sample] of blocks [sample, landmark].

    Pearson correlation over the landmarks, sample by sample; 0 for a constant row, whose landmarks
    cannot be distinguished.
    """
    rows = [_standardised(np.asarray(kernel, dtype=np.float64)) for kernel in kernels]
    count = len(rows)
    n_samples = len(rows[0]) if count else 1
    table = np.ones((count, count, n_samples))
    for i in range(count):
        for j in range(i + 1, count):
            table[i, j] = table[j, i] = np.sum(rows[i] * rows[j], axis=1)
    return table


def compare_rankings(table: Float) -> RankingComparison:
    """The network of index 0 beside the draws, from a likeness of all pairs.

    Args:
        table: of ``overlap_table`` or ``correlation_table`` [network, network_, sample].

    Raises:
        StageFailed: fewer than three draws.
    """
    draws = len(table) - 1
    if draws < MIN_DRAWS:
        raise StageFailed(
            f"{draws} networks with random weights could be audited",
            where="randomised",
            expected=f"at least {MIN_DRAWS}",
        )
    pairs = np.triu_indices(draws, 1)
    with_draws = table[0, 1:].mean(axis=0)
    among = table[1:, 1:][pairs].mean(axis=0)
    difference = with_draws - among
    n = len(difference)
    sample_error = float(np.std(difference, ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    deviation = _draw_deviation(table[1:, 1:].mean(axis=2))
    half = _student(draws - 1) * np.hypot(sample_error, deviation * np.sqrt(1.0 + 1.0 / draws))
    mean = float(difference.mean())
    return RankingComparison(
        float(with_draws.mean()),
        float(among.mean()),
        mean,
        (mean - float(half), mean + float(half)),
        sample_error,
        deviation,
    )


def draws_reach(value: float, draws: Float) -> tuple[bool, float]:
    """Whether networks with random weights reach a figure, and the most that they do.

    The most is the upper end of the 95 % prediction interval of one more draw,
    mean + t sd sqrt(1 + 1 / draws).

    Args:
        value: of the trained network; larger means more was learned.
        draws: the same figure of every draw [draw], two or more.
    """
    _, most = prediction_interval(draws)
    return bool(value <= most), most


def prediction_interval(draws: Float) -> tuple[float, float]:
    """95 % prediction interval of one more draw, mean +- t sd sqrt(1 + 1 / draws).

    Args:
        draws: a figure of every draw [draw], two or more.
    """
    spread = float(np.std(draws, ddof=1)) * np.sqrt(1.0 + 1.0 / len(draws))
    half, middle = _student(len(draws) - 1) * float(spread), float(np.mean(draws))
    return middle - half, middle + half


def _standardised(rows: Float) -> Float:
    """Rows [sample, landmark] with mean 0 and length 1; a constant row gives 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    size = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(np.where(size > 0, centred / np.where(size > 0, size, 1.0), 0.0))


def _draw_deviation(overlap: Float) -> float:
    """Standard deviation of a_i from the draws' mean overlaps [draw, draw_].

    The mean overlap of draw i with the others is o_i = mu + a_i + mean_{j != i} a_j, so that
    o_i - mean(o) = (a_i - mean(a)) (D - 2) / (D - 1).
    """
    count = len(overlap)
    others = (overlap.sum(axis=1) - np.diag(overlap)) / (count - 1)
    return float(np.std(others, ddof=1) * (count - 1) / (count - 2))


def _student(freedom: int) -> float:
    """Quantile of Student's t for an interval of 95 %."""
    from scipy.stats import t  # on first use: half a second

    return float(t.ppf(CONFIDENCE, freedom))
