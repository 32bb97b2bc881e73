"""Rank agreement of predicted effects with the effects of training again, and its intervals.

Effects are over pairs of a group that is left out and a sample. Three correlations of Spearman:
over all pairs; within a group over samples, mean over groups; over all pairs after the mean of
every group is subtracted on both sides. Intervals are percentiles of a bootstrap that draws groups
and samples with replacement (the pigeonhole bootstrap of Owen 2007), because pairs that share a
group or a sample are not independent. Random halves of the samples in place of groups give the
linear datamodeling score (Park et al. 2023): over subsets, mean over samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng

PAIRS, WITHIN, CENTRED = range(3)
MEASURES = ("pairs", "within", "centred")
REPEATS = 500
LEVEL = 0.95
LEAST = 3
_GROUP_STREAM = 541
_SAMPLE_STREAM = 542
Float = npt.NDArray[np.float64]
Measure = Callable[[Float, Float], Float]


def spearman(left: Float, right: Float) -> float:
    """Spearman's correlation of two arrays; ties share their mean rank.

    NaN where fewer than three entries are finite on both sides, or one side is constant.
    """
    known = np.isfinite(left) & np.isfinite(right)
    if known.sum() < LEAST:
        return float("nan")
    ranks = (_ranks(side[known])[None] for side in (left, right))
    return float(_correlations(*ranks)[0])


def _ranks(values: Float) -> Float:
    """Ranks along the last axis; ties share their mean rank."""
    # Takes a second to import, and every command imports the stages
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=-1))


def rank_agreement(truth: Float, prediction: Float) -> Float:
    """The three correlations of ``MEASURES`` [measure]; NaN where one is not defined.

    Args:
        truth: effect of training again [group, sample]; NaN: not defined.
        prediction: predicted effect [group, sample].
    """
    both = np.isfinite(truth) & np.isfinite(prediction)
    known = [np.where(both, side, np.nan) for side in (truth, prediction)]
    within = _row_correlations(*known)
    centred = [side - _row_means(side) for side in known]
    return np.array(
        [spearman(*(side.ravel() for side in known)), _mean(within), _centred(*centred)]
    )


def datamodeling_score(truth: Float, prediction: Float) -> Float:
    """Linear datamodeling score [1]: Spearman over subsets, mean over samples.

    Args:
        truth: effect of training again [subset, sample].
        prediction: predicted effect [subset, sample].
    """
    return np.array([_mean(_row_correlations(truth.T, prediction.T))])


@dataclass(frozen=True)
class Agreement:
    """Agreement of several predictors with the truth, with intervals.

    Args:
        value: correlation [predictor, measure].
        low: lower end of its interval [predictor, measure].
        high: upper end [predictor, measure].
        draws: the same over bootstrap draws [draw, predictor, measure].
    """

    value: Float
    low: Float
    high: Float
    draws: Float

    def margin(self, predictor: int, controls: list[int], measure: int) -> tuple[float, ...]:
        """Distance of a predictor from the best of some controls: value, low and high.

        The interval is that of the difference to this control, paired draw by draw; NaN where no
        control is defined.
        """
        known = [c for c in controls if np.isfinite(self.value[c, measure])]
        if not known or not np.isfinite(self.value[predictor, measure]):
            return (float("nan"),) * 3
        best = max(known, key=lambda c: float(self.value[c, measure]))
        difference = self.value[predictor, measure] - self.value[best, measure]
        drawn = self.draws[:, predictor, measure] - self.draws[:, best, measure]
        low, high = _interval(drawn[:, None])
        return float(difference), float(low[0]), float(high[0])


def measure_agreement(
    truth: Float, predictions: Float, measure: Measure, seed: int, repeats: int = REPEATS
) -> Agreement:
    """Agreement of every predictor with the truth.

    Args:
        truth: effect of training again [group, sample].
        predictions: predicted effects [predictor, group, sample].
        measure: of one predictor, ``rank_agreement`` or ``datamodeling_score``.
        seed: key of the draws.
        repeats: bootstrap draws.
    """
    groups, samples = truth.shape
    value = np.array([measure(truth, prediction) for prediction in predictions])
    draws = np.empty((repeats, *value.shape))
    for draw in range(repeats):
        # The same groups and samples for all predictors: differences are paired.
        rows = _drawn(seed, _GROUP_STREAM, draw, groups)
        columns = _drawn(seed, _SAMPLE_STREAM, draw, samples)
        cut = np.ix_(rows, columns)
        draws[draw] = [measure(truth[cut], prediction[cut]) for prediction in predictions]
    low, high = _interval(draws.reshape(repeats, -1))
    return Agreement(value, low.reshape(value.shape), high.reshape(value.shape), draws)


def seed_agreement(effect: Float, measure: Measure) -> Float:
    """Agreement of one training with another, mean over pairs of seeds [measure].

    Args:
        effect: [seed, group, sample].
        measure: of two effects [group, sample].

    Returns:
        NaN where there are fewer than two seeds.
    """
    pairs = [measure(effect[a], effect[b]) for a, b in combinations(range(len(effect)), 2)]
    if not pairs:
        return np.full(len(measure(effect[0], effect[0])), np.nan)
    return np.array([_mean(column) for column in np.array(pairs).T])


def attainable_agreement(single: float, seeds: int) -> float:
    """Largest correlation that a prediction can have with the mean of several seeds.

    The square root of the reliability of the mean, S r / (1 + (S - 1) r) (Spearman 1910, Brown
    1910), for agreement r of single seeds.

    Args:
        single: r.
        seeds: S.

    Returns:
        NaN where r is not positive or not defined.
    """
    if not single > 0:
        return float("nan")
    return float(np.sqrt(seeds * single / (1.0 + (seeds - 1) * single)))


def _row_correlations(left: Float, right: Float) -> Float:
    """Spearman's correlation of each row [row]."""
    whole = (np.isfinite(left) & np.isfinite(right)).all(axis=1)
    found = np.full(len(left), np.nan)
    # All complete rows at once; a row with holes is ranked on its own.
    if whole.any() and left.shape[1] >= LEAST:
        found[whole] = _correlations(*(_ranks(side[whole]) for side in (left, right)))
    for row in np.flatnonzero(~whole):
        found[row] = spearman(left[row], right[row])
    return found


def _centred(truth: Float, prediction: Float) -> float:
    """Spearman over pairs without group means; a constant row is 0 up to rounding."""
    flat = np.nanmax(np.abs(prediction), initial=0.0) <= 1e-12
    return float("nan") if flat else spearman(truth.ravel(), prediction.ravel())


def _row_means(rows: Float) -> Float:
    known = np.isfinite(rows)
    total = np.where(known, rows, 0.0).sum(axis=1, keepdims=True)
    return np.asarray(total / np.maximum(known.sum(axis=1, keepdims=True), 1))


def _drawn(seed: int, stream: int, draw: int, count: int) -> npt.NDArray[np.int64]:
    uniform = np.asarray(counter_rng.uniform(seed, stream, draw, np.arange(count)))
    return np.minimum((uniform * count).astype(np.int64), count - 1)


def _interval(draws: Float) -> tuple[Float, Float]:
    """Percentiles over draws [draw, entry]; NaN where hardly any draw is defined."""
    tail = 100 * (1 - LEVEL) / 2
    ends = np.full((2, draws.shape[1]), np.nan)
    for entry, column in enumerate(draws.T):
        known = column[np.isfinite(column)]
        if 2 * len(known) >= len(column):
            ends[:, entry] = np.percentile(known, [tail, 100 - tail])
    return ends[0], ends[1]


def _mean(values: Float) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _correlations(left: Float, right: Float) -> Float:
    """Pearson's correlation of each row [row]; NaN where one side is constant."""
    a = left - left.mean(axis=1, keepdims=True)
    b = right - right.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    product = (a * b).sum(axis=1)
    return np.where(scale > 0, product / np.where(scale > 0, scale, 1.0), np.nan)
