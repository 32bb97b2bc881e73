"""The number of landmarks by a rule, against dense pseudo-inverses."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.landmarks.count_rule import (
    candidate_counts,
    choose_count,
    nystrom_errors,
)


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-((x[:, None] - y) ** 2).sum(axis=-1) / 4))


@pytest.mark.parametrize(
    ("limit", "counts"),
    [
        (1, (1,)),
        (150, (150,)),
        (256, (256,)),
        (300, (256, 300)),
        (1000, (256, 512, 1000)),
        (1024, (256, 512, 1024)),
        (3000, (256, 512, 1024, 2048, 3000)),
    ],
)
def test_counts_double_up_to_the_limit(limit: int, counts: tuple[int, ...]):
    assert candidate_counts(limit) == counts


def test_errors_are_those_of_dense_pseudo_inverses():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 3))
    landmarks = draw.normal(size=(40, 3))
    K, K_mm = kernel(x, landmarks), kernel(landmarks, landmarks)
    counts = (1, 5, 17, 40)
    expected = []
    for m in counts:
        inverse = np.linalg.pinv(K_mm[:m, :m], rcond=1e-10, hermitian=True)
        expected.append(1 - np.einsum("im,mk,ik->", K[:, :m], inverse, K[:, :m]) / len(x))
    found = nystrom_errors(K, K_mm, counts, np.ones(len(x)))
    assert found == pytest.approx(expected, abs=1e-3)
    assert (np.diff(found) < 0).all()


def test_a_landmark_that_is_there_twice_carries_nothing():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(50, 3))
    landmarks = np.repeat(draw.normal(size=(6, 3)), 2, axis=0)
    found = nystrom_errors(
        kernel(x, landmarks), kernel(landmarks, landmarks), range(1, 13), np.ones(50)
    )
    assert np.diff(found)[::2] == pytest.approx(0, abs=1e-5)
    assert (np.diff(found)[1::2] < -1e-3).all()


def test_rows_that_are_zero_are_no_error():
    found = nystrom_errors(np.zeros((4, 2)), np.eye(2), (1, 2), np.array([0.0, 0.0, 0.0, 1.0]))
    assert found.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("errors", "count"),
    [([0.3, 0.09, 0.01], 512), ([0.1, 0.05, 0.0], 256), ([0.9, 0.5, 0.2], 1000)],
)
def test_the_smallest_low_error_or_the_largest_count(errors: list[float], count: int):
    assert choose_count((256, 512, 1000), np.array(errors)) == count
