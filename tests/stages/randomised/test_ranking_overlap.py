"""The criterion of the randomisation control, against loops and on planted rankings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.randomised.ranking_overlap import (
    compare_rankings,
    correlation_table,
    draws_reach,
    overlap_table,
)

SAMPLES, LANDMARKS, RANK = 200, 60, 10


def rankings(networks: int, seed: int, own: float = 1.0, shift: float = 0.0) -> list[np.ndarray]:
    """Top landmarks of networks that share a score and add one of their own; 0 also a shift."""
    draw = np.random.default_rng(seed)
    shared = draw.normal(size=(SAMPLES, LANDMARKS))
    found = []
    for network in range(networks):
        score = shared + own * draw.normal(size=shared.shape)
        if not network:
            score += shift * draw.normal(size=shared.shape)
        found.append(np.argsort(-score, axis=1)[:, :RANK])
    return found


def test_overlaps_are_those_of_sets() -> None:
    tops = rankings(4, 0)
    table = overlap_table(tops)
    for i, j in itertools.product(range(4), repeat=2):
        pairs = zip(tops[i].tolist(), tops[j].tolist(), strict=True)
        expected = [len(set(a) & set(b)) / RANK for a, b in pairs]
        assert table[i, j] == pytest.approx(expected)


def test_comparison_by_loops() -> None:
    table = overlap_table(rankings(5, 1, shift=1.0))
    found, draws = compare_rankings(table), range(1, 5)
    with_draws = np.mean([table[0, j] for j in draws], axis=0)
    among = np.mean([table[i, j] for i, j in itertools.combinations(draws, 2)], axis=0)
    assert found.with_draws == pytest.approx(with_draws.mean())
    assert found.among_draws == pytest.approx(among.mean())
    error = stats.sem(with_draws - among)
    # Effects a_i of an additive model of the pairs, by least squares.
    pairs = list(itertools.combinations(range(4), 2))
    design = np.array([[1.0, *(float(k in pair) for k in range(4))] for pair in pairs])
    target = [table[i + 1, j + 1].mean() for i, j in pairs]
    effects = np.linalg.lstsq(design, target, rcond=None)[0][1:]
    deviation = np.std(effects, ddof=1)
    assert found.draw_deviation == pytest.approx(deviation)
    half = stats.t.ppf(0.975, 3) * np.hypot(error, deviation * np.sqrt(1 + 1 / 4))
    assert found.interval == pytest.approx((found.difference - half, found.difference + half))


def test_one_more_draw_is_not_told_apart_and_another_score_is() -> None:
    told = [
        compare_rankings(overlap_table(rankings(6, seed))).distinguishable for seed in range(40)
    ]
    assert np.mean(told) <= 0.1  # one-sided 2.5 % expected
    for seed in range(5):
        assert compare_rankings(overlap_table(rankings(6, seed, shift=1.0))).distinguishable


def test_a_ranking_that_is_closer_to_the_draws_is_not_distinguishable() -> None:
    tops = rankings(5, 3)
    draw = np.random.default_rng(3)
    shared = draw.normal(size=(SAMPLES, LANDMARKS))  # the shared score itself, by the same seed
    tops[0] = np.argsort(-shared, axis=1)[:, :RANK]
    found = compare_rankings(overlap_table(tops))
    assert found.difference > 0
    assert not found.distinguishable


def test_identical_networks_differ_in_nothing() -> None:
    found = compare_rankings(overlap_table([rankings(1, 0)[0]] * 4))
    assert (found.with_draws, found.among_draws, found.difference) == (1.0, 1.0, 0.0)
    assert found.interval == (0.0, 0.0)
    assert not found.distinguishable


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(StageFailed, match="2 networks with random weights"):
        compare_rankings(overlap_table(rankings(3, 0)))


def test_figures_beside_draws() -> None:
    draws = np.array([0.5, 0.52, 0.48, 0.51, 0.49])
    most = draws.mean() + stats.t.ppf(0.975, 4) * draws.std(ddof=1) * np.sqrt(1.2)
    assert draws_reach(most + 1e-9, draws) == (False, pytest.approx(most))
    assert draws_reach(most - 1e-9, draws)[0]


def test_correlation_of_kernel_rows() -> None:
    kernels = np.random.default_rng(0).normal(size=(3, 7, 5))
    kernels[2, 4] = 1.0
    table = correlation_table(kernels)
    for i, j, t in itertools.product(range(3), range(3), range(7)):
        if i == j:
            expected = 1.0
        elif 2 in (i, j) and t == 4:
            expected = 0.0
        else:
            expected = np.corrcoef(kernels[i, t], kernels[j, t])[0, 1]
        assert table[i, j, t] == pytest.approx(expected)
