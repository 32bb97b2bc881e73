from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.spectrum.nystrom import eigenpairs
from krepes_ooc.stages.spectrum.subspace_iteration import leading_eigenpairs


def kernel(m: int, decay: float, seed: int = 0) -> np.ndarray:
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(m, m)))[0]
    K = Q * (1.0 + np.arange(m)) ** -decay @ Q.T
    return (K + K.T) / 2


@pytest.mark.parametrize("decay", [0.5, 1.0, 3.0])
def test_pairs_are_those_of_the_dense_solver(decay: float) -> None:
    K = kernel(150, decay)
    found = leading_eigenpairs(lambda V: K @ V, 150, 10, seed=1)
    eigenvalues, U = eigenpairs(K)
    assert found.converged
    assert found.residual.max() <= 1e-9
    np.testing.assert_allclose(found.eigenvalues, eigenvalues[:10], atol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.U * U[:, :10], axis=0)), 1, atol=1e-8)
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(10), atol=1e-12)


def test_only_products_with_orthonormal_blocks_are_asked_for() -> None:
    K, widths = kernel(80, 1.0), []

    def product(V: np.ndarray) -> np.ndarray:
        widths.append(V.shape[1])
        np.testing.assert_allclose(V.T @ V, np.eye(V.shape[1]), atol=1e-12)
        return K @ V

    found = leading_eigenpairs(product, 80, 5, seed=0)
    assert len(widths) == found.products
    assert set(widths) == {13}


@pytest.mark.parametrize(("m", "h", "rank"), [(1, 1, 1), (6, 6, 6), (40, 4, 2), (40, 30, 40)])
def test_small_and_rank_deficient_kernels(m: int, h: int, rank: int) -> None:
    phi = np.random.default_rng(3).normal(size=(m, rank))
    K = phi @ phi.T
    found = leading_eigenpairs(lambda V: K @ V, m, h, seed=0)
    assert found.converged
    np.testing.assert_allclose(found.eigenvalues, eigenpairs(K)[0][:h], atol=1e-9 * np.trace(K))


def test_giving_up_is_a_result() -> None:
    K = kernel(200, 0.01)
    found = leading_eigenpairs(lambda V: K @ V, 200, 10, seed=0, max_products=4)
    assert not found.converged
    assert found.products == 4
    assert found.residual.max() > 1e-9


def test_zero_kernel() -> None:
    found = leading_eigenpairs(np.zeros_like, 30, 3, seed=0)
    assert found.converged
    np.testing.assert_array_equal(found.eigenvalues, 0)
