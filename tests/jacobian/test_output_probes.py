from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.jacobian.output_probes import (
    apply_probes,
    deflated_probes,
    expand_probes,
    rademacher_probes,
)


def gram(n_outputs: int, seed: int = 0) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(n_outputs, n_outputs))
    return factor @ np.diag(2.0 ** -np.arange(n_outputs)) @ factor.T


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**40))
def test_rademacher_rows_have_norm_of_their_share(n_probes, n_outputs, seed) -> None:
    probes = rademacher_probes(n_probes, n_outputs, seed)
    np.testing.assert_allclose((probes.astype(float) ** 2).sum(), n_outputs, rtol=1e-6)
    if n_probes >= n_outputs:
        np.testing.assert_array_equal(probes, np.eye(n_outputs))


@pytest.mark.parametrize("n_deflated", [0, 3])
def test_expected_square_is_the_identity(n_deflated: int) -> None:
    n_outputs, draws = 12, 4000
    total = np.zeros((n_outputs, n_outputs))
    for seed in range(draws):
        probes = deflated_probes(gram(n_outputs), n_deflated, 2, seed).astype(float)
        total += probes.T @ probes
    np.testing.assert_allclose(total / draws, np.eye(n_outputs), atol=5 / np.sqrt(2 * draws))


def test_deflation_is_exact_on_the_leading_space_and_has_a_fixed_sign() -> None:
    matrix = gram(10)
    probes = deflated_probes(matrix, 4, 4, seed=3).astype(float)
    values, vectors = np.linalg.eigh(matrix)
    leading = vectors[:, -4:]
    np.testing.assert_allclose(probes.T @ probes @ leading, leading, atol=1e-6)
    assert (probes[:4].max(axis=1) >= -probes[:4].min(axis=1)).all()
    np.testing.assert_array_equal(deflated_probes(matrix, 5, 5, 0), np.eye(10))
    kernel = (probes @ matrix * probes).sum()
    assert abs(kernel - values.sum()) < 0.5 * values[:-4].sum()


@pytest.mark.parametrize("indices", [(0, 1, 2), (2, 0)])
def test_probes_on_selected_outputs_are_directions_on_all(indices: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(0)
    probes = drawn.normal(size=(2, len(indices))).astype(np.float32)
    outputs = torch.from_numpy(drawn.normal(size=(4, 3)).astype(np.float32))
    full, part = expand_probes(probes, indices, outputs), apply_probes(outputs, indices)
    np.testing.assert_allclose(outputs @ full.T, part.numpy() @ probes.T, rtol=1e-6)
    part += 1.0
    assert not np.array_equal(part, outputs[:, list(indices)]), "the network's own result changed"
