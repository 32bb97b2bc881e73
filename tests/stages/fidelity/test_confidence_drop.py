from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity import confidence_drop

RNG = np.random.default_rng(6)


def naive_vote(query, bank, label, classes, k, temperature, barred) -> np.ndarray:  # type: ignore[no-untyped-def]
    shares = np.zeros((len(query), classes))
    for t, f in enumerate(query):
        cosine = [f @ b / np.linalg.norm(f) / np.linalg.norm(b) for b in bank]
        order = sorted(range(len(bank)), key=lambda j: (-cosine[j], j))
        allowed = [j for j in order if j not in barred[t] and label[j] >= 0][:k]
        for j in allowed:
            shares[t, label[j]] += np.exp(cosine[j] / temperature)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_vote_is_the_naive_vote(k: int) -> None:
    query, bank = RNG.normal(size=(300, 4)), RNG.normal(size=(30, 4))
    label = RNG.integers(-1, 3, 30)
    barred = np.argsort(RNG.random((300, 30)), axis=1)[:, :3]
    barred[:, 2] = -1
    got = confidence_drop.knn_shares(query, bank, label, 3, neighbours=k, without=barred)
    expected = naive_vote(query, bank, label, 3, k, 0.1, barred.tolist())
    np.testing.assert_allclose(got, expected, atol=1e-12)
    plain = confidence_drop.knn_shares(query, bank, label, 3, neighbours=k, temperature=0.5)
    expected = naive_vote(query, bank, label, 3, k, 0.5, [[]] * 300)
    np.testing.assert_allclose(plain, expected, atol=1e-12)


def test_vote_of_a_zero_embedding_is_finite() -> None:
    got = confidence_drop.knn_shares(np.zeros((1, 2)), np.eye(2), np.array([0, 1]), 2)
    np.testing.assert_allclose(got, [[0.5, 0.5]])


def test_vote_without_voters_is_refused() -> None:
    with pytest.raises(StageFailed, match="the k-NN classifier is not defined; expected at least"):
        confidence_drop.knn_shares(np.ones((1, 2)), np.ones((0, 2)), np.zeros(0, dtype=int), 2)
    with pytest.raises(StageFailed, match="the k-NN classifier"):
        confidence_drop.knn_shares(
            np.ones((1, 2)), np.eye(2), np.array([0, 1]), 2, without=np.array([[0, 1]])
        )
    with pytest.raises(StageFailed, match="the k-NN classifier"):
        confidence_drop.knn_shares(np.ones((1, 2)), np.eye(2), np.array([-1, -1]), 2)


def test_removal_takes_terms_out_of_the_representer_sum() -> None:
    K, A, gamma = RNG.normal(size=(6, 9)), RNG.normal(size=(9, 2)), RNG.normal(size=2)
    removed = np.array([[0, 3], [1, 2], [8, 7], [0, 1], [4, 5], [6, 7]])
    got = confidence_drop.remove_from_sum(K @ A + gamma, K, A, removed)
    for t in range(6):
        keep = np.setdiff1d(np.arange(9), removed[t])
        np.testing.assert_allclose(got[t], K[t, keep] @ A[keep] + gamma)


def test_drop_is_taken_at_the_class_predicted_before() -> None:
    before, after = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[0.1, 0.9], [0.3, 0.7]])
    np.testing.assert_allclose(confidence_drop.confidence_drop(before, after), [0.6, 0.1])


def test_random_landmarks_are_distinct_uniform_and_keyed_by_sample() -> None:
    ids = np.arange(4000)
    drawn = confidence_drop.random_landmarks(ids, 8, 3, seed=5)
    assert drawn.shape == (4000, 3)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    np.testing.assert_allclose(np.bincount(drawn.ravel()) / 12000, 1 / 8, atol=0.01)
    np.testing.assert_array_equal(confidence_drop.random_landmarks(ids[7:9], 8, 3, 5), drawn[7:9])
    assert (confidence_drop.random_landmarks(ids, 8, 3, seed=6) != drawn).any()


def test_drop_ratio_with_its_interval() -> None:
    targeted, random = RNG.normal(0.5, 0.1, 400), RNG.normal(0.1, 0.05, (5, 400))
    ratio = confidence_drop.drop_ratio(targeted, random, seed=0)
    assert ratio.value == pytest.approx(targeted.mean() / random.mean())
    assert ratio.low < ratio.value < ratio.high
    # Standard error of a ratio of means, by the delta method.
    control = random.mean(axis=0)
    error = np.std(targeted / control.mean() - ratio.value * control / control.mean()) / 20
    assert ratio.high - ratio.low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert ratio == confidence_drop.drop_ratio(targeted, random, seed=0)


def test_drop_ratio_near_zero_is_open_and_below_zero_undefined() -> None:
    targeted = np.full(50, 0.5)
    random = np.where(np.arange(50) % 2, 1.0, -0.99)[None, :]
    assert confidence_drop.drop_ratio(targeted, random, seed=0).high == np.inf
    with pytest.raises(StageFailed, match="drop ratio is not defined; expected a random"):
        confidence_drop.drop_ratio(targeted, -random, seed=0)


def test_a_refit_is_the_least_squares_fit_by_the_other_landmarks() -> None:
    draw = np.random.default_rng(12)
    K, A = draw.normal(size=(200, 6)) @ draw.normal(size=(6, 6)), draw.normal(size=(6, 2))
    removed = np.tile([1, 4], (200, 1))
    others = [0, 2, 3, 5]
    B = np.linalg.lstsq(K[:, others], K[:, [1, 4]] @ A[[1, 4]], rcond=None)[0]
    expected = K[:, others] @ (A[others] + B)
    inverse = confidence_drop.refit_inverse(K.T @ K / 200, relative=1e-12)
    found = confidence_drop.refit_without(K @ A, K, A, removed, inverse)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_duplicate_landmark_takes_over_completely() -> None:
    draw = np.random.default_rng(13)
    K = draw.normal(size=(50, 4))
    K[:, 3] = K[:, 0]
    A = draw.normal(size=(4, 2))
    inverse = confidence_drop.refit_inverse(K.T @ K / 50)
    found = confidence_drop.refit_without(K @ A, K, A, np.zeros((50, 1), dtype=np.int64), inverse)
    assert found == pytest.approx(K @ A, abs=1e-4)


def test_the_mean_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(14).normal(size=400)
    found = confidence_drop.mean_interval(values, seed=0)
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.2 * half
    )
    assert found == confidence_drop.mean_interval(values, seed=0)


@given(
    score=arrays(
        np.float64,
        st.tuples(st.integers(1, 6), st.integers(0, 9)),
        elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]),
    ),
    k=st.integers(0, 12),
)
def test_the_largest_are_those_of_a_stable_sort(score: np.ndarray, k: int) -> None:
    whole = np.argsort(-score, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(confidence_drop.largest(score, k), whole)


@pytest.mark.parametrize("k", [1, 7, 50])
@pytest.mark.parametrize("columns", [399, 1000, 1003])
@pytest.mark.parametrize("kind", ["distinct", "ties", "mostly minus infinity", "constant"])
def test_the_largest_of_wide_rows_are_those_of_a_full_sort(k: int, columns: int, kind: str) -> None:
    """More columns than sets of them, so that rows are bounded before anything is sorted."""
    score = RNG.normal(size=(9, columns))
    if kind == "ties":
        score = np.round(score)
    if kind == "mostly minus infinity":
        score[RNG.random(score.shape) < 0.995] = -np.inf
    if kind == "constant":
        score[:] = 2.0
    whole = np.argsort(-score, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(confidence_drop.largest(score, k), whole)


def test_one_pass_over_wide_rows_leaves_few_to_sort() -> None:
    score = RNG.normal(size=(20, 10_000))
    bound = confidence_drop._bound(score, 50)
    reached = (score >= bound).sum(axis=1)
    assert (reached >= 50).all()
    assert reached.max() < 100
