"""Average precision against scikit-learn; what a concept tells of an embedding."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from krepes_ooc.stages.examples.concept_figures import (
    average_precision,
    best_class_precision,
    winner_r_squared,
)


def test_average_precision_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    scores, label = draw.normal(size=200), draw.integers(0, 4, 200)
    member = label[:, None] == np.arange(4)
    expected = [average_precision_score(member[:, c], scores) for c in range(4)]
    np.testing.assert_allclose(average_precision(scores, member), expected)


def test_the_best_class_of_each_concept_counts() -> None:
    label = np.repeat([0, 1, 2, -1], 30)
    activation = np.stack([label == 0, label == 2], axis=1).astype(float)
    activation[label < 0] = 9.0
    assert best_class_precision(activation, label) == pytest.approx(1.0)
    noise = np.random.default_rng(0).normal(size=activation.shape)
    assert best_class_precision(noise, label) < 0.6
    assert best_class_precision(activation, np.full(120, -1)) is None
    assert best_class_precision(activation, np.zeros(120, dtype=int)) is None


def test_the_mean_of_a_concept_predicts_what_it_tells() -> None:
    draw = np.random.default_rng(1)
    winners = draw.integers(0, 3, 400)
    rows = np.eye(3)[winners] + 0.1 * draw.normal(size=(400, 3))
    fit, audit = slice(0, 200), slice(200, 400)
    found = winner_r_squared(winners[fit], rows[fit], winners[audit], rows[audit])
    assert found == pytest.approx(0.66 / 0.69, abs=0.03)
    other = draw.permutation(winners)
    told = winner_r_squared(other[fit], rows[fit], other[audit], rows[audit])
    assert abs(told) < 0.05


def test_what_cannot_be_predicted() -> None:
    rows, winners = np.eye(3), np.arange(3)
    assert winner_r_squared(winners[:0], rows[:0], winners, rows) is None
    assert winner_r_squared(winners, rows, winners, np.ones((3, 3))) is None
    # A concept that no fit sample shows predicts their mean.
    found = winner_r_squared(np.array([0, 0]), rows[:2], np.array([1, 1]), rows[:2])
    assert found == pytest.approx(0.0)
