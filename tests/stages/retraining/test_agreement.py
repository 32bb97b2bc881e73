"""Agreement with the truth, against scipy; planted predictions; the bootstrap covers groups."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from krepes_ooc.stages.retraining.agreement import (
    CENTRED,
    PAIRS,
    WITHIN,
    attainable_agreement,
    datamodeling_score,
    measure_agreement,
    rank_agreement,
    seed_agreement,
    spearman,
)

G, T = 12, 60


def effects(seed: int = 0, noise: float = 0.0) -> np.ndarray:
    """Group effects, sample effects and their interaction [group, sample]."""
    draw = np.random.default_rng(0)
    base = draw.normal(size=(G, 1)) + 0.5 * draw.normal(size=(1, T)) + draw.normal(size=(G, T))
    return base + noise * np.random.default_rng(seed + 1).normal(size=(G, T))


def test_correlations_are_those_of_scipy():
    truth, prediction = effects(), effects(3, noise=1.0)
    found = rank_agreement(truth, prediction)
    assert found[PAIRS] == pytest.approx(stats.spearmanr(truth.ravel(), prediction.ravel())[0])
    rows = [stats.spearmanr(t, p)[0] for t, p in zip(truth, prediction, strict=True)]
    assert found[WITHIN] == pytest.approx(np.mean(rows))
    a, b = (side - side.mean(axis=1, keepdims=True) for side in (truth, prediction))
    assert found[CENTRED] == pytest.approx(stats.spearmanr(a.ravel(), b.ravel())[0])
    columns = [stats.spearmanr(t, p)[0] for t, p in zip(truth.T, prediction.T, strict=True)]
    assert datamodeling_score(truth, prediction)[0] == pytest.approx(np.mean(columns))


def test_ties_share_their_mean_rank():
    truth, flag = effects(), np.repeat(np.arange(G)[:, None] % 2, T, axis=1).astype(float)
    wanted = stats.spearmanr(truth.ravel(), flag.ravel())[0]
    assert rank_agreement(truth, flag)[PAIRS] == pytest.approx(wanted)


def test_a_prediction_of_the_group_alone_is_undefined_within_groups():
    size = np.repeat(np.linspace(0.1, 0.7, G)[:, None], T, axis=1)
    found = rank_agreement(effects(), size)
    assert np.isfinite(found[PAIRS])
    assert np.isnan(found[[WITHIN, CENTRED]]).all()


def test_pairs_that_are_not_defined_are_left_out():
    truth, prediction = effects(), effects(1, noise=0.5)
    hole = truth.copy()
    hole[4] = np.nan
    hole[2, :5] = np.nan
    found, kept = rank_agreement(hole, prediction), np.isfinite(hole)
    assert found[PAIRS] == pytest.approx(stats.spearmanr(hole[kept], prediction[kept])[0])
    assert np.isfinite(found).all()
    assert np.isnan(spearman(truth[0, :2], prediction[0, :2]))


def test_shuffled_predictions_agree_with_nothing():
    truth, draw = effects(), np.random.default_rng(5)
    shuffled = [draw.permutation(truth.ravel()).reshape(G, T) for _ in range(20)]
    found = measure_agreement(truth, np.array([truth, *shuffled]), rank_agreement, 0, 60)
    assert found.value[0] == pytest.approx([1, 1, 1])
    assert np.abs(found.value[1:]).max() < 4 / np.sqrt(G * T)
    # Intervals of 95 % cover 0 for most shuffles, and never for the truth itself.
    covers = (found.low < 0) & (found.high > 0)
    assert (covers[1:].sum(axis=0) >= 17).all()
    assert not covers[0].any()


def test_intervals_are_over_groups_too():
    """A figure that rests on the means of few groups has a far wider interval than n pairs say."""
    truth = effects()
    by_group = truth.mean(axis=1, keepdims=True) + 1e-3 * effects(2, noise=1.0)
    found = measure_agreement(truth, by_group[None], rank_agreement, 1, 200)
    naive = 2 * 1.96 / np.sqrt(G * T)
    assert found.high[0, PAIRS] - found.low[0, PAIRS] > 1.5 * naive
    again = measure_agreement(truth, by_group[None], rank_agreement, 1, 200)
    np.testing.assert_array_equal(found.draws, again.draws)


def test_the_margin_is_paired_with_the_best_control():
    truth = effects()
    predictions = np.array([effects(1, 0.5), effects(2, 0.6), effects(3, 5.0)])
    found = measure_agreement(truth, predictions, rank_agreement, 0, 200)
    value, low, high = found.margin(0, [1, 2], PAIRS)
    assert value == pytest.approx(found.value[0, PAIRS] - found.value[1, PAIRS])
    assert low <= value <= high
    # Pairing removes what all predictors share with the drawn groups.
    apart = found.high[0, PAIRS] - found.low[1, PAIRS], found.low[0, PAIRS] - found.high[1, PAIRS]
    assert high - low < apart[0] - apart[1]
    assert np.isnan(found.margin(0, [], PAIRS)).all()


def test_the_bound_of_the_mean_is_what_a_perfect_prediction_reaches():
    draw, seeds = np.random.default_rng(0), 5
    truth = draw.normal(size=(40, 200))
    effect = truth + 1.2 * draw.normal(size=(seeds, 40, 200))
    single = seed_agreement(effect, rank_agreement)[PAIRS]
    assert 0.3 < single < 0.5
    reached = spearman(truth.ravel(), effect.mean(axis=0).ravel())
    assert attainable_agreement(single, seeds) == pytest.approx(reached, abs=0.02)


def test_one_seed_has_no_agreement():
    assert np.isnan(seed_agreement(effects()[None], rank_agreement)).all()
    assert np.isnan(attainable_agreement(float("nan"), 5))
    assert np.isnan(attainable_agreement(-0.1, 5))
