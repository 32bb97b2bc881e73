"""Moments, start and spectrum against the dense oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.stages.spectrum import nystrom
from tests import cases, dense
from tests.stages.dense_comparison import every_case, few, moments_of, relative, seeds

one_thread = pytest.fixture(autouse=True, scope="module")(dense.one_thread)


@every_case
def test_moments_equal_the_dense_ones(case: cases.Case) -> None:
    mean, second = dense.moments(case.kernels)
    found = moments_of(case)
    assert relative(found.mean, mean) < 1e-13
    assert relative(found.second, second) < (1e-13 if case.well_posed else 1e-10)
    assert (found.second == found.second.transpose(1, 0, 3, 2)).all()


@few
@given(
    seeds,
    st.integers(2, 40),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0, 1e4),
)
def test_moments_hold_under_any_cut_and_mean(
    seed: int, n_samples: int, m: int, p: int, block_rows: int, sub_rows: int, mean: float
) -> None:
    draw = np.random.default_rng(seed)
    K = mean * draw.normal(size=m) + draw.normal(size=(p, n_samples, m))
    case = cases.Case("drawn", K, np.eye(m), np.eye(m), np.eye(m))
    found = moments_of(case, block_rows, sub_rows)
    expected_mean, second = dense.moments(K)
    assert relative(found.mean, expected_mean) < 1e-13
    # The oracle itself subtracts means of size ``mean`` from deviations of size one.
    assert relative(found.second, second) < 1e-13 * (1 + mean) * n_samples
    for a, b in itertools.product(range(p), repeat=2):
        assert relative(found.uncentred(a, b), K[a].T @ K[b] / n_samples) < 1e-12
        D = (K[a] - K[b]).T @ (K[a] - K[b]) / n_samples
        assert abs(found.difference(a, b) - D).max() < 1e-12 * (1 + mean) * n_samples


@every_case
def test_start_and_nystrom_error_equal_the_dense_ones(case: cases.Case) -> None:
    eigenvalues, U = nystrom.eigenpairs(case.landmark_kernel)
    h = case.start.shape[1]
    if case.name not in {"duplicate-landmark", "constant-column", "nearly-collapsed"}:
        # Those three keep the start of the case they were made from.
        assert relative(nystrom.start(eigenvalues, U, h), case.start) < 1e-7
    K = case.kernels.reshape(-1, case.kernels.shape[-1])
    own = np.full(len(K), 2 * abs(case.landmark_kernel).max())
    expected = dense.nystrom_error(K, case.landmark_kernel, own, h)
    S = np.mean([K_a.T @ K_a for K_a in case.kernels], axis=0) / case.kernels.shape[1]
    found = nystrom.nystrom_error(own[0], S, eigenvalues, U, h)
    assert found == pytest.approx(np.clip(expected, 0, 1), abs=1e-9)


@every_case
def test_embedding_size_from_moments(case: cases.Case) -> None:
    views = dense.embeddings(case.coefficients, case.kernels, case.offset)
    expected = torch.stack(views).square().sum(dim=-1).mean().sqrt()
    found = moments_of(case).embedding_rms(case.coefficients, case.offset)
    assert found == pytest.approx(float(expected), rel=1e-9 if case.well_posed else 1e-6)
