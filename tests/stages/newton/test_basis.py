"""Another basis of coefficients is another norm for the damping, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.basis import Basis
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins
from krepes_ooc.stages.newton.solvers import DirectSolver
from tests import cases, dense
from tests.stages.newton.objectives.test_objectives import ArrayStream, sample_objective

CASE = cases.case("two-views")


def rkhs(rank: int = 7) -> Basis:
    values, vectors = np.linalg.eigh(CASE.landmark_kernel)
    return Basis.rkhs(values[::-1], vectors[:, ::-1], rank)


def test_norm_and_round_trip() -> None:
    basis, A = rkhs(), CASE.coefficients
    B = basis.to_basis(A)
    assert np.sum(B**2) == pytest.approx(np.sum(A * (CASE.landmark_kernel @ A)))
    np.testing.assert_allclose(basis.from_basis(B), A, rtol=1e-8)
    np.testing.assert_allclose(abs(rkhs(3).to_basis(CASE.start)), np.eye(3), atol=1e-10)
    columns = np.stack([A, 2 * A], axis=-1)
    np.testing.assert_allclose(basis.from_basis(basis.to_basis(columns)), columns, rtol=1e-8)


def test_the_damped_step_solves_the_system_in_the_kernel_norm() -> None:
    basis, A = rkhs(), CASE.coefficients
    moments = Moments(*dense.moments(CASE.kernels), CASE.kernels.shape[1])
    B, damping = basis.to_basis(A), 0.3
    objective = BarlowTwins(basis.moments(moments))
    assert objective.value(B) == pytest.approx(BarlowTwins(moments).value(A))
    found = basis.from_basis(DirectSolver(objective.linearise(B)).solve(damping).step)
    arguments = ("barlow-twins", A, CASE.kernels, CASE.offset)
    H, G = np.asarray(dense.ggn(*arguments)), np.asarray(dense.gradient(*arguments))
    metric = np.kron(CASE.landmark_kernel, np.eye(3))
    expected = -np.linalg.solve(H + damping * metric, G.ravel()).reshape(A.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_streams_change_basis_as_they_are_read(name: str) -> None:
    basis, objective = rkhs(), sample_objective(name, CASE)
    changed = sample_objective(name, CASE)
    changed.stream = basis.stream(ArrayStream(CASE.kernels))
    if name == "byol":
        changed.start = basis.to_basis(CASE.start)
    assert (changed.stream.n_samples, changed.stream.n_views) == (28, 2)
    found = changed.linearise(basis.to_basis(CASE.coefficients))
    expected = objective.linearise(CASE.coefficients)
    assert found.value == pytest.approx(expected.value)
    np.testing.assert_allclose(found.gradient, basis.T.T @ expected.gradient, rtol=1e-6, atol=1e-9)
