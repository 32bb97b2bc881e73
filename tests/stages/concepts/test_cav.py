from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from krepes_ooc.stages.concepts import cav

RNG = np.random.default_rng(6)


def sets(shift: float, n: int = 60, h: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = RNG.normal(size=(n, h)) * np.array([1, 3, 0.2, 1, 10])[:h]
    positive = np.arange(n) < n // 3
    rows[positive, 1] += 3 * shift
    return rows, positive, RNG.permutation(10 * n)[:n]


def discriminant() -> LinearDiscriminantAnalysis:
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1, priors=[0.5, 0.5])


def test_a_planted_direction_is_recognised() -> None:
    rows, positive, key = sets(shift=3.0)
    found = cav.concept_vector(rows, positive, key, seed=0)
    assert found.trusted
    assert found.accuracy > 0.9
    assert found.p_value == pytest.approx(1 / 100)
    assert np.linalg.norm(found.vector) == pytest.approx(1)
    assert found.random.mean() == pytest.approx(0.5, abs=0.07)
    assert (rows @ found.vector)[positive].mean() > (rows @ found.vector)[~positive].mean()


def test_noise_is_seldom_recognised() -> None:
    trusted = [
        cav.concept_vector(*sets(shift=0.0, n=30, h=3), seed=seed, draws=19).trusted
        for seed in range(100)
    ]
    assert 0 < np.mean(trusted) <= 0.12


def test_accuracy_is_the_cross_validated_balanced_accuracy() -> None:
    rows, positive, key = sets(shift=0.7)
    fold = cav.folds(positive, key, seed=3)
    hit = np.empty(len(rows), dtype=bool)
    for turn in range(cav.FOLDS):
        held = fold == turn
        scale = rows[~held].std(axis=0)
        model = discriminant().fit(rows[~held] / scale, positive[~held])
        hit[held] = model.predict(rows[held] / scale) == positive[held]
    expected = (hit[positive].mean() + hit[~positive].mean()) / 2
    assert cav.held_out_accuracy(rows, positive, key, seed=3) == pytest.approx(expected)


def test_the_normal_is_that_of_the_shrunken_discriminant() -> None:
    rows, positive, _ = sets(shift=0.7)
    scale = rows.std(axis=0)
    weight = discriminant().fit(rows / scale, positive).coef_[0] / scale
    assert cav.normal(rows, positive) == pytest.approx(weight / np.linalg.norm(weight))


def test_folds_deal_both_sets_evenly() -> None:
    _, positive, key = sets(0.0)
    fold = cav.folds(positive, key, seed=1)
    for kind in (True, False):
        counts = np.bincount(fold[positive == kind], minlength=cav.FOLDS)
        assert counts.max() - counts.min() <= 1
    few = cav.folds(np.array([True, True, False, False, False]), np.arange(5), seed=1)
    assert few.max() == 1


@settings(max_examples=8)
@given(st.permutations(range(24)), st.sampled_from([0, 1]))
def test_the_order_of_rows_does_not_matter(order: list[int], draws: int) -> None:
    rows, positive = np.random.default_rng(9).normal(size=(24, 3)), np.arange(24) % 2 == 0
    key = np.arange(100, 124)
    plain = cav.concept_vector(rows, positive, key, 2, draws)
    moved = cav.concept_vector(rows[order], positive[order], key[order], 2, draws)
    assert 0 <= plain.accuracy <= 1
    assert moved.accuracy == plain.accuracy
    assert moved.random.tolist() == plain.random.tolist()
    assert moved.vector == pytest.approx(plain.vector, abs=1e-9)


def test_the_normal_does_not_depend_on_the_scale_of_a_component() -> None:
    rows, positive, _ = sets(shift=1.0)
    stretch = np.array([1.0, 7.0, 0.5, 2.0, 1.0])
    plain, scaled = cav.normal(rows, positive), cav.normal(rows * stretch, positive)
    back = scaled * stretch
    assert back / np.linalg.norm(back) == pytest.approx(plain, abs=1e-9)


def test_constant_embeddings_give_no_direction() -> None:
    found = cav.concept_vector(np.ones((20, 3)), np.arange(20) < 10, np.arange(20), 0, 19)
    assert (found.vector == 0).all()
    assert not found.trusted


def test_scores_are_sums_over_landmarks() -> None:
    kernel, step, vectors = (
        RNG.normal(size=(6, 4)),
        RNG.normal(size=(4, 3)),
        RNG.normal(size=(2, 3)),
    )
    by_landmark = np.array(
        [[[kernel[t, i] * (step[i] @ v) for i in range(4)] for v in vectors] for t in range(6)]
    )
    assert cav.sample_scores(kernel, step, vectors) == pytest.approx(by_landmark.sum(axis=2))
    signs = np.sign(vectors @ step.T)
    assert cav.landmark_scores(kernel, step, vectors) == pytest.approx(
        np.abs(by_landmark).mean(axis=0) * signs
    )
