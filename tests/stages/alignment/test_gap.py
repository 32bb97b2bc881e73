from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.alignment.gap import (
    ColumnValues,
    agreement,
    alignment_gap,
    bootstrap_error,
    sample_gaps,
    shuffled_deviation,
)

RNG = np.random.default_rng(3)


def top_by(score: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-score, axis=1, kind="stable")[:, :count]


def naive_gap(column: ColumnValues, top: np.ndarray, kernel: np.ndarray) -> tuple[float, float]:
    """Gap and weighted gap by loops over the formula."""
    plain, weighted = [], []
    for t, x in enumerate(column.audited):

        def v(landmark: int, x: float = x) -> float:
            other = column.landmark[landmark]
            if column.span is None:
                return float(x == other)
            return 1.0 - min(abs(x - other) / column.span, 1.0)

        everyone = range(len(column.landmark))
        size = np.abs(kernel[t])
        plain.append(np.mean([v(i) for i in top[t]]) - np.mean([v(i) for i in everyone]))
        near = sum(size[i] * v(i) for i in top[t]) / sum(size[i] for i in top[t])
        weighted.append(near - sum(size[i] * v(i) for i in everyone) / size.sum())
    return float(np.mean(plain)), float(np.mean(weighted))


@pytest.mark.parametrize("span", [None, 2.5])
def test_the_gap_is_the_formula(span: float | None) -> None:
    draw = (lambda n: RNG.integers(3, size=n).astype(float)) if span is None else RNG.normal
    column = ColumnValues(
        draw(size=20) if span else draw(20), draw(size=9) if span else draw(9), span
    )
    kernel = RNG.normal(size=(20, 9))
    top = top_by(kernel, 4)
    found = alignment_gap(agreement(column), top, kernel)
    assert (found.gap, found.weighted) == pytest.approx(naive_gap(column, top, kernel))


def test_missing_values_agree_with_missing_ones_only() -> None:
    numbers = ColumnValues(np.array([np.nan, 1.0]), np.array([np.nan, 1.0, 3.0]), span=4.0)
    assert agreement(numbers).tolist() == [[1, 0, 0], [0, 1, 0.5]]
    codes = ColumnValues(np.array([-1.0, 2.0]), np.array([2.0, -1.0]))
    assert agreement(codes).tolist() == [[0, 1], [1, 0]]


def test_a_number_without_a_range_counts_as_a_category() -> None:
    column = ColumnValues(np.array([0.0, 5.0]), np.array([0.0, 4.0]), span=0.0)
    assert agreement(column).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("value", [4.0, np.nan])
def test_a_constant_column_is_not_defined(value: float) -> None:
    with pytest.raises(StageFailed, match="the column is constant; expected at least two values"):
        agreement(ColumnValues(np.full(3, value), np.full(2, value), span=1.0))


def test_no_samples_is_not_defined() -> None:
    with pytest.raises(StageFailed, match="no samples"):
        alignment_gap(np.empty((0, 4)), np.empty((0, 2), dtype=np.int64), np.empty((0, 4)))


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_the_gap_is_bounded_and_blind_to_order(seed: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    column = ColumnValues(
        draw.integers(3, size=8).astype(float), np.append(draw.integers(3, size=5), [0, 1])
    )
    kernel = draw.normal(size=(8, 7))
    agreed, top = agreement(column), top_by(kernel, count)
    found = alignment_gap(agreed, top, kernel)
    assert -1 <= found.gap <= 1
    assert -1 <= found.weighted <= 1
    rows, marks = draw.permutation(8), draw.permutation(7)
    moved = alignment_gap(
        agreed[np.ix_(rows, marks)], np.argsort(marks)[top][rows], kernel[np.ix_(rows, marks)]
    )
    for name in ("gap", "stderr", "chance", "weighted"):
        assert getattr(moved, name) == pytest.approx(getattr(found, name), abs=1e-12)


def test_all_landmarks_give_no_gap() -> None:
    agreed = RNG.uniform(size=(6, 5))
    everyone = np.tile(np.arange(5), (6, 1))
    assert alignment_gap(agreed, everyone, np.ones((6, 5))).gap == pytest.approx(0, abs=1e-12)


def test_the_shuffled_deviation_is_that_of_all_shuffles() -> None:
    agreed, top = RNG.uniform(size=(7, 5)), top_by(RNG.normal(size=(7, 5)), 2)
    gaps = [
        sample_gaps(agreed[:, list(order)], top).mean()
        for order in itertools.permutations(range(5))
    ]
    assert np.mean(gaps) == pytest.approx(0, abs=1e-12)
    assert shuffled_deviation(agreed, top) == pytest.approx(np.std(gaps))
    assert shuffled_deviation(agreed[:, :1], np.zeros((7, 1), dtype=np.int64)) == 0


def test_the_bootstrap_error_is_that_of_many_draws() -> None:
    values = RNG.normal(size=40)
    draws = values[RNG.integers(40, size=(20_000, 40))].mean(axis=1)
    assert bootstrap_error(values) == pytest.approx(draws.std(), rel=0.03)


def simulate(seed: int, planted: bool) -> tuple[float, float, float, float]:
    """A kernel that follows a hidden group; the column is that group, or unequal noise."""
    draw = np.random.default_rng(seed)
    n, m = 150, 40
    hidden = [draw.integers(2, size=size) for size in (n, m)]
    kernel = 2.0 * (hidden[0][:, None] == hidden[1]) + draw.normal(size=(n, m))
    kernel += draw.normal(size=m)  # some landmarks are chosen by most samples
    noise = [(draw.random(size) < 0.2).astype(int) for size in (n, m)]
    column = ColumnValues(*(part.astype(float) for part in (hidden if planted else noise)))
    found = alignment_gap(agreement(column), top_by(kernel, 5), kernel)
    return found.gap, found.stderr, found.chance, found.weighted


def test_a_planted_column_is_found_and_noise_is_not() -> None:
    planted = simulate(0, planted=True)
    assert planted[0] > 0.25
    assert planted[0] > 4 * max(planted[1], planted[2])
    noise = np.array([simulate(seed, planted=False) for seed in range(300)])
    scaled = noise[:, 0] / noise[:, 2]
    assert abs(scaled.mean()) < 0.2
    assert 0.9 < scaled.std() < 1.1
    assert 0.92 < np.mean(np.abs(scaled) < 1.96) < 0.98


def test_the_standard_error_covers_the_gap_of_all_samples() -> None:
    """Landmarks fixed, samples drawn anew: 95 % intervals hold the gap of a very large sample."""
    draw = np.random.default_rng(5)
    m = 30
    group, popular = draw.integers(3, size=m), draw.normal(size=m)

    def gap(n: int) -> tuple[float, float]:
        own = draw.integers(3, size=n)
        kernel = (own[:, None] == group) + popular + draw.normal(size=(n, m))
        column = ColumnValues(own.astype(float), group.astype(float))
        found = alignment_gap(agreement(column), top_by(kernel, 5), kernel)
        return found.gap, found.stderr

    truth = gap(40_000)[0]
    held = [abs(value - truth) < 1.96 * error for value, error in (gap(80) for _ in range(400))]
    assert 0.91 < np.mean(held) < 0.98
