"""Solvers against dense linear algebra; resuming, stopping and honest residuals."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.conjugate_gradient import CGState, conjugate_gradient
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins, BarlowTwinsCurvature
from krepes_ooc.stages.newton.solvers import DirectSolver, KrylovSolver, choose_solver, direct_bytes
from tests import cases, dense

SHAPE = (5, 3)


def curvature(seed: int = 0, rank: int = 9) -> np.ndarray:
    """A random matrix >= 0 of the given rank on [landmark x component]."""
    root = np.random.default_rng(seed).normal(size=(rank, SHAPE[0] * SHAPE[1]))
    return np.asarray(root.T @ root)


def product_with(H: np.ndarray):
    def product(V: np.ndarray) -> np.ndarray:
        return (H @ V.reshape(len(H), -1)).reshape(V.shape)

    return product


def rhs_columns(columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*SHAPE, columns))


def barlow_twins(case: cases.Case) -> BarlowTwinsCurvature:
    moments = Moments(*dense.moments(case.kernels), case.kernels.shape[1])
    return BarlowTwins(moments).linearise(case.coefficients)


@given(st.integers(1, 4), st.integers(0, 5), st.integers(1, 15))
def test_columns_match_a_dense_solve(columns: int, seed: int, rank: int) -> None:
    H, R = curvature(seed, rank), rhs_columns(columns, seed + 1)
    shifts = 10.0 ** np.arange(-2, columns - 2)
    found = conjugate_gradient(product_with(H), R, shifts, tolerance=1e-9, max_iterations=400)
    assert found.converged.all()
    assert found.advice == ""
    for column, shift in enumerate(shifts):
        expected = np.linalg.solve(H + shift * np.eye(len(H)), R[..., column].ravel())
        np.testing.assert_allclose(found.step[..., column].ravel(), expected, rtol=1e-5, atol=1e-6)


def test_one_system_has_no_column_axis() -> None:
    H, R = curvature(), rhs_columns(1)[..., 0]
    one = conjugate_gradient(product_with(H), R, 0.5)
    assert one.step.shape == SHAPE
    assert one.converged.shape == ()
    many = conjugate_gradient(product_with(H), R, [0.5, 5.0])
    assert many.step.shape == (*SHAPE, 2)
    np.testing.assert_allclose(many.step[..., 0], one.step, rtol=1e-12)
    assert many.iterations[1] < many.iterations[0]


def test_a_column_that_is_done_takes_no_more_products() -> None:
    widths = []
    H = curvature()

    def product(V: np.ndarray) -> np.ndarray:
        widths.append(V.shape[-1])
        return product_with(H)(V)

    found = conjugate_gradient(product, rhs_columns(1), [1e-3, 1e4])
    assert widths[0] == 2
    assert widths[-2] == 1  # the last product checks all columns
    assert widths[-1] == 2
    assert sum(widths) == found.iterations.sum() + 2


def test_resumed_equals_uninterrupted_bit_for_bit() -> None:
    H, R, shifts = curvature(), rhs_columns(3), [1e-3, 1e-1, 10.0]
    states: list[CGState] = []
    arguments = {"tolerance": 1e-10, "max_iterations": 60}
    whole = conjugate_gradient(product_with(H), R, shifts, checkpoint=states.append, **arguments)
    for state in states[:: max(1, len(states) // 6)]:
        saved = {field.name: getattr(state, field.name).copy() for field in fields(state)}
        again = conjugate_gradient(product_with(H), R, shifts, state=CGState(**saved), **arguments)
        for field in fields(whole):
            np.testing.assert_array_equal(getattr(again, field.name), getattr(whole, field.name))


def test_a_guess_saves_products() -> None:
    H, R = np.diag(2.0 ** np.arange(15)), rhs_columns(2)
    rough = conjugate_gradient(product_with(H), R, 0.1, tolerance=1e-4)
    cold = conjugate_gradient(product_with(H), R, 0.1, tolerance=1e-8)
    warm = conjugate_gradient(product_with(H), R, 0.1, tolerance=1e-8, guess=rough.step)
    assert warm.converged.all()
    assert (warm.iterations < cold.iterations).all()
    assert (warm.residual[0] < cold.residual[0]).all()


def test_zero_right_hand_side_is_solved_by_zero() -> None:
    found = conjugate_gradient(product_with(curvature()), np.zeros(SHAPE), 1.0)
    assert found.converged
    assert not found.step.any()
    assert found.iterations == 0


def test_too_few_iterations_are_a_result_with_advice() -> None:
    found = conjugate_gradient(
        product_with(curvature()), rhs_columns(1), 1e-6, tolerance=1e-10, max_iterations=2
    )
    assert not found.converged.any()
    assert "raise max_iterations" in found.advice
    assert found.residual.shape == (2, 1)


def test_negative_curvature_stops_the_column_alone() -> None:
    def product(V: np.ndarray) -> np.ndarray:
        return -V if V.shape[-1] == 1 else np.stack([V[..., 0], -9 * V[..., 1]], axis=-1)

    found = conjugate_gradient(product, rhs_columns(2), 1.0)
    assert found.converged.tolist() == [True, False]
    assert "lost its sign" in found.advice
    assert np.isfinite(found.step).all()


def test_inexact_products_are_reported_not_hidden() -> None:
    H, noise = curvature(), np.random.default_rng(5)

    def product(V: np.ndarray) -> np.ndarray:
        return product_with(H)(V) * (1 + 1e-6 * noise.normal(size=V.shape))

    found = conjugate_gradient(product, rhs_columns(1), 1e-3, tolerance=1e-12)
    assert not found.converged.any()
    assert 1e-12 < found.relative_residual[0] < 1e-2
    assert "too inexact" in found.advice


def test_a_drifted_recursion_goes_on_from_the_true_residual() -> None:
    H, calls = curvature(3), []

    def product(V: np.ndarray) -> np.ndarray:
        calls.append(V.shape[-1])
        return product_with(H)(V) * (1.001 if len(calls) % 2 and len(calls) < 8 else 1.0)

    found = conjugate_gradient(product, rhs_columns(1), 1e-2, tolerance=1e-9, max_iterations=200)
    assert found.relative_residual[0] <= 1e-9
    assert found.residual[-1] <= 1e-9
    assert len(calls) > found.iterations[0] + 1  # more than one check, so it was restarted


@pytest.mark.parametrize("damping", [0.0, -1.0, [1.0, 0.0], float("nan")])
def test_damping_must_be_positive(damping: object) -> None:
    with pytest.raises(ValueError, match="expected positive numbers"):
        conjugate_gradient(product_with(curvature()), rhs_columns(1), damping)


def test_columns_must_match() -> None:
    with pytest.raises(ValueError, match="3 right-hand sides for 2 dampings"):
        conjugate_gradient(product_with(curvature()), rhs_columns(3), [1.0, 2.0])


@pytest.mark.parametrize("name", ["two-views", "three-views", "one-component", "huge-scale"])
def test_direct_step_is_the_dense_step(name: str) -> None:
    case = cases.case(name)
    problem = barlow_twins(case)
    relative = np.array([1e-4, 1.0, 1e3])
    found = DirectSolver(problem).solve(relative * problem.mean_diagonal)
    assert found.converged.all()
    for column, shift in enumerate(relative * problem.mean_diagonal):
        expected = dense.step("barlow-twins", case.coefficients, shift, case.kernels, case.offset)
        np.testing.assert_allclose(
            found.step[..., column], expected, rtol=1e-8, atol=1e-8 * float(abs(expected).max())
        )


@given(st.floats(-9.0, 4.0), st.sampled_from(["two-views", "three-views", "constant-column"]))
def test_direct_residual_is_small_even_for_small_damping(power: float, name: str) -> None:
    problem = barlow_twins(cases.case(name))
    found = DirectSolver(problem).solve(10.0**power * problem.mean_diagonal)
    assert found.relative_residual <= 1e-6
    assert found.step.shape == problem.gradient.shape


def test_direct_and_krylov_agree() -> None:
    problem = barlow_twins(cases.case("two-views"))
    shifts = problem.mean_diagonal * np.array([1e-1, 1.0])
    direct = DirectSolver(problem).solve(shifts)
    krylov = KrylovSolver(problem, tolerance=1e-10).solve(shifts)
    np.testing.assert_allclose(krylov.step, direct.step, rtol=1e-6, atol=1e-9)


def test_the_solver_is_chosen_by_memory() -> None:
    problem, built = barlow_twins(cases.case("two-views")), []
    assert isinstance(choose_solver(problem, lambda: built.append(1)), DirectSolver)
    assert not built
    small = choose_solver(
        problem,
        lambda: built.append(1),
        memory_bytes=direct_bytes(problem.residual.size, len(problem.gradient)) - 1,
    )
    assert isinstance(small, KrylovSolver)
    assert built
