"""Preconditioners against dense inverses, and what they save."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.conjugate_gradient import conjugate_gradient
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins
from krepes_ooc.stages.newton.objectives.registry import OBJECTIVES, create, settings_type
from krepes_ooc.stages.newton.objectives.spectral_contrastive import SpectralContrastive
from krepes_ooc.stages.newton.objectives.vicreg import VICReg
from krepes_ooc.stages.newton.preconditioners import (
    Kronecker,
    RandomizedNystrom,
    RotationDeflation,
    rotation_curvature,
)
from tests import cases, dense
from tests.stages.newton.objectives.test_objectives import sample_objective


class Product:
    """S (x) Q as a curvature."""

    def __init__(self, S: np.ndarray, Q: np.ndarray) -> None:
        self.S, self.Q = S, Q

    def kronecker(self, moments: object) -> tuple[np.ndarray, np.ndarray]:
        return self.S, self.Q

    def product(self, V: np.ndarray) -> np.ndarray:
        return np.einsum("ab,bkc,kj->ajc", self.S, V, self.Q)


def positive(size: int, seed: int, decay: float = 0.5) -> np.ndarray:
    draw = np.random.default_rng(seed)
    U = np.linalg.qr(draw.normal(size=(size, size)))[0]
    S = (U * np.exp(-decay * np.arange(size))) @ U.T
    return (S + S.T) / 2


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
def test_kronecker_is_the_exact_inverse(m: int, h: int, seed: int) -> None:
    problem = Product(positive(m, seed), positive(h, seed + 1))
    R = np.random.default_rng(seed).normal(size=(m, h, 2))
    damping = np.array([1e-3, 2.0])
    X = Kronecker.build(problem, None).apply(R, damping)
    np.testing.assert_allclose(problem.product(X) + damping * X, R, atol=1e-9)


def test_kronecker_of_a_singular_factor_stays_finite() -> None:
    S = np.diag([1.0, -1e-17, 0.0])  # a rounded negative eigenvalue
    X = Kronecker.build(Product(S, np.eye(2)), None).apply(np.ones((3, 2, 1)), np.array([1e-18]))
    assert (X > 0).all()


@given(st.integers(0, 9), st.integers(1, 12))
def test_nystrom_is_exact_once_the_rank_is_covered(seed: int, rank: int) -> None:
    root = np.random.default_rng(seed).normal(size=(rank, 12))
    H = root.T @ root

    def product(V: np.ndarray) -> np.ndarray:
        return (H @ V.reshape(12, -1)).reshape(V.shape)

    found = RandomizedNystrom.build(product, (4, 3), 12, seed)
    R, damping = np.random.default_rng(1).normal(size=(4, 3, 2)), np.array([0.1, 10.0])
    X = found.apply(R, damping)
    # M is H + damping, but for the common factor l_r + damping that leaves the tail at 1
    expected = np.stack(
        [
            (found.values[-1] + shift)
            * np.linalg.solve(H + shift * np.eye(12), R[..., column].ravel()).reshape(4, 3)
            for column, shift in enumerate(damping)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(X, expected, rtol=1e-6, atol=1e-8)
    assert (np.diff(found.values) <= 0).all()


def test_nystrom_reads_the_data_once_and_is_positive() -> None:
    problem, calls = Product(positive(10, 1), positive(4, 2)), []

    def product(V: np.ndarray) -> np.ndarray:
        calls.append(V.shape)
        noise = np.random.default_rng(3).normal(size=V.shape)
        return problem.product(V) * (1 + 1e-7 * noise)

    found = RandomizedNystrom.build(product, (10, 4), 8, precision=1e-7)
    assert calls == [(10, 4, 8)]
    assert (found.values >= 0).all()
    damping = np.full(40, 1e-4)
    inverse = found.apply(np.eye(40).reshape(10, 4, 40), damping).reshape(40, 40)
    assert np.linalg.eigvalsh((inverse + inverse.T) / 2).min() > 0


@pytest.mark.parametrize("kind", [VICReg, SpectralContrastive, BarlowTwins])
@pytest.mark.parametrize("how", ["kronecker", "nystrom"])
def test_preconditioners_save_iterations(kind: type, how: str) -> None:
    case = cases.make("larger", n_samples=60, n_landmarks=24, n_components=5, seed=3)
    moments = Moments(*dense.moments(case.kernels), 60)
    problem = kind(moments).linearise(case.start)
    if how == "kronecker":
        chosen = Kronecker.build(problem, moments)
    else:
        chosen = RandomizedNystrom.build(problem.product, case.start.shape, 60)
    damping = 1e-2 * problem.mean_diagonal
    arguments = (problem.product, -problem.gradient, damping)
    plain = conjugate_gradient(*arguments, tolerance=1e-4)
    faster = conjugate_gradient(*arguments, tolerance=1e-4, preconditioner=chosen)
    assert faster.converged
    if kind is not BarlowTwins or how == "nystrom":  # its curvature has low rank, S (x) Q has not
        assert faster.iterations < 0.7 * plain.iterations
    assert np.linalg.norm(faster.step - plain.step) < 0.02 * np.linalg.norm(plain.step)


@given(st.integers(2, 7), st.integers(1, 5), st.integers(0, 9))
def test_along_is_the_projection_on_rotations(m: int, h: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    A, R = draw.normal(size=(m, h)), draw.normal(size=(m, h, 2))
    basis = []
    for i in range(h):
        for j in range(i):
            W = np.zeros((h, h))
            W[i, j], W[j, i] = 1.0, -1.0
            basis.append((A @ W).ravel())
    found = RotationDeflation.build(Kronecker.build(Product(np.eye(m), np.eye(h)), None), A).along(
        R
    )
    columns = np.array(basis).reshape(len(basis), m * h).T
    for column in range(2):
        wanted = columns @ np.linalg.lstsq(columns, R[..., column].ravel())[0] if basis else 0.0
        np.testing.assert_allclose(found[..., column].ravel(), wanted, atol=1e-8)


def test_rotations_leave_a_spread_of_two_for_equal_views() -> None:
    case = cases.make("equal", n_samples=60, n_landmarks=12, n_components=4, seed=3)
    mean, second = dense.moments(case.kernels)
    moments = Moments(mean[[0, 0]], second[np.ix_([0, 0], [0, 0])], 60)
    problem = SpectralContrastive(moments).linearise(case.start)
    m, h = case.start.shape
    assert rotation_curvature(case.start, problem.product) < 1e-12 * problem.mean_diagonal
    model = Kronecker.build(problem, moments)
    found = RotationDeflation.build(model, case.start)
    damping, eye = np.full(m * h, 1e-12), np.eye(m * h).reshape(m, h, m * h)
    H = problem.product(eye).reshape(m * h, m * h)
    inverse = found.apply(eye, damping).reshape(m * h, m * h)
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-6 * abs(inverse).max())
    spread = np.sort(np.linalg.eigvals(inverse @ H).real)
    turning = h * (h - 1) // 2
    assert abs(spread[:turning]).max() < 1e-4
    assert spread[turning] > 1 - 1e-4
    assert spread[-1] < 2 + 1e-4


@pytest.mark.parametrize("damping", [1e-3, 1e-1])
def test_rotations_save_iterations(damping: float) -> None:
    case = cases.make("larger", n_samples=64, n_landmarks=24, n_components=5, seed=3)
    moments = Moments(*dense.moments(case.kernels), 64)
    problem = SpectralContrastive(moments).linearise(case.start)
    model = Kronecker.build(problem, moments)
    arguments = (problem.product, -problem.gradient, damping * problem.mean_diagonal)
    before = conjugate_gradient(*arguments, tolerance=1e-5, preconditioner=model)
    split = RotationDeflation.build(model, case.start)
    after = conjugate_gradient(*arguments, tolerance=1e-5, preconditioner=split)
    assert after.converged
    assert after.iterations < 0.5 * before.iterations
    assert np.linalg.norm(after.step - before.step) < 0.01 * np.linalg.norm(after.step)


def test_what_turns_freely_is_declared() -> None:
    case = cases.case("two-views")
    for name in OBJECTIVES:
        objective = sample_objective(name, case) if name in ("simclr", "byol") else None
        moments = Moments(*dense.moments(case.kernels), case.kernels.shape[1])
        objective = objective or create(
            name, settings_type(name)(), moments=moments, start=case.start, offset=0 * case.offset
        )
        if name in ("simclr", "byol"):
            objective.offset = 0 * objective.offset
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(case.start.shape[1],) * 2))[0]
        same = abs(objective.value(case.start @ turn) - objective.value(case.start)) < 1e-6
        assert same == objective.rotation_invariant
