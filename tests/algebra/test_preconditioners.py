"""Preconditioners against dense inverses, and what they save."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.algebra.curvature import Moments
from krepes_ooc.algebra.krylov import conjugate_gradient
from krepes_ooc.algebra.objectives import BarlowTwins, SpectralContrastive, VICReg
from krepes_ooc.algebra.preconditioners import Kronecker, RandomizedNystrom
from tests import cases, dense


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
