"""Objectives, curvature and solved steps against the independent oracle.

The oracle (tests/dense/) was written from the published formulas without a look at the package.
Here the package's route runs from moments and blocks to the step: its own start, its own solver;
every figure is compared with the dense one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krepes_ooc.core.array_columns import BlockFunction
from krepes_ooc.core.blocks import Block
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.newton.basis import Basis
from krepes_ooc.stages.newton.damping import absolute_damping, evaluate_sweep
from krepes_ooc.stages.newton.levenberg_marquardt import levenberg_marquardt
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins, BarlowTwinsSettings
from krepes_ooc.stages.newton.objectives.byol import BYOL, Predictor, fit_predictor
from krepes_ooc.stages.newton.objectives.interface import Objective
from krepes_ooc.stages.newton.objectives.registry import create, settings_type
from krepes_ooc.stages.newton.objectives.simclr import SimCLR, SimCLRSettings
from krepes_ooc.stages.newton.objectives.vicreg import VICReg, VICRegSettings
from krepes_ooc.stages.newton.preconditioners import Kronecker, RandomizedNystrom
from krepes_ooc.stages.newton.solvers import KrylovSolver, choose_solver
from krepes_ooc.stages.spectrum import nystrom
from tests import cases, dense
from tests.stages.dense_comparison import every_case, moments_of, seeds

Float = cases.Float
every_objective = pytest.mark.parametrize("objective", dense.OBJECTIVES)
one_thread = pytest.fixture(autouse=True, scope="module")(dense.one_thread)


class BlockStream:
    """Kernel blocks in order, summed from left to right."""

    def __init__(
        self, kernels: Float, block_rows: int = 8, dtype: type[np.floating] = np.float64
    ) -> None:
        self.kernels, self.block_rows, self.dtype = kernels, block_rows, dtype
        self.n_views, self.n_samples = kernels.shape[:2]

    def reduce(self, function: BlockFunction) -> tuple[np.ndarray, ...]:
        parts = []
        for index, first in enumerate(range(0, self.n_samples, self.block_rows)):
            block = Block(index, first, min(first + self.block_rows, self.n_samples))
            rows = self.kernels[:, block.start : block.stop].astype(self.dtype)
            parts.append(function(tuple(rows), block))
        return tuple(sum(terms) for terms in zip(*parts, strict=True))


def build(objective: str, case: cases.Case, stream: BlockStream | None = None) -> Objective:
    """The package's objective on a case, moments and blocks made by the package."""
    constants = {"batch": case.batch} if objective == "simclr" else {}
    return create(
        objective,
        settings_type(objective)(**constants),
        moments=moments_of(case),
        stream=stream or BlockStream(case.kernels),
        start=case.start,
        offset=case.offset,
        sub_rows=5,
    )


def oracle(case: cases.Case, objective: str) -> dict[str, object]:
    return {"kernels": case.kernels, "offset": case.offset, **case.settings(objective)}


def assert_close(found: object, expected: object, rounding: float, tolerance: float) -> None:
    """Relative to the norm of what is expected, or nothing but ``rounding``."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    error = float(np.linalg.norm(found - expected))
    assert error <= tolerance * float(np.linalg.norm(expected)) + rounding


def compare(
    case: cases.Case, objective: str, found: Objective, tolerance: float, seed: int = 0
) -> None:
    """Value, gradient and product at the case's coefficients.

    Where a figure vanishes only rounding is left: on the unit sphere of one component nothing can
    turn. There a gradient is measured by ``turn``, the fastest that any embedding turns with A.
    """
    A = case.coefficients
    at_A, arguments = found.linearise(A), oracle(case, objective)
    value = float(dense.loss(objective, A, **arguments))
    turn, small = turning(case), 1e-4 * tolerance * (1 + abs(value))
    assert_close(at_A.value, value, small, tolerance)
    assert_close(found.value(A), value, small, tolerance)
    gradient = dense.gradient(objective, A, **arguments)
    assert_close(at_A.gradient, gradient, small * turn, tolerance)
    V = np.random.default_rng(seed).normal(size=A.shape)
    expected = dense.ggn_product(objective, A, V, **arguments)
    assert_close(at_A.product(V), expected, small * turn**2 * np.linalg.norm(V), tolerance)


def turning(case: cases.Case) -> float:
    """1 / |A|, or for one component the largest |k| / |z| of any row."""
    if case.coefficients.shape[1] > 1:
        return 1 / float(np.linalg.norm(case.coefficients))
    views = dense.embeddings(case.coefficients, case.kernels, case.offset)
    z = np.linalg.norm(torch.stack(views).numpy(), axis=-1)
    return float((np.linalg.norm(case.kernels, axis=-1) / z).max())


@every_objective
@every_case
def test_objectives_equal_the_published_losses(case: cases.Case, objective: str) -> None:
    compare(case, objective, build(objective, case), 1e-10 if case.well_posed else 1e-7)


@every_objective
@every_case
def test_curvature_equals_the_dense_one_and_is_psd(case: cases.Case, objective: str) -> None:
    A, found = case.coefficients, build(objective, case).linearise(case.coefficients)
    basis = np.eye(A.size).reshape(*A.shape, A.size)
    H = found.product(basis).reshape(A.size, A.size)
    expected = dense.ggn(objective, A, **oracle(case, objective)).numpy()
    rounding = 1e-13 * A.size / np.linalg.norm(A) ** 2
    assert_close(H, expected, rounding, 1e-9 if case.well_posed else 1e-7)
    assert abs(H - H.T).max() <= 1e-11 * abs(H).max() + rounding
    eigenvalues = np.linalg.eigvalsh((H + H.T) / 2)
    assert eigenvalues[0] >= -1e-11 * eigenvalues[-1] - rounding
    mean_diagonal = np.trace(expected) / A.size
    assert found.mean_diagonal == pytest.approx(mean_diagonal, rel=1e-7, abs=rounding)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(dense.OBJECTIVES),
    seeds,
    st.integers(2, 30),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(2, 4),
    st.integers(-12, 12),
)
def test_objectives_hold_for_any_shape_and_scale(
    objective: str, seed: int, n_samples: int, m: int, h: int, p: int, power: int
) -> None:
    """Coefficients that keep the embedding's size, so that no loss saturates."""
    plain = cases.make("drawn", n_samples, m, min(m, h), p, seed, noise=0.8)
    case = cases.scaled(plain, "drawn", 4.0**power)
    compare(case, objective, build(objective, case), 1e-9, seed)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["simclr", "byol"]), seeds, st.integers(4, 26), st.sampled_from([8, 16, 64]))
def test_sample_objectives_do_not_depend_on_blocks(
    objective: str, seed: int, n_samples: int, block_rows: int
) -> None:
    case = cases.make("drawn", n_samples, 4, 3, 3, seed)
    compare(case, objective, build(objective, case, BlockStream(case.kernels, block_rows)), 1e-9)


@pytest.mark.parametrize("objective", ["simclr", "byol"])
def test_float32_blocks_keep_their_digits(objective: str) -> None:
    case = cases.case("three-views")
    stream = BlockStream(case.kernels, dtype=np.float32)
    compare(case, objective, build(objective, case, stream), 2e-5)


@every_objective
def test_columns_of_coefficients_have_their_losses(objective: str) -> None:
    case, draw = cases.case("three-views"), np.random.default_rng(1)
    A = case.coefficients[..., None] + 0.1 * draw.normal(size=(*case.coefficients.shape, 3))
    found = build(objective, case).values(A)
    arguments = oracle(case, objective)
    expected = [float(dense.loss(objective, A[..., c], **arguments)) for c in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_other_constants_reach_the_losses() -> None:
    """Every constant away from its default, both ways."""
    case = cases.case("three-views")
    given_moments, stream = moments_of(case), BlockStream(case.kernels)
    weight = np.random.default_rng(2).normal(size=(3, 3))
    bias = np.array([0.1, -0.2, 0.3])
    twist = {"predictor_weight": weight, "predictor_bias": bias}
    constants: dict[str, tuple[Objective, dict[str, object]]] = {
        "barlow-twins": (
            BarlowTwins(given_moments, BarlowTwinsSettings(off_diagonal=0.3, epsilon=0.1)),
            {"off_diagonal": 0.3, "epsilon": 0.1},
        ),
        "vicreg": (
            VICReg(given_moments, VICRegSettings(3.0, 50.0, 7.0, 0.05)),
            {"invariance": 3.0, "variance": 50.0, "covariance": 7.0, "epsilon": 0.05},
        ),
        "simclr": (
            SimCLR(stream, case.offset, SimCLRSettings(temperature=0.07, batch=4)),
            {"temperature": 0.07, "batch": 4},
        ),
        "byol": (
            BYOL(stream, case.offset, case.start, Predictor(weight, bias)),
            {**case.settings("byol"), **twist},
        ),
    }
    A, V = case.coefficients, np.random.default_rng(3).normal(size=case.coefficients.shape)
    for objective, (built, more) in constants.items():
        found, arguments = built.linearise(A), (case.kernels, case.offset)
        assert_close(found.value, dense.loss(objective, A, *arguments, **more), 0.0, 1e-10)
        assert_close(found.gradient, dense.gradient(objective, A, *arguments, **more), 0.0, 1e-10)
        product = dense.ggn_product(objective, A, V, *arguments, **more)
        assert_close(found.product(V), product, 0.0, 1e-10)
        H = dense.ggn(objective, A, *arguments, **more)
        assert_close(found.mean_diagonal, float(H.trace()) / A.size, 0.0, 1e-9)


@pytest.mark.parametrize("objective", ["simclr", "byol"])
def test_component_curvature_is_what_each_point_sees_of_itself(objective: str) -> None:
    """With one landmark a point, H holds the curvature in z; its diagonal blocks are summed."""
    case = cases.make("points", n_samples=7, n_components=3, seed=12)
    Z = np.concatenate(dense.embeddings(case.coefficients, case.kernels, case.offset))
    points = np.eye(14).reshape(2, 7, 14)
    H = dense.ggn(objective, Z, points, **case.settings(objective)).reshape(14, 3, 14, 3)
    expected = sum(H[i, :, i] for i in range(14))
    _, Q = build(objective, case).linearise(case.coefficients).kronecker(moments_of(case))
    assert_close(Q, expected, 0.0, 1e-10)


@every_objective
@pytest.mark.parametrize("name", ["two-views", "three-views", "duplicate-landmark", "two-samples"])
@pytest.mark.parametrize("relative_damping", [1e-3, 1.0, 1e3])
def test_solved_steps_equal_the_dense_solve(
    objective: str, name: str, relative_damping: float
) -> None:
    case = cases.case(name)
    at_A = build(objective, case).linearise(case.coefficients)
    damping = float(absolute_damping(relative_damping, at_A, case.coefficients))
    model = Kronecker.build(at_A, moments_of(case))
    expected = dense.step(objective, case.coefficients, damping, **oracle(case, objective))
    for preconditioner in (None, model):
        krylov = KrylovSolver(at_A, preconditioner, 1e-10, 5000)
        chosen = choose_solver(at_A, lambda model=preconditioner: model, tolerance=1e-8)
        for solution in (krylov.solve(damping), chosen.solve(damping)):
            assert solution.converged
            assert_close(solution.step, expected, 0.0, 1e-6)


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        ("simclr", "one-landmark"),
        ("simclr", "one-component"),
        ("byol", "one-component"),
        ("byol", "one-component-three-views"),
        ("byol", "one-landmark"),
    ],
)
def test_one_component_on_a_sphere_has_no_damping(objective: str, name: str) -> None:
    """u = +-1 cannot turn, so gradient and curvature are zero and no step has a meaning."""
    case = cases.case(name)
    H = dense.ggn(objective, case.coefficients, **oracle(case, objective))
    assert float(H.norm()) < 1e-12 * turning(case) ** 2
    built = build(objective, case, BlockStream(case.kernels, dtype=np.float32))
    with pytest.raises(StageFailed, match="no curvature"):
        absolute_damping(1.0, built.linearise(case.coefficients), case.coefficients)


@every_objective
def test_steps_are_judged_by_the_published_loss(objective: str) -> None:
    case, relative_damping = cases.case("three-views"), np.array([1e-1, 1e1, 1e3])
    built, arguments = build(objective, case), oracle(case, objective)
    at_A, A = built.linearise(case.coefficients), case.coefficients
    solver = choose_solver(at_A, lambda: None, tolerance=1e-10)
    solution = solver.solve(relative_damping * at_A.mean_diagonal)
    losses = built.values(A[..., None] + solution.step)
    sweep = evaluate_sweep(
        losses, at_A, A, solution, relative_damping, moments_of(case), case.offset
    )
    start = float(dense.loss(objective, A, **arguments))
    for column in range(3):
        step = dense.step(objective, A, sweep.damping[column], **arguments)
        loss = float(dense.loss(objective, A + step.numpy(), **arguments))
        G = dense.gradient(objective, A, **arguments)
        H_step = dense.ggn_product(objective, A, step, **arguments)
        predicted = float(-(G * step).sum() - (step * H_step).sum() / 2)
        views = dense.embeddings(step, case.kernels)
        f = dense.embeddings(A, case.kernels, case.offset)
        change = float(torch.stack(views).norm() / torch.stack(f).norm())
        assert sweep.loss[column] == pytest.approx(loss, rel=1e-7)
        assert sweep.predicted[column] == pytest.approx(predicted, rel=1e-6)
        assert sweep.rho[column] == pytest.approx((start - loss) / predicted, rel=1e-5)
        assert sweep.step_norm[column] == pytest.approx(float(step.norm()), rel=1e-6)
        assert sweep.embedding_change[column] == pytest.approx(change, rel=1e-6)


@every_objective
def test_preconditioners_equal_their_dense_models(objective: str) -> None:
    case, draw = cases.case("two-views"), np.random.default_rng(4)
    at_A, A = build(objective, case).linearise(case.coefficients), case.coefficients
    R, damping = draw.normal(size=(*A.shape, 2)), np.array([0.01, 3.0]) * at_A.mean_diagonal
    H = dense.ggn(objective, A, **oracle(case, objective)).numpy()
    model = np.kron(*at_A.kronecker(moments_of(case)))
    found = Kronecker.build(at_A, moments_of(case)).apply(R, damping)
    full = RandomizedNystrom.build(at_A.product, A.shape, A.size).apply(R, damping)
    for column, shift in enumerate(damping):
        r = R[..., column].ravel()
        expected = np.linalg.solve(model + shift * np.eye(A.size), r)
        assert_close(found[..., column].ravel(), expected, 0.0, 1e-7)
        # With all directions sketched M^-1 is (l_r + damping) (H + damping)^-1, l_r the smallest.
        exact = np.linalg.solve(H + shift * np.eye(A.size), r)
        smallest = max(np.linalg.eigvalsh(H)[0], 0.0)
        assert_close(full[..., column].ravel(), (smallest + shift) * exact, 0.0, 1e-6)


def test_kronecker_model_of_vicreg_is_exact_without_spread() -> None:
    case = cases.case("two-views")
    built = VICReg(moments_of(case), VICRegSettings(variance=0.0, covariance=0.0))
    at_A = built.linearise(case.coefficients)
    zero = {"variance": 0.0, "covariance": 0.0}
    H = dense.ggn("vicreg", case.coefficients, case.kernels, case.offset, **zero).numpy()
    assert_close(np.kron(*at_A.kronecker(moments_of(case))), H, 0.0, 1e-12)


@every_objective
def test_rkhs_damping_is_a_penalty_on_the_landmark_kernel(objective: str) -> None:
    """In A: (H + damping K_mm) dA = -G for a landmark kernel of full rank."""
    case = cases.case("all-components")
    eigenvalues, U = nystrom.eigenpairs(case.landmark_kernel)
    basis = Basis.rkhs(eigenvalues, U, len(U))
    B, start = basis.to_basis(case.coefficients), basis.to_basis(case.start)
    constants = settings_type(objective)(**({"batch": 8} if objective == "simclr" else {}))
    built = create(
        objective,
        constants,
        moments=basis.moments(moments_of(case)),
        stream=basis.stream(BlockStream(case.kernels)),
        start=start,
        offset=case.offset,
    )
    at_B = built.linearise(B)
    step = basis.from_basis(KrylovSolver(at_B, None, 1e-12, 5000).solve(0.3).step)
    arguments = oracle(case, objective)
    H = dense.ggn(objective, case.coefficients, **arguments).numpy()
    G = dense.gradient(objective, case.coefficients, **arguments).numpy()
    penalty = 0.3 * np.kron(case.landmark_kernel, np.eye(G.shape[1]))
    expected = -np.linalg.solve(H + penalty, G.ravel()).reshape(G.shape)
    assert_close(step, expected, 0.0, 1e-6)


@pytest.mark.parametrize("objective", [name for name in dense.OBJECTIVES if name != "byol"])
def test_descent_ends_where_the_published_loss_is_lower(objective: str) -> None:
    case = cases.case("three-views")
    loss = build(objective, case)

    def prepare(A: np.ndarray) -> tuple[Any, Any]:
        here = loss.linearise(A)
        return here, choose_solver(here, lambda: None)

    found = levenberg_marquardt(loss, case.coefficients, prepare)
    arguments = oracle(case, objective)
    first = float(dense.loss(objective, case.coefficients, **arguments))
    last = float(dense.loss(objective, found.coefficients, **arguments))
    assert found.loss[0] == pytest.approx(first, rel=1e-10)
    assert found.loss[-1] == pytest.approx(last, rel=1e-10)
    assert (np.diff(found.loss) < 0).all()
    assert last < 0.9 * first if first > 0 else last < first
    # The next step's gain is what the model of the oracle promises at the first point.
    damping = found.damping_relative[0] * np.trace(
        dense.ggn(objective, case.coefficients, **arguments)
    )
    step = dense.step(
        objective, case.coefficients, damping / case.coefficients.size, **arguments
    ).numpy()
    loss = float(dense.loss(objective, case.coefficients + step, **arguments))
    assert found.loss[1] == pytest.approx(loss, rel=1e-6)


def test_ridge_predictor_solves_its_normal_equations() -> None:
    """min mean |W z + b - t|^2 + penalty |W|^2 over samples and views, t the other views' mean."""
    case = cases.case("three-views")
    offset = case.offset + np.array([0.5, -0.3, 0.2])  # so that embeddings have a mean
    found = fit_predictor(BlockStream(case.kernels), case.start, offset, 0.1, sub_rows=5)
    views = dense.embeddings(case.start, case.kernels, offset)
    targets = torch.stack(dense.byol_targets(case.start, case.kernels, offset))
    goals = (targets.sum(dim=0) - targets) / 2
    Z, T = torch.cat(views).numpy(), goals.reshape(-1, 3).numpy()
    centred = Z - Z.mean(axis=0)
    penalty = 0.1 * (centred**2).mean()
    lifted = np.concatenate([centred / len(Z) ** 0.5, penalty**0.5 * np.eye(3)])
    wanted = np.concatenate([(T - T.mean(axis=0)) / len(Z) ** 0.5, np.zeros((3, 3))])
    weight = np.linalg.lstsq(lifted, wanted, rcond=None)[0].T
    assert_close(found.weight, weight, 0.0, 1e-10)
    assert_close(found.bias, T.mean(axis=0) - weight @ Z.mean(axis=0), 0.0, 1e-10)
