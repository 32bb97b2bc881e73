"""Sums over landmarks against loops, and removal on planted decisions."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.distilled.terms import (
    LinearReadout,
    flipped_share,
    logit_terms,
    random_landmarks,
    similarity_terms,
    without_landmarks,
)

SAMPLES, LANDMARKS, OUTPUTS, CLASSES = 9, 7, 4, 3


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    kernel, A = draw.normal(size=(SAMPLES, LANDMARKS)), draw.normal(size=(LANDMARKS, OUTPUTS))
    gamma, W = draw.normal(size=OUTPUTS), draw.normal(size=(OUTPUTS, CLASSES))
    return {"kernel": kernel, "A": A, "gamma": gamma, "W": W, "f": kernel @ A + gamma}


def test_terms_add_up_to_the_logit_and_the_similarity(arrays) -> None:
    kernel, A, gamma, W, f = arrays.values()
    readout = LinearReadout(W, np.array([0.3, -0.1, 0.2]))
    decided = readout.decisions(f)
    terms = logit_terms(kernel, A, W.T[decided])
    for t in range(SAMPLES):
        loop = [kernel[t, lm] * (A[lm] @ W[:, decided[t]]) for lm in range(LANDMARKS)]
        assert terms[t] == pytest.approx(loop)
        constant = gamma @ W[:, decided[t]] + readout.bias[decided[t]]
        assert sum(loop) + constant == pytest.approx(readout.logits(f)[t].max())
    other = f[::-1]
    pairs = similarity_terms(kernel, A, other).sum(axis=1) + other @ gamma
    assert pairs == pytest.approx(np.sum(f * other, axis=1))


def test_removed_landmarks_leave_the_sum(arrays) -> None:
    kernel, A, gamma, _, f = arrays.values()
    removed = random_landmarks(SAMPLES, LANDMARKS, 3, seed=1, draw=0)
    left = without_landmarks(f, kernel, A, removed)
    for t in range(SAMPLES):
        others = [lm for lm in range(LANDMARKS) if lm not in removed[t]]
        assert left[t] == pytest.approx(kernel[t, others] @ A[others] + gamma)
    everything = np.tile(np.arange(LANDMARKS), (SAMPLES, 1))
    assert without_landmarks(f, kernel, A, everything) == pytest.approx(
        np.tile(gamma, (SAMPLES, 1)), abs=1e-12
    )


def test_share_of_decisions_by_loops(arrays) -> None:
    kernel, A, gamma, W, f = arrays.values()
    readout = LinearReadout(W, np.zeros(CLASSES))
    removed = random_landmarks(SAMPLES, LANDMARKS, 2, seed=2, draw=0)
    flips = 0
    for t in range(SAMPLES):
        others = [lm for lm in range(LANDMARKS) if lm not in removed[t]]
        flips += np.argmax((kernel[t, others] @ A[others] + gamma) @ W) != np.argmax(f[t] @ W)
    assert flipped_share(readout, f, kernel, A, removed) == pytest.approx(flips / SAMPLES)


def test_a_planted_landmark_decides_alone() -> None:
    kernel = np.full((5, 6), 0.1)
    A = np.tile([0.0, 0.1], (6, 1))
    A[2] = [20.0, 0.0]
    readout, f = LinearReadout(np.eye(2), np.zeros(2)), kernel @ A
    assert (readout.decisions(f) == 0).all()
    first = np.argsort(-logit_terms(kernel, A, np.tile([1.0, 0.0], (5, 1))), axis=1)[:, :1]
    assert (first == 2).all()
    assert flipped_share(readout, f, kernel, A, first) == 1.0
    assert flipped_share(readout, f, kernel, A, np.full((5, 1), 4)) == 0.0


def test_random_landmarks_are_distinct_and_keyed() -> None:
    found = random_landmarks(20, 8, 5, seed=3, draw=1)
    assert all(len(set(row)) == 5 for row in found.tolist())
    assert (found == random_landmarks(20, 8, 5, seed=3, draw=1)).all()
    assert (found != random_landmarks(20, 8, 5, seed=3, draw=2)).any()
