"""Sums of groups against means and covariances of the same rows, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.group_moments.group_sums import (
    GroupMoments,
    GroupSums,
    finish,
    rest_of,
    union,
)

VIEWS, ROWS, M = 3, 120, 7


@pytest.fixture
def kernels() -> np.ndarray:
    return np.random.default_rng(0).normal(0.3, 0.4, (VIEWS, ROWS, M))


def dense(kernels: np.ndarray) -> GroupMoments:
    mean = kernels.mean(axis=1)
    centred = kernels - mean[:, None]
    n = kernels.shape[1]
    pairs = [(a, b) for a in range(VIEWS) for b in range(a, VIEWS)]
    return GroupMoments(n, mean, np.stack([centred[a].T @ centred[b] / n for a, b in pairs]))


def summed(kernels: np.ndarray, shift: np.ndarray, parts: int = 3) -> GroupMoments:
    sums = GroupSums.zeros(VIEWS, M)
    for rows in np.array_split(np.arange(kernels.shape[1]), parts):
        sums.add_rows(
            [np.ascontiguousarray(K[rows]) - s for K, s in zip(kernels, shift, strict=True)]
        )
    return finish(sums, shift)


def assert_equal(found: GroupMoments, wanted: GroupMoments, tolerance: float = 1e-13) -> None:
    assert found.n_samples == wanted.n_samples
    np.testing.assert_allclose(found.mean, wanted.mean, atol=tolerance)
    np.testing.assert_allclose(found.second, wanted.second, atol=tolerance)


def test_sums_of_rows_are_their_moments(kernels):
    found = summed(kernels, kernels.mean(axis=1) + 0.1)
    assert_equal(found, dense(kernels))
    assert np.array_equal(found.second[0], found.second[0].T)


def test_products_are_added_in_place(kernels):
    sums = GroupSums.zeros(VIEWS, M)
    products = sums.products
    sums.add_rows(list(kernels))
    assert sums.products is products
    assert products.any()


def test_a_partition_adds_up_to_the_total(kernels):
    shift = kernels.mean(axis=1)
    code = np.random.default_rng(1).integers(4, size=ROWS)
    parts = [summed(kernels[:, code == c], shift) for c in range(4)]
    assert_equal(union(parts, shift), dense(kernels), 1e-12)


@pytest.mark.parametrize("size", [1, 40, ROWS - 1])
def test_the_rest_of_a_group(kernels, size: int):
    shift = kernels.mean(axis=1)
    group = summed(kernels[:, :size], shift)
    assert_equal(rest_of(dense(kernels), group), dense(kernels[:, size:]), 1e-12)


def test_nothing_is_left_of_a_group_of_all(kernels):
    whole = dense(kernels)
    with pytest.raises(ValueError, match="0 samples are left"):
        rest_of(whole, whole)
    with pytest.raises(ValueError, match="no part has a sample"):
        union([summed(kernels[:, :0], kernels.mean(axis=1))], kernels.mean(axis=1))


def test_an_empty_group_changes_nothing(kernels):
    whole, shift = dense(kernels), kernels.mean(axis=1)
    empty = summed(kernels[:, :0], shift)
    assert not empty.second.any()
    assert_equal(rest_of(whole, empty), whole)
    assert_equal(union([empty, whole], shift), whole)


def test_moments_of_every_ordered_pair(kernels):
    full = dense(kernels).full()
    centred = kernels - kernels.mean(axis=1, keepdims=True)
    wanted = np.einsum("ail,bim->ablm", centred, centred) / ROWS
    np.testing.assert_allclose(full.second, wanted, atol=1e-13)
