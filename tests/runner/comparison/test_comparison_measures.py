"""Measures of agreement between audits, against dense definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from krepes_ooc.runner.comparison import comparison_measures as measures

N = 40


def rows(seed: int, outputs: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, outputs)) + 3.0


def dense_hsic(K: np.ndarray, L: np.ndarray) -> float:
    """The unbiased HSIC as a sum over distinct indices, of kernels [sample, sample]."""
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    n = len(K)
    ones = np.ones(n)
    first = np.trace(K @ L)
    second = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
    third = 2.0 / (n - 2) * (ones @ K @ L @ ones)
    return float((first + second - third) / (n * (n - 3)))


def test_cka_is_that_of_dense_kernels():
    X, Y = rows(0), np.tanh(rows(0)) @ rows(1, N)[:5, :3]
    centred = [each - each.mean(axis=0) for each in (X, Y)]
    K, L = (each @ each.T for each in centred)
    expected = dense_hsic(K, L) / np.sqrt(dense_hsic(K, K) * dense_hsic(L, L))
    assert measures.debiased_cka(X, Y) == pytest.approx(expected, rel=1e-10)


def test_cka_is_blind_to_offset_scale_and_rotation_and_exact_for_the_same_rows():
    X = rows(0)
    rotation, _ = np.linalg.qr(rows(2, N)[:5, :5])
    assert measures.debiased_cka(X, X.copy()) == 1.0
    assert measures.debiased_cka(X, -2.0 * X @ rotation + 7.0) == pytest.approx(1.0)


def test_cka_of_unrelated_rows_has_mean_zero_where_the_biased_one_has_not():
    draws = [measures.debiased_cka(rows(2 * i, 20), rows(2 * i + 1, 20)) for i in range(60)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(len(draws))
    X, Y = (each - each.mean(axis=0) for each in (rows(0, 20), rows(1, 20)))
    biased = np.sum((X.T @ Y) ** 2) / np.linalg.norm(X.T @ X) / np.linalg.norm(Y.T @ Y)
    assert biased > 0.2


@pytest.mark.parametrize(
    ("X", "Y"),
    [(rows(0)[:3], rows(1)[:3]), (np.ones((N, 2)), rows(0)), (rows(0), np.zeros((N, 1)))],
    ids=("three samples", "constant", "zeros"),
)
def test_cka_that_is_not_defined_is_no_number(X: np.ndarray, Y: np.ndarray):
    assert np.isnan(measures.debiased_cka(X, Y))


def dense_change(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 - Pearson correlation of profiles, one sample at a time."""
    found = []
    units = [each - each.mean(axis=0) for each in (first, other)]
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in units]
    for t in range(len(first)):
        others = [s for s in range(len(first)) if s != t]
        p, q = (unit[others] @ unit[t] for unit in units)
        found.append(1.0 - np.corrcoef(p, q)[0, 1])
    return np.array(found)


def test_change_is_one_minus_the_correlation_of_profiles(monkeypatch: pytest.MonkeyPatch):
    first, other = rows(0), rows(0)[:, :3] + 0.3 * rows(3, 3)
    expected = dense_change(first, other)
    np.testing.assert_allclose(measures.profile_change(first, other), expected, rtol=1e-9)
    monkeypatch.setattr(measures, "ROWS", 7)
    np.testing.assert_allclose(measures.profile_change(first, other), expected, rtol=1e-9)


def test_change_of_the_same_rows_is_exactly_zero_and_finds_the_sample_that_moved():
    first = rows(0)
    assert not measures.profile_change(first, first.copy()).any()
    moved = first.copy()
    moved[11] = 2 * moved.mean(axis=0) - moved[11]
    change = measures.profile_change(first, moved)
    assert np.argmax(change) == 11
    assert change[11] > 1.5
    assert np.median(change) < 0.1


def test_change_against_a_constant_embedding_is_one():
    np.testing.assert_array_equal(measures.profile_change(rows(0), np.ones((N, 2))), 1.0)
    assert not measures.profile_change(np.ones((N, 3)), np.ones((N, 2))).any()


def test_paired_difference_is_narrower_than_the_difference_of_means():
    a = np.random.default_rng(0).normal(size=500)
    b = a + 0.1 + 0.01 * np.random.default_rng(1).normal(size=500)
    b[3] = np.nan
    found = measures.paired_difference(a, b)
    change = (b - a)[np.isfinite(b)]
    assert found.samples == 499
    assert found.difference == pytest.approx(change.mean())
    half = 1.96 * change.std() / np.sqrt(499)
    assert (found.low, found.high) == pytest.approx((change.mean() - half, change.mean() + half))
    assert found.high - found.low < 0.1 * 2 * 1.96 * a.std() / np.sqrt(499)
    same = measures.paired_difference(a, a.copy())
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    assert np.isnan(measures.paired_difference(a, np.full(500, np.nan)).difference)
    # A single sample differs, but not beyond an interval.
    single = measures.paired_difference(a[:1], b[:1])
    assert single.difference == pytest.approx(b[0] - a[0])
    assert np.isnan(single.low)
    assert np.isnan(single.high)


def test_concepts_are_matched_by_the_largest_sum_of_correlations():
    first = rows(0, 4)
    order = [2, 0, 3]
    other = 5.0 * first[:, order] + 0.5 * rows(4, 3)
    found = measures.match_concepts(first, other)
    correlation = np.corrcoef(first.T, other.T)[:4, 4:]
    best = max(
        itertools.permutations(range(4), 3),
        key=lambda p: sum(correlation[p[j], j] for j in range(3)),
    )
    assert sorted(zip(found.first, found.other, strict=True)) == sorted(
        (best[j], j) for j in range(3)
    )
    assert tuple(best) == tuple(order)
    expected = [correlation[i, j] for i, j in zip(found.first, found.other, strict=True)]
    np.testing.assert_allclose(found.correlation, expected, rtol=1e-10)
    # Samples that show both, over those that show either
    for i, j, shared in zip(found.first, found.other, found.shared, strict=True):
        a, b = first.argmax(axis=1) == i, other.argmax(axis=1) == j
        assert shared == pytest.approx((a & b).sum() / (a | b).sum())
    assert found.chance < 0.5 < found.correlation.min()


def test_the_same_concepts_match_themselves_exactly():
    first = rows(0, 6)
    found = measures.match_concepts(first, first.copy())
    np.testing.assert_array_equal(found.first, found.other)
    np.testing.assert_array_equal(found.correlation, 1.0)


def test_a_constant_activation_has_no_correlation():
    first = rows(0, 2)
    first[:, 1] = 4.0
    found = measures.match_concepts(first, first.copy())
    assert np.isnan(found.correlation[found.first == 1]).all()


def test_overlap_counts_landmarks_in_both_tops():
    first, other = rows(0, 12), rows(1, 12)
    for count in (1, 5, 12, 30):
        expected = [
            len(set(np.argsort(-a)[:count]) & set(np.argsort(-b)[:count])) / min(count, 12)
            for a, b in zip(first, other, strict=True)
        ]
        np.testing.assert_allclose(measures.top_overlap(first, other, count), expected)
    assert np.isnan(measures.top_overlap(first[:, :0], other[:, :0], 3)).all()
