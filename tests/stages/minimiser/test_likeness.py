"""Likeness to the network against the published formula, and the rule that it decides."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.minimiser.likeness import choose_damping, network_likeness, standardise
from krepes_ooc.stages.minimiser.solution import best_solution

DRAW = np.random.default_rng(0)
X, OTHER = DRAW.normal(size=(50, 3)), DRAW.normal(size=(50, 4))


def test_it_is_linear_cka_of_standardised_columns() -> None:
    A, B = ((rows - rows.mean(axis=0)) / rows.std(axis=0) for rows in (X, OTHER))
    S, T = A @ A.T, B @ B.T
    expected = np.sum(S * T) / np.sqrt(np.sum(S * S) * np.sum(T * T))
    assert network_likeness(X, OTHER) == pytest.approx(expected)


def test_scales_and_offsets_of_columns_are_left_out() -> None:
    scaled = X * np.array([1e-3, 1.0, 1e4]) + 5.0
    assert network_likeness(X, scaled) == pytest.approx(1.0)
    assert network_likeness(scaled, OTHER) == pytest.approx(network_likeness(X, OTHER))


def test_constant_columns_count_for_nothing() -> None:
    with_constant = np.c_[X, np.full(50, 3.0)]
    assert network_likeness(with_constant, OTHER) == pytest.approx(network_likeness(X, OTHER))
    assert not standardise(with_constant)[:, 3].any()
    # Rounding of a constant is no information.
    noisy = np.c_[X, 3.0 + 1e-9 * DRAW.normal(size=50)]
    assert network_likeness(noisy, OTHER) == pytest.approx(network_likeness(X, OTHER))
    assert network_likeness(X, np.ones((50, 4))) == 0.0
    assert network_likeness(np.zeros((50, 2)), X) == 0.0


@pytest.mark.parametrize(
    ("likeness", "grid", "chosen"),
    [
        ([0.7, 0.9, 0.9, 0.8], [1.0, 0.1, 0.3, 0.01], 0.3),
        ([0.955, 0.95, 0.96], [1.0, 0.3, 0.1], 1.0),
        ([0.949, 0.951, 0.96], [1.0, 0.3, 0.1], 0.3),
        ([0.5], [0.1], 0.1),
        ([0.0, 0.0], [1.0, 0.1], 1.0),
    ],
)
def test_the_largest_damping_within_the_tolerance(
    likeness: list[float], grid: list[float], chosen: float
) -> None:
    assert grid[choose_damping(likeness, grid)] == chosen


def test_the_solution_is_the_first_of_the_most_alike() -> None:
    assert best_solution([("step", 0.5), ("lm_steps", 0.7), ("minimiser", 0.7)]) == "lm_steps"
    assert best_solution([("step", 0.0), ("minimiser", 0.0)]) == "step"
