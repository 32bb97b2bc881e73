"""Controls against dense computations on the remaining rows; figures and their keys."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.core.figure_specs import FIGURES, GROUP_INFLUENCE, PREDICTORS
from krepes_ooc.stages.retraining.agreement import rank_agreement
from krepes_ooc.stages.retraining.agreement_figures import FEW_GROUPS, FEW_HALVES, summarise
from krepes_ooc.stages.retraining.controls import (
    RowMoments,
    input_effects,
    kernel_components,
    landmark_sums,
    principal_axes,
    profile_effect,
)
from tests.stages.group_audits import dense

N, D, COUNT = 90, 7, 3


def rows(seed: int = 0, n: int = N) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, D)) @ np.diag(np.arange(D, 0, -1.0)) + 5.0


def scores(X: np.ndarray, fitted: np.ndarray, count: int = COUNT) -> np.ndarray:
    """Principal component scores of X, solved on other rows."""
    mean = fitted.mean(axis=0)
    _, _, axes = np.linalg.svd(fitted - mean, full_matrices=False)
    return (X - mean) @ axes[:count].T


def naive_effect(full: tuple, rest: tuple) -> list[float]:
    """1 - Pearson of cosine profiles, pair by pair."""

    def profile(samples: np.ndarray, anchors: np.ndarray, t: int) -> list[float]:
        f = samples[t]
        return [f @ a / (np.linalg.norm(f) * np.linalg.norm(a)) for a in anchors]

    each = range(len(full[0]))
    return [1 - np.corrcoef(profile(*full, t), profile(*rest, t))[0, 1] for t in each]


def test_effects_of_input_components_are_those_of_the_remaining_rows():
    X, samples, anchors = rows(), rows(1, 12), rows(2, 40)
    draw = np.random.default_rng(3)
    members, outside = draw.random((4, N)) < 0.3, draw.random((4, 40)) < 0.8
    members[3] = True
    found = list(input_effects(samples, anchors, X.astype(np.float32), members, outside, COUNT))
    X = X.astype(np.float32).astype(float)
    for group in range(3):
        left, kept = X[~members[group]], anchors[outside[group]]
        full = scores(samples, X), scores(kept, X)
        wanted = naive_effect(full, (scores(samples, left), scores(kept, left)))
        np.testing.assert_allclose(found[group], wanted, atol=1e-9)
    assert np.isnan(found[3]).all()


def test_sums_of_rows_subtract():
    X = rows()
    about = X.mean(axis=0) + 0.5
    left = RowMoments.of(X, about).without(RowMoments.of(X[:30], about))
    np.testing.assert_allclose(left.covariance(), np.cov(X[30:].T, bias=True), atol=1e-10)
    assert principal_axes(left.covariance(), 100).shape == (D, D)


def test_kernel_components_are_those_of_all_view_rows():
    K = np.stack([rows(4), rows(5) + 1.0])
    found = kernel_components(dense(K).full(), COUNT)
    every = K.reshape(-1, D)
    mine, wanted = (
        every @ found.coefficients - found.mean @ found.coefficients,
        scores(every, every),
    )
    np.testing.assert_allclose(np.abs(mine), np.abs(wanted), atol=1e-9)


def test_sums_over_landmarks():
    score = np.random.default_rng(0).random((6, 5))
    members = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    found = landmark_sums(score, members)
    np.testing.assert_allclose(found, [score[:, 0] + score[:, 2], np.zeros(6)])


def test_the_effect_is_that_of_profiles_and_blind_to_rotation_and_scale():
    full = rows(6, 10) - 5.0, rows(7, 50) - 5.0
    rest = tuple(side + 0.5 * rows(8, len(side)) for side in full)
    found = profile_effect(full, rest)
    np.testing.assert_allclose(found, naive_effect(full, rest), atol=1e-12)
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(D, D)))[0]
    turned = tuple(3.0 * side @ turn for side in rest)
    np.testing.assert_allclose(profile_effect(full, turned), found, atol=1e-12)
    assert np.isnan(profile_effect((full[0], np.zeros((50, D))), rest)).all()


def summary(groups: int = 6, halves: int = 4, noise: float = 0.3):
    draw = np.random.default_rng(0)
    total, samples = groups + halves, 20
    truth = draw.random((total, samples)) + np.linspace(0, 1, total)[:, None]
    effect = truth + 0.2 * draw.normal(size=(3, total, samples))
    predictions = {key: draw.random((total, samples)) for key in PREDICTORS}
    predictions[GROUP_INFLUENCE] = truth + noise * draw.normal(size=truth.shape)
    predictions["input_components"] = np.full(truth.shape, np.nan)
    predictions["group_size"] = np.repeat(np.arange(total)[:, None].astype(float), samples, axis=1)
    is_half = np.arange(total) >= groups
    found = summarise(effect, predictions, is_half, np.ones(total, dtype=bool), 0)
    return found, effect, predictions, is_half


def test_figures_hold_the_measures_of_groups_and_halves_apart():
    found, effect, predictions, is_half = summary()
    figures = {figure.key: figure for figure in found.figures}
    assert list(figures) == [key for key in FIGURES if key.startswith("retraining_")]
    wanted = rank_agreement(effect.mean(axis=0)[~is_half], predictions[GROUP_INFLUENCE][~is_half])
    names = ("pairs", "within", "centred")
    assert [figures[f"retraining_{key}"].value for key in names] == pytest.approx(wanted)
    pairs = figures["retraining_pairs"]
    assert pairs.interval[0] < pairs.value < pairs.interval[1]
    assert 0 < pairs.controls["single_seed"].value < pairs.controls["attainable"].value <= 1
    assert np.isnan(pairs.controls["input_components"].value)
    assert "group_size" not in figures["retraining_halves"].controls
    margin = figures["retraining_margin"]
    best = max(v for k, v in pairs.values.items() if k in PREDICTORS and np.isfinite(v))
    assert margin.value == pytest.approx(pairs.value - best)


def test_too_few_groups_have_no_figure_but_a_reason():
    found, *_ = summary(groups=2, halves=0)
    reasons = {figure.key: figure.reason for figure in found.figures}
    assert reasons["retraining_pairs"] == reasons["retraining_margin"] == FEW_GROUPS
    assert reasons["retraining_halves"] == FEW_HALVES
    assert np.isnan(found.value).all()
