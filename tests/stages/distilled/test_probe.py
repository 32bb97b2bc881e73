"""The probe's weights on plain columns, and its logits of two and of several classes."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.distilled.probe import PROBE_C, fit_probe
from krepes_ooc.stages.fidelity.metrics import linear_probe


def samples(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    label = draw.integers(0, classes, 120)
    rows = draw.normal(size=(120, 5)) * [1, 10, 0.1, 1, 1] + label[:, None] * [1, 4, 0.05, 0, 0]
    return rows + 3.0, label


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probabilities_are_those_of_the_fidelity_figures(classes: int) -> None:
    rows, label = samples(classes)
    found = fit_probe(rows[:90], label[:90])
    known = linear_probe(rows[:90], label[:90], rows[90:], label[90:])
    np.testing.assert_allclose(found.probability(rows[90:]), known.probability, atol=1e-3)
    np.testing.assert_array_equal(found.decisions(rows[90:]), known.probability.argmax(axis=1))
    logits = found.readout.logits(rows[90:])
    np.testing.assert_allclose(logits.sum(axis=1), 0.0, atol=1e-6 * np.abs(logits).max())
    assert found.converged


def test_the_regularisation_is_that_of_the_fidelity_figures() -> None:
    assert inspect.signature(linear_probe).parameters["C"].default == PROBE_C


def test_samples_without_a_label_and_classes_without_a_sample() -> None:
    rows, label = samples(3)
    label = np.where(label == 1, 5, label)
    padded = np.concatenate([label, [-1, -1]])
    found = fit_probe(np.vstack([rows, 1e6 * rows[:2]]), padded)
    known = fit_probe(rows, label)
    np.testing.assert_allclose(found.readout.weight, known.readout.weight)
    assert (found.n_fit, list(found.classes)) == (120, [0, 2, 5])
    assert (found.column(5), found.column(1)) == (2, None)


def test_a_constant_column_and_one_class() -> None:
    rows, label = samples(2)
    rows[:, 3] = 7.0
    found = fit_probe(rows, label)
    assert np.isfinite(found.readout.weight).all()
    with pytest.raises(StageFailed, match="1 classes among 5 fit samples with labels"):
        fit_probe(rows[:5], np.zeros(5, dtype=np.int64))
