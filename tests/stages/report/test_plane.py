"""Planes of the map against the singular value decomposition and a search over rotations."""

import numpy as np
import pytest

from krepes_ooc.stages.report.class_landmarks import class_landmarks
from krepes_ooc.stages.report.plane import Projected, principal_plane, turn_onto


def test_principal_plane_against_the_svd():
    draw = np.random.default_rng(0)
    samples = draw.normal(size=(40, 6)) * np.array([5, 3, 1, 1, 0.5, 0.1]) + 7
    landmarks = draw.normal(size=(9, 6))
    found = principal_plane(samples, landmarks)
    centred = samples - samples.mean(axis=0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    axes = right[:2].T
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    assert np.allclose(found.samples, centred @ axes)
    assert np.allclose(found.landmarks, (landmarks - samples.mean(axis=0)) @ axes)
    assert np.allclose(found.variance, (singular**2 / np.sum(singular**2))[:2])


def test_one_component_and_a_single_point():
    line = principal_plane(np.arange(4.0)[:, None], np.zeros((1, 1)))
    assert np.allclose(line.samples[:, 1], 0)
    assert line.variance.tolist() == [1, 0]
    point = principal_plane(np.ones((4, 3)), np.ones((2, 3)))
    assert np.isfinite(point.samples).all()
    assert turn_onto(point, line)[1] == 0


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_turned_plane_is_turned_back(mirror):
    draw = np.random.default_rng(1)
    reference = Projected(draw.normal(size=(30, 2)), draw.normal(size=(5, 2)), np.ones(2))
    angle = 0.8
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.diag([1.0, mirror])
    plane = Projected(3 * reference.samples @ turn, 3 * reference.landmarks @ turn, np.ones(2))
    found, likeness = turn_onto(plane, reference)
    assert likeness == pytest.approx(1)
    assert np.allclose(found.samples, 3 * reference.samples)
    assert np.allclose(found.landmarks, 3 * reference.landmarks)
    other = Projected(draw.normal(size=(30, 2)), reference.landmarks, np.ones(2))
    assert turn_onto(other, reference)[1] < 0.5


def test_class_landmarks_by_hand():
    label = np.array([0, 0, 1, -1])
    marks = np.array([0, 1, 1, 0])
    top = np.array([[0, 1], [-1, 3], [1, 0], [2, 1]])
    score = np.array([[2.0, 1.0], [9.0, 5.0], [1.0, -4.0], [7.0, 7.0]])
    found = class_landmarks(label, marks, top, score, 2, 2)
    assert found.samples.tolist() == [2, 1]
    # The first landmark of the second sample is itself, and left out
    assert found.first_same.tolist() == [2, 1]
    assert found.prototypes.tolist() == [[3, 0], [1, -1]]
    assert found.confusing.tolist() == [[1, -1], [0, -1]]
