"""Deletion test on decisions: terms against logits, removal against dense sums."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.baselines import LinearProbe
from krepes_ooc.stages.fidelity.confidence_drop import largest
from krepes_ooc.stages.fidelity.decision_flips import decision_terms, decisions, flips_figure
from krepes_ooc.stages.fidelity.landmark_removal import LandmarkRemoval
from krepes_ooc.stages.fidelity.rows import EvaluationRows

M, H, CLASSES = 40, 5, 3


def rows(draw: np.random.Generator, A: np.ndarray, centres: np.ndarray, n: int) -> EvaluationRows:
    label = draw.integers(CLASSES, size=n)
    kernel = centres[label] + 0.3 * draw.normal(size=(n, M))
    f = kernel @ A
    return EvaluationRows(np.arange(n), label, kernel, f, f, f, None, f, None)


def removal(n_classes: int = CLASSES) -> LandmarkRemoval:
    """Each class is told by the kernel values to a few landmarks of its own."""
    draw = np.random.default_rng(0)
    A = draw.normal(size=(M, H)) / M
    centres = np.zeros((CLASSES, M))
    for c in range(CLASSES):
        centres[c, 6 * c : 6 * c + 6] = 3.0
    fit, audit, landmarks = (rows(draw, A, centres, n) for n in (200, 90, M))
    top = largest(np.abs(audit.kernel), 6)
    return LandmarkRemoval(fit, audit, landmarks, A, np.eye(M), top, n_classes, 0)


def test_terms_add_up_to_the_logit_of_the_decision():
    data = removal()
    probe = LinearProbe.fit(data.fit.embedding, data.fit.label, CLASSES)
    decided = decisions(probe, data.audit.embedding)
    terms = decision_terms(probe, data.audit.kernel, data.coefficients, decided)
    logits = (probe.design(data.audit.embedding) @ probe.W)[np.arange(len(decided)), decided]
    constant = probe.W[-1] - probe.mean @ (probe.W[:-1] / probe.scale[:, None])
    assert terms.sum(axis=1) + constant[decided] == pytest.approx(logits, abs=1e-9)


def test_the_figure_is_that_of_dense_sums_without_the_landmarks():
    data = removal()
    found = flips_figure(data)
    probe = LinearProbe.fit(data.fit.embedding, data.fit.label, CLASSES)
    decided = decisions(probe, data.audit.embedding)
    terms = decision_terms(probe, data.audit.kernel, data.coefficients, decided)
    flipped = []
    for t, kernel in enumerate(data.audit.kernel):
        left = kernel.copy()
        left[np.argsort(-terms[t])[:6]] = 0
        flipped.append(decisions(probe, (left @ data.coefficients)[None])[0] != decided[t])
    assert found.value == pytest.approx(np.mean(flipped))
    low, high = found.interval
    assert low < found.value < high


def test_largest_terms_flip_more_than_random_landmarks():
    found = flips_figure(removal())
    assert found.value > 0.5
    assert found.values["random"] < 0.25
    # Here the largest kernel values are the audit's ranking.
    assert found.values["own_ranking"] == found.values["kernel_only"]


def test_one_class_has_no_decisions():
    data = removal()
    data.fit.label[:] = 1
    with pytest.raises(StageFailed, match="at least two classes"):
        flips_figure(data)
