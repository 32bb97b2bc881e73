"""Fidelity figures of a small audit, against loops over samples and landmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from krepes_ooc.stages.fidelity.metrics import linear_probe
from krepes_ooc.stages.fidelity.rows import EvaluationRows
from krepes_ooc.stages.randomised.fidelity_controls import (
    CONTROLLED,
    FidelityRows,
    fidelity_controls,
)
from krepes_ooc.stages.randomised.small_audit import StepResult
from tests import dense

DRAW = np.random.default_rng(5)
FIT, AUDIT, M, H, OUTPUTS, TOP = 60, 20, 16, 3, 4, 5
PHI = {name: DRAW.normal(size=(n, 9)) for name, n in (("fit", FIT), ("audit", AUDIT), ("l", M))}
UNIT = {name: rows / np.linalg.norm(rows, axis=1)[:, None] for name, rows in PHI.items()}
START, STEP, OFFSET = DRAW.normal(size=(M, H)), DRAW.normal(size=(M, H)), DRAW.normal(size=H)
SCORE = DRAW.normal(size=(AUDIT, M))


def samples(name: str) -> EvaluationRows:
    """Samples of one part, with two classes that their first feature decides."""
    kernel = UNIT[name] @ UNIT["l"].T
    f = kernel @ (START + STEP) + OFFSET
    network = UNIT[name][:, :OUTPUTS]
    label = (UNIT[name][:, 0] > 0).astype(np.int64)
    return EvaluationRows(np.arange(len(f)), label, kernel, f, f, f, None, network, None)


def rows() -> FidelityRows:
    """Rows of one network."""
    fit = samples("fit")
    found = StepResult(START, STEP, OFFSET, fit.kernel.T @ fit.kernel / FIT)
    top = np.argsort(-np.abs(SCORE), axis=1)[:, :TOP]
    return FidelityRows(fit, samples("audit"), samples("l"), found, SCORE, top, 2, 0, True)


def measured(given: FidelityRows) -> dict[str, float]:
    """Figures by key."""
    return dict(zip(CONTROLLED, fidelity_controls(given).tolist(), strict=True))


def test_figures_are_those_of_loops() -> None:
    given, found = rows(), measured(rows())
    audit, marks = given.audit, given.landmarks
    # Overlap with the ten nearest landmarks of the network's embedding.
    shared = []
    for t in range(AUDIT):
        distance = [np.linalg.norm(audit.network[t] - row) for row in marks.network]
        nearest = set(np.argsort(distance)[:10].tolist())
        shared.append(len(nearest & set(np.argsort(-SCORE[t])[:10].tolist())) / 10)
    assert found["neighbour_overlap"] == pytest.approx(np.mean(shared))
    assert found["spectral_entropy"] == pytest.approx(dense.spectral_entropy(START + STEP))
    error = dense.nystrom_error(given.fit.kernel, marks.kernel, np.ones(FIT), 9)
    assert found["nystrom_error"] == pytest.approx(error, abs=1e-6)
    hit = {}
    for name in ("embedding", "network"):
        first, second = getattr(given.fit, name), getattr(audit, name)
        hit[name] = linear_probe(first, given.fit.label, second, audit.label).accuracy
    gap = 100 * (hit["embedding"] - hit["network"])
    assert found["accuracy_gap"] == pytest.approx(gap)
    order = np.argsort(-np.linalg.norm(STEP, axis=1))
    assert found["coverage"] == dense.coverage(marks.label, order)
    assert found["drop_ratio"] * 0 == 0
    assert 0 <= found["decision_flips"] <= 1


def test_a_score_that_follows_the_network_overlaps_fully() -> None:
    given = rows()
    distance = np.linalg.norm(given.audit.network[:, None] - given.landmarks.network[None], axis=2)
    assert measured(replace(given, score=-distance))["neighbour_overlap"] == 1.0


def test_nothing_is_removed_with_landmarks_that_carry_nothing() -> None:
    given = rows()
    # Coefficients of the removed landmarks are 0: neither confidence nor decisions change.
    A = START + STEP
    A[:TOP] = 0.0
    found = StepResult(A, np.zeros_like(A), OFFSET, given.found.second)
    top = np.tile(np.arange(TOP), (AUDIT, 1))
    parts = {
        name: replace(part, embedding=part.kernel @ A + OFFSET)
        for name, part in (("fit", given.fit), ("audit", given.audit))
    }
    figures = measured(replace(given, found=found, top=top, **parts))
    assert figures["confidence_drop"] == pytest.approx(0.0, abs=1e-12)
    assert figures["drop_ratio"] == pytest.approx(0.0, abs=1e-9)


def test_without_classes_the_other_figures_stay() -> None:
    given = rows()
    one = replace(given, fit=replace(given.fit, label=np.full(FIT, -1)))
    known = {key for key, value in measured(one).items() if np.isfinite(value)}
    assert known == {"neighbour_overlap", "spectral_entropy", "nystrom_error"}
    # Where k(x, x) is not 1 the rows do not say what is missed.
    assert np.isnan(measured(replace(given, unit_kernel=False))["nystrom_error"])
