"""Concepts of samples that are far from everything, and of audits without concepts."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.rendering.data import Landmarks
from krepes_ooc.stages.discovery.concept_map import ConceptMap
from krepes_ooc.stages.report.known_concepts import KnownConcepts

M, COMPONENTS = 6, 4


@pytest.fixture
def known() -> KnownConcepts:
    draw = np.random.default_rng(0)
    names = ("given", "concept 0", "concept 1")
    return KnownConcepts(
        names,
        ("given", "discovered", "discovered"),
        ((), ("mine",), ()),
        (True, True, False),
        draw.normal(size=(3, COMPONENTS)),
        ConceptMap(draw.normal(size=(M, 2)), np.array([-5.0, 5.0])),
    )


def test_a_sample_that_no_landmark_is_near_shows_no_concept(known: KnownConcepts) -> None:
    draw = np.random.default_rng(1)
    kernel = draw.normal(size=(3, M))
    kernel[1] = 0.0
    kernel[2] = 1e-8
    step = draw.normal(size=(M, COMPONENTS))
    found = known.of_samples(kernel, step, Landmarks(np.arange(M)))
    assert [any(each.shows for each in one.scores) for one in found] == [True, False, False]
    assert all(each.score == 0 for each in found[1].scores)
    assert all(value == 0 for part in found[1].by_landmark.values() for value in part.values())


def test_parts_of_landmarks_are_left_out_on_demand(known: KnownConcepts) -> None:
    draw = np.random.default_rng(2)
    kernel, step = draw.normal(size=(2, M)), draw.normal(size=(M, COMPONENTS))
    landmarks = Landmarks(np.arange(M))
    whole = known.of_samples(kernel, step, landmarks)
    short = known.of_samples(kernel, step, landmarks, by_landmark=False)
    assert [len(one.by_landmark) for one in whole] == [M, M]
    assert [len(one.by_landmark) for one in short] == [0, 0]
    for one, other in zip(whole, short, strict=True):
        assert [each.score for each in one.scores] == [each.score for each in other.scores]
        sums = np.sum([list(part.values()) for part in one.by_landmark.values()], axis=0)
        np.testing.assert_allclose(sums, [each.score for each in one.scores], atol=1e-12)
