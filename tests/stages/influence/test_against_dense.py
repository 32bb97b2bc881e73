"""Influence and its rankings against the dense oracle and loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core.landmark_rows import sum_views
from krepes_ooc.stages.influence import scores
from tests import cases, dense
from tests.stages.dense_comparison import few, seeds

one_thread = pytest.fixture(autouse=True, scope="module")(dense.one_thread)


@few
@given(seeds, st.integers(1, 7), st.integers(1, 9), st.integers(1, 4))
def test_influence_equals_the_loops(seed: int, audited: int, m: int, h: int) -> None:
    draw = np.random.default_rng(seed)
    K, step, A = draw.normal(size=(audited, m)), draw.normal(size=(m, h)), draw.normal(size=(m, h))
    offset, root = draw.normal(size=h), draw.normal(size=(m, m))
    K_mm, K[0] = root @ root.T, 0.0
    step[0] = 0.0
    f = scores.embedding(K, A, offset)
    more = {"offset": offset, "landmark_kernel": K_mm}
    found = {
        "is": scores.influence_score(K, step),
        "kernel": scores.scorer("kernel", step, K_mm)(K),
        "aligned": scores.aligned(K, step, K_mm),
        "signed-step": scores.contribution(K, step, f),
        "signed-embedding": scores.embedding_contribution(K, A, f),
    }
    for measure, score in found.items():
        expected = dense.influence(measure, K, step, A, **more)
        np.testing.assert_allclose(score, expected, rtol=1e-9, atol=1e-12, err_msg=measure)
    total = (f * (f - offset)).sum(axis=1)
    np.testing.assert_allclose(found["signed-embedding"].sum(axis=1), total, atol=1e-9)


@few
@given(seeds, st.integers(1, 7))
def test_unique_kernel_is_the_regression_residual(seed: int, m: int) -> None:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(40, m))
    S, K = rows.T @ rows / 40, draw.normal(size=(5, m))
    found = scores.unique(K, scores.leave_one_out(S))
    np.testing.assert_allclose(found, dense.unique_kernel(K, S), rtol=1e-8, atol=1e-10)


def test_unique_kernel_of_duplicates_is_small() -> None:
    """What a duplicate leaves of its twin is nothing; other landmarks keep their residual."""
    K = cases.case("duplicate-landmark").kernels[0]
    K[:, 0] += 0.0  # columns 0 and 1 are equal
    S = K.T @ K / len(K)
    found = scores.unique(K, scores.leave_one_out(S))
    assert np.isfinite(found).all()
    # The ridge of 1e-4 leaves that share of them.
    assert abs(found[:, :2]).max() < 1e-3
    expected = dense.unique_kernel(K[:, 1:], S[1:, 1:])[:, 1:]
    assert abs(found[:, 2:] - expected).max() < 1e-3


@few
@given(seeds, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_rows_of_one_landmark_are_summed_before_the_norm(
    seed: int, audited: int, landmarks: int, views: int
) -> None:
    draw = np.random.default_rng(seed)
    rows = landmarks * views
    K, step = draw.normal(size=(audited, rows)), draw.normal(size=(rows, 3))
    expected = np.zeros((audited, landmarks))
    plain = np.zeros_like(expected)
    for t, landmark in itertools.product(range(audited), range(landmarks)):
        its_rows = [view * landmarks + landmark for view in range(views)]
        expected[t, landmark] = np.linalg.norm(sum(K[t, row] * step[row] for row in its_rows))
        plain[t, landmark] = sum(K[t, row] for row in its_rows)
    found = scores.grouped_influence_score(K, step, views)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sum_views(K, views), plain, atol=1e-12)


@few
@given(seeds, st.integers(1, 4), st.integers(1, 12), st.integers(1, 12))
def test_top_landmarks_equal_a_full_sort(seed: int, audited: int, m: int, count: int) -> None:
    score = np.random.default_rng(seed).integers(-3, 4, size=(audited, m)).astype(float)
    found = scores.top_k(score, count)
    for t, row in enumerate(score):
        order = sorted(range(m), key=lambda j: (-abs(row[j]), j))[:count]
        assert found[0][t].tolist() == order
        assert found[1][t].tolist() == row[order].tolist()


@few
@given(seeds, st.integers(1, 4), st.integers(1, 9), st.integers(1, 5))
def test_what_pushes_most_equals_a_loop(seed: int, audited: int, m: int, count: int) -> None:
    signed = np.random.default_rng(seed).integers(-2, 3, size=(audited, m)).astype(float)
    landmark, value = scores.repelling(signed, count)
    for t, row in enumerate(signed):
        left = {j: entry for j, entry in enumerate(row) if entry < 0}
        for place in range(min(count, m)):
            lowest = min(left.values(), default=0.0)
            first = min((j for j in left if left[j] == lowest), default=-1)
            left.pop(first, None)
            assert (landmark[t, place], value[t, place]) == (first, lowest)
    assert landmark.shape == value.shape == (audited, min(count, m))
