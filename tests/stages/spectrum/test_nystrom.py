from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.errors import DataError, StageFailed
from krepes_ooc.stages.spectrum import nystrom

RNG = np.random.default_rng(5)
PHI = RNG.normal(size=(60, 20)) @ np.diag(0.7 ** np.arange(20))


def problem(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    K_nm, K_mm = PHI @ PHI[:m].T, PHI[:m] @ PHI[:m].T
    return K_nm, K_mm, *nystrom.eigenpairs(K_mm)


def test_eigenpairs_rebuild_the_kernel_in_descending_order() -> None:
    _, K_mm, eigenvalues, U = problem(15)
    assert (np.diff(eigenvalues) <= 0).all()
    np.testing.assert_allclose(U * eigenvalues @ U.T, K_mm, atol=1e-13)
    np.testing.assert_allclose(U.T @ U, np.eye(15), atol=1e-13)


@given(seed=st.integers(0, 1000), m=st.integers(1, 8))
def test_signs_do_not_depend_on_the_solver(seed: int, m: int) -> None:
    U = np.linalg.qr(np.random.default_rng(seed).normal(size=(m, m)))[0]
    flips = np.where(np.arange(m) % 2, 1.0, -1.0)
    np.testing.assert_array_equal(
        U * nystrom.column_signs(U), U * flips * nystrom.column_signs(U * flips)
    )
    largest = np.abs(U).argmax(axis=0)
    assert ((U * nystrom.column_signs(U))[largest, np.arange(m)] > 0).all()


def test_a_tie_is_decided_by_the_first_entry_despite_rounding() -> None:
    U = np.array([[-0.5, 0.5], [0.5 + 1e-16, -0.5 - 1e-12]])
    np.testing.assert_array_equal(nystrom.column_signs(U), [-1.0, 1.0])


def test_usable_rank_is_the_table() -> None:
    eigenvalues = np.array([10.0, 1.0, 1e-2, 1e-4, 1e-9, 1e-10, -1e-12])
    rms, m = 0.5, 100
    for dtype, eps in (("float16", 2.0**-12), ("float32", 2.0**-25), ("float64", 2.0**-54)):
        expected = sum(
            value > 0 and eps * rms * np.sqrt(m) / value < 0.05 and value > 1e-10 * 10.0
            for value in eigenvalues
        )
        assert nystrom.usable_rank(eigenvalues, rms, m, dtype) == expected
    assert nystrom.usable_rank(eigenvalues, rms, m, "float16") == 2
    assert nystrom.usable_rank(eigenvalues, rms, m, "float32") == 4
    assert nystrom.usable_rank(eigenvalues, rms, m, "float64") == 4


def test_duplicate_landmarks_lower_the_rank() -> None:
    K = PHI[[0, 1, 2, 2, 2]] @ PHI[[0, 1, 2, 2, 2]].T
    eigenvalues, _ = nystrom.eigenpairs(K)
    assert nystrom.usable_rank(eigenvalues, 1.0, 5, "float64") == 3


def test_rank_error_names_both_numbers() -> None:
    nystrom.check_rank(7, 7)
    with pytest.raises(StageFailed, match="8 components asked of a kernel with usable rank 7"):
        nystrom.check_rank(8, 7)


def test_start_gives_white_components_of_the_landmarks() -> None:
    _, K_mm, eigenvalues, U = problem(15)
    A0 = nystrom.start(eigenvalues, U, 6)
    f = K_mm @ A0
    np.testing.assert_allclose(A0.T @ K_mm @ A0, np.eye(6), atol=1e-10)
    np.testing.assert_allclose(f.T @ f, np.diag(eigenvalues[:6]), atol=1e-10)


def test_offset_centres_the_embedding() -> None:
    K_nm, _, eigenvalues, U = problem(15)
    A0 = nystrom.start(eigenvalues, U, 6)
    f = K_nm @ A0 + nystrom.offset(A0, K_nm.mean(axis=0))
    np.testing.assert_allclose(f.mean(axis=0), 0, atol=1e-12)


def test_effective_dimension_is_the_trace_formula() -> None:
    _, K_mm, eigenvalues, _ = problem(15)
    for damping in (1e-3, 1.0, 50.0):
        dense = np.trace(K_mm @ np.linalg.inv(K_mm + damping * np.eye(15)))
        assert nystrom.effective_dimension(eigenvalues, damping) == pytest.approx(dense)
    assert nystrom.effective_dimension(np.array([1.0, -1e-9]), 1.0) == 0.5
    with pytest.raises(ValueError, match=r"damping 0.0 is not above 0"):
        nystrom.effective_dimension(eigenvalues, 0.0)


@pytest.mark.parametrize("m", [3, 8, 15])
def test_error_is_the_residual_of_the_projection(m: int) -> None:
    K_nm, K_mm, eigenvalues, U = problem(m)
    own = np.sum(PHI**2, axis=1)
    dense = np.mean(own - np.sum(K_nm @ np.linalg.inv(K_mm) * K_nm, axis=1)) / own.mean()
    second = K_nm.T @ K_nm / len(K_nm)
    error = nystrom.nystrom_error(own.mean(), second, eigenvalues, U, m)
    assert error == pytest.approx(dense, abs=1e-9)


def test_error_is_zero_when_the_landmarks_span_everything() -> None:
    K_nm, _, eigenvalues, U = problem(25)  # 20 features: rank 20
    rank = nystrom.usable_rank(eigenvalues, 1.0, 25, "float64")
    second = K_nm.T @ K_nm / len(K_nm)
    own = np.mean(np.sum(PHI**2, axis=1))
    assert nystrom.nystrom_error(own, second, eigenvalues, U, rank) == pytest.approx(0, abs=1e-9)
    assert nystrom.nystrom_error(own, second, eigenvalues, U, 0) == 1.0


def test_degenerate_kernels_are_refused_in_words() -> None:
    bad = np.eye(3)
    bad[1, 2] = np.nan
    with pytest.raises(DataError, match="landmark_kernel: value nan at landmarks 1, 2"):
        nystrom.eigenpairs(bad)
    with pytest.raises(StageFailed, match="largest eigenvalue of 3 landmarks is 0"):
        nystrom.eigenpairs(np.zeros((3, 3)))
    with pytest.raises(StageFailed, match="the mean self kernel is 0; expected more than 0"):
        nystrom.nystrom_error(0.0, np.eye(3), np.ones(3), np.eye(3), 3)
    with pytest.raises(ValueError, match="'int8' is none of float16"):
        nystrom.usable_rank(np.ones(3), 1.0, 3, "int8")


def test_one_landmark_works() -> None:
    eigenvalues, U = nystrom.eigenpairs(np.array([[4.0]]))
    np.testing.assert_array_equal(nystrom.start(eigenvalues, U, 1), [[0.5]])
