"""Profiles, effects and their summary against loops over samples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import linregress, pearsonr

from krepes_ooc.stages.group_influence import effects
from krepes_ooc.stages.group_influence.effects import Embedding, refusal, standardise, summarise
from tests.stages.group_audits import dense

M, H = 6, 3


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(30, M))


def embedding(seed: int) -> Embedding:
    draw = np.random.default_rng(seed)
    return Embedding(draw.normal(size=(M, H)), draw.normal(size=M) / 5)


def profile(e: Embedding, row: np.ndarray, anchors: np.ndarray) -> list[float]:
    def f(k):
        return e.coefficients.T @ (k - e.mean)

    return [f(row) @ f(a) / np.linalg.norm(f(row)) / np.linalg.norm(f(a)) for a in anchors]


def test_effects_are_one_minus_the_correlation_of_profiles(rows, monkeypatch):
    monkeypatch.setattr(effects, "SUB_ROWS", 7)
    full, rest, anchors = embedding(1), embedding(2), rows[:11]
    wanted = [
        1 - pearsonr(profile(full, row, anchors), profile(rest, row, anchors)).statistic
        for row in rows
    ]
    np.testing.assert_allclose(effects.effects(rows, anchors, full, rest), wanted, atol=1e-12)


def test_rotations_and_scales_have_no_effect(rows):
    full = embedding(1)
    Q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(H, H)))
    turned = Embedding(2.5 * full.coefficients @ Q, full.mean)
    np.testing.assert_allclose(effects.effects(rows, rows[:9], full, turned), 0, atol=1e-12)


def test_standardised_components_have_deviation_1():
    K = np.random.default_rng(0).normal(size=(2, 50, M))
    K[1] += 0.3
    moments = dense(K).full()
    A = embedding(1).coefficients
    found = standardise(A, moments)
    np.testing.assert_allclose((K.reshape(-1, M) @ found).std(axis=0), 1.0)
    np.testing.assert_allclose(found / found[0], A / A[0])
    flat = np.hstack([A[:, :1], np.zeros((M, 1))])
    np.testing.assert_array_equal(standardise(flat, moments)[:, 1], 0)


def test_a_constant_profile_is_not_defined(rows):
    flat = Embedding(np.zeros((M, H)), np.zeros(M))
    assert np.isnan(effects.effects(rows, rows[:9], flat, embedding(1))).all()


def test_summary_against_loops():
    draw = np.random.default_rng(0)
    effect = draw.uniform(size=(5, 40))
    effect[3] = np.nan
    effect[0, 4] = np.nan
    members = draw.uniform(size=(5, 40)) < 0.3
    members[2] = False
    count = np.array([10, 20, 5, 40, 80])
    found = summarise(effect, members, count)
    for g in (0, 1, 2, 4):
        known = effect[g][np.isfinite(effect[g])]
        assert found.mean_effect[g] == pytest.approx(known.mean())
        assert found.mean_effect_stderr[g] == pytest.approx(known.std(ddof=1) / np.sqrt(len(known)))
        for other in (0, 1, 3, 4):
            inside = effect[g][members[other]]
            assert found.effect_by_group[g, other] == pytest.approx(np.nanmean(inside))
    assert np.isnan(found.mean_effect[3])
    assert np.isnan(found.effect_by_group[:, 2]).all()
    known = [0, 1, 2, 4]
    line = linregress(np.log(count[known]), found.mean_effect[known])
    wanted = found.mean_effect[known] - line.intercept - line.slope * np.log(count[known])
    np.testing.assert_allclose(found.residual_on_size[known], wanted, atol=1e-12)
    assert np.isnan(found.residual_on_size[3])


def test_a_line_needs_three_groups_and_different_sizes():
    mean = np.array([0.1, 0.2, 0.6])
    assert np.isnan(effects.residual_on_size(mean[:2], np.array([1, 2]))).all()
    level = effects.residual_on_size(mean, np.array([4, 4, 4]))
    np.testing.assert_allclose(level, mean - 0.3, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((100, 0, 80, 80), "no sample"),
        ((100, 100, 0, 80), "all samples"),
        ((100, 99, 1, 80), "one sample is left"),
        ((100, 50, 49, 80), "49 of 80 anchors are left, at least 50 needed"),
        ((100, 50, 50, 80), ""),
        ((100, 1, 79, 80), ""),
    ],
)
def test_groups_that_cannot_be_left_out(given, said):
    assert refusal(*given) == said
