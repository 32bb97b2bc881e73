from __future__ import annotations

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from krepes_ooc.errors import UsageError
from krepes_ooc.stages.influence import scores

RNG = np.random.default_rng(2)
T, M, H = 9, 7, 3
PHI_T, PHI_L = RNG.normal(size=(T, 12)), RNG.normal(size=(M, 12))
K, K_MM = PHI_T @ PHI_L.T, PHI_L @ PHI_L.T
STEP, A, GAMMA = RNG.normal(size=(M, H)), RNG.normal(size=(M, H)), RNG.normal(size=H)
F = K @ A + GAMMA


def naive(entry: object) -> np.ndarray:
    return np.array([[entry(t, landmark) for landmark in range(M)] for t in range(T)])  # type: ignore[operator]


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_embedding() -> None:
    np.testing.assert_allclose(scores.embedding(K, A, GAMMA), F)


def test_scores_are_their_formulas_entry_by_entry() -> None:
    moved, moved_l = K @ STEP, K_MM @ STEP
    np.testing.assert_allclose(
        scores.influence_score(K, STEP), naive(lambda t, j: abs(K[t, j]) * np.linalg.norm(STEP[j]))
    )
    np.testing.assert_allclose(
        scores.aligned(K, STEP, K_MM), naive(lambda t, j: K[t, j] * cosine(moved[t], moved_l[j]))
    )
    np.testing.assert_allclose(
        scores.contribution(K, STEP, F),
        naive(lambda t, j: K[t, j] * STEP[j] @ F[t] / np.linalg.norm(F[t])),
    )
    np.testing.assert_allclose(
        scores.embedding_contribution(K, A, F), naive(lambda t, j: (K[t, j] * A[j]) @ F[t])
    )


def test_contributions_sum_to_the_squared_length() -> None:
    total = scores.embedding_contribution(K, A, F).sum(axis=1)
    np.testing.assert_allclose(total, np.sum(F * (F - GAMMA), axis=1))


def test_leave_one_out_is_the_residual_of_a_ridge_regression() -> None:
    rows = RNG.normal(size=(200, M)) @ RNG.normal(size=(M, M))
    second = rows.T @ rows / 200
    got = scores.unique(K, scores.leave_one_out(second))
    # A ridge r is a regression on further rows sqrt(r n) I, each landmark having one of its own.
    further = np.sqrt(1e-4 * np.trace(second) / M * 200) * np.eye(M)
    extended = np.concatenate([rows, further])
    for landmark in range(M):
        others = np.delete(np.arange(M), landmark)
        fitted = np.linalg.lstsq(extended[:, others], extended[:, landmark], rcond=None)[0]
        np.testing.assert_allclose(
            got[:, landmark], K[:, landmark] - K[:, others] @ fitted, rtol=1e-8, atol=1e-8
        )


def test_rounding_of_the_moments_does_not_decide_the_ranking() -> None:
    draw = np.random.default_rng(8)
    # Landmarks that the others nearly span: without a ridge float32 moments decide.
    low = draw.normal(size=(500, 6)) @ draw.normal(size=(6, 40))
    rows = low + 1e-4 * draw.normal(size=low.shape)
    second = rows.T @ rows / len(rows)
    exact, rounded = (
        scores.unique(rows[:50], scores.leave_one_out(moments))
        for moments in (second, second.astype(np.float32).astype(np.float64))
    )
    top, other = (np.argsort(-np.abs(value), axis=1)[:, :10] for value in (exact, rounded))
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(top, other, strict=True)]
    assert np.mean(kept) > 0.99


def test_leave_one_out_of_duplicates_is_finite_and_has_nothing_unique() -> None:
    rows = RNG.normal(size=(200, M))
    rows[:, 3] = rows[:, 1]
    got = scores.unique(rows[:5], scores.leave_one_out(rows.T @ rows / 200))
    assert np.isfinite(got).all()
    # What the ridge of 1e-4 leaves of them.
    assert np.abs(got[:, [1, 3]]).max() < 1e-3
    assert np.abs(got[:, 0]).max() > 0.1
    np.testing.assert_array_equal(scores.leave_one_out(np.zeros((2, 2))), np.eye(2))


def test_nothing_moves_gives_zero_not_nan() -> None:
    step, f = STEP.copy(), F.copy()
    step[2], f[4] = 0, 0
    assert (scores.influence_score(K, step)[:, 2] == 0).all()
    assert (scores.contribution(K, step, f)[4] == 0).all()
    assert (scores.embedding_contribution(K, A, f)[4] == 0).all()
    still = scores.aligned(K, np.zeros_like(STEP), K_MM)
    np.testing.assert_array_equal(still, 0)
    row = K.copy()
    row[1] = 0
    assert (scores.aligned(row, STEP, K_MM)[1] == 0).all()


def test_scorer_gives_each_measure() -> None:
    second = K.T @ K / T
    expected = {
        "is": scores.influence_score(K, STEP),
        "aligned": scores.aligned(K, STEP, K_MM),
        "unique": scores.unique(K, scores.leave_one_out(second)),
        "kernel": K,
    }
    assert set(expected) == set(scores.MEASURES)
    for measure, score in expected.items():
        np.testing.assert_array_equal(scores.scorer(measure, STEP, K_MM, second)(K), score)


def test_scorer_errors() -> None:
    with pytest.raises(UsageError, match="no measure 'shap'; expected one of is, aligned, unique"):
        scores.scorer("shap", STEP, K_MM)
    with pytest.raises(UsageError, match="'unique' without moments; expected a moments store"):
        scores.scorer("unique", STEP, K_MM)


# Three landmarks, each with a row for both views: rows 0 to 2, then rows 3 to 5.
VIEWS = 2
K_2, STEP_2 = RNG.normal(size=(T, 6)), RNG.normal(size=(6, H))


def test_views_of_a_landmark_are_summed_before_the_norm() -> None:
    expected = np.zeros((T, 3))
    for t in range(T):
        for mark in range(3):
            rows = (mark, mark + 3)
            expected[t, mark] = np.linalg.norm(sum(K_2[t, row] * STEP_2[row] for row in rows))
    found = scores.grouped_influence_score(K_2, STEP_2, VIEWS)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("measure", scores.MEASURES)
def test_scorer_of_landmarks_with_several_rows(measure: str) -> None:
    between, second = K_2[:6] @ K_2[:6].T, K_2.T @ K_2 / T
    got = scores.scorer(measure, STEP_2, between, second, VIEWS)(K_2)
    rows = scores.scorer(measure, STEP_2, between, second)(K_2)
    expected = rows[:, :3] + rows[:, 3:]
    if measure in ("aligned", "kernel"):
        pairs = np.stack([rows[:, :3], rows[:, 3:]])
        expected = np.take_along_axis(pairs, np.abs(pairs).argmax(axis=0)[None], axis=0)[0]
    if measure == "is":
        expected = scores.grouped_influence_score(K_2, STEP_2, VIEWS)
    np.testing.assert_array_equal(got, expected)
    assert got.shape == (T, 3)


def test_one_row_per_landmark_changes_nothing() -> None:
    np.testing.assert_allclose(
        scores.grouped_influence_score(K, STEP, 1), scores.influence_score(K, STEP)
    )
    score = scores.kernel_score
    assert scores.strongest_scores(score, 1) is score


small = hnp.arrays(np.float64, (3, 11), elements=st.integers(-3, 3).map(float))


@given(score=small, k=st.integers(1, 14))
def test_top_k_sorts_by_size_and_then_by_index(score: np.ndarray, k: int) -> None:
    landmark, top = scores.top_k(score, k)
    for row in range(3):
        expected = sorted(range(11), key=lambda j: (-abs(score[row, j]), j))[:k]
        assert landmark[row].tolist() == expected
        assert top[row].tolist() == score[row, expected].tolist()


def test_block_functions_keep_to_the_array_api() -> None:
    here, cpu = strict.Device("device1"), strict.Device("CPU_DEVICE")
    calls = [
        (scores.embedding, (K, A, GAMMA), ()),
        (scores.influence_score, (K, STEP), ()),
        (scores.aligned, (K, STEP, K_MM), ()),
        (scores.contribution, (K, STEP, F), ()),
        (scores.embedding_contribution, (K, A, F), ()),
        (scores.unique, (K, K_MM), ()),
        (scores.grouped_influence_score, (K_2, STEP_2), (VIEWS,)),
        (scores.top_k, (K,), (4,)),
        (scores.repelling, (K,), (4,)),
    ]
    for function, arrays, extra in calls:
        there = [strict.asarray(array, device=here) for array in arrays]
        got, expected = function(*there, *extra), function(*arrays, *extra)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        for value, wanted in pairs:
            assert value.device == here
            np.testing.assert_allclose(np.asarray(value.to_device(cpu)), wanted, atol=1e-12)
