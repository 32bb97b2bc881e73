from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.neighbour_overlap import (
    NEIGHBOURS,
    nearest_landmarks,
    neighbour_overlap_figure,
    sample_overlap,
)
from krepes_ooc.stages.fidelity.precision_at_1 import LandmarkRankings
from krepes_ooc.stages.fidelity.rows import EvaluationRows

RNG = np.random.default_rng(12)
N, M, H = 80, 40, 3


def rows(network: np.ndarray, kernel: np.ndarray, inputs: np.ndarray | None) -> EvaluationRows:
    """Samples without any label."""
    f = kernel @ np.ones((M, H))
    unknown = np.full(len(network), -1)
    return EvaluationRows(np.arange(len(network)), unknown, kernel, f, f, f, None, network, inputs)


def rankings(measure: str = "is", **changes: Any) -> LandmarkRankings:
    """The network places samples in a plane; the kernel sees it, the inputs are noise."""
    place, marks = RNG.normal(size=(N, 2)), RNG.normal(size=(M, 2))

    def kernel(points: np.ndarray) -> np.ndarray:
        square = np.sum((points[:, None] - marks) ** 2, axis=2)
        return np.asarray(np.exp(-square))

    audit = rows(place, kernel(place), RNG.normal(size=(N, 6)))
    landmarks = rows(marks, kernel(marks), RNG.normal(size=(M, 6)))
    # The step of one landmark is so large that the paper's score always names it first
    step = RNG.normal(size=(M, H)) * 10.0 ** RNG.uniform(0, 4, M)[:, None]
    found = LandmarkRankings(audit, landmarks, step, step, np.eye(M), measure, 0)
    return dataclasses.replace(found, **changes)


def naive(scores: np.ndarray, place: np.ndarray, marks: np.ndarray) -> float:
    shares = []
    for t in range(len(place)):
        distance = [np.linalg.norm(place[t] - mark) for mark in marks]
        near = sorted(range(len(marks)), key=lambda one: (distance[one], one))[:NEIGHBOURS]
        first = sorted(range(len(marks)), key=lambda one: (-scores[t, one], one))[:NEIGHBOURS]
        shares.append(len({*near} & {*first}) / NEIGHBOURS)
    return float(np.mean(shares))


def test_overlap_is_that_of_a_naive_count() -> None:
    data = rankings()
    found = neighbour_overlap_figure(data)
    place, marks = data.audit.network, data.landmarks.network
    assert found.value == pytest.approx(naive(data.own_scores, place, marks))
    for key, scores in data.label_free_rankings.items():
        if key != "network_cosine_centred":
            assert found.control(key).value == pytest.approx(naive(scores, place, marks)), key
    assert found.control("random").value == NEIGHBOURS / M
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]


def test_a_ranking_by_large_steps_loses_to_the_plain_kernel() -> None:
    """The control wins: the paper's score follows the size of the step, not the network."""
    found = neighbour_overlap_figure(rankings())
    assert found.control("kernel").value == pytest.approx(1.0)
    assert found.value < 0.7
    assert found.paired["step_against_kernel"].interval[1] < 0
    assert found.paired["against_inputs"].value == pytest.approx(
        found.value - found.control("input_cosine").value
    )


def test_a_ranking_by_the_kernel_beats_inputs_that_are_noise() -> None:
    found = neighbour_overlap_figure(rankings("kernel"))
    assert found.value == pytest.approx(1.0)
    assert "step_against_kernel" not in found.paired
    assert found.paired["against_inputs"].interval[0] > 0
    # A quarter of the landmarks are among ten of forty by chance
    assert found.control("input_cosine").value == pytest.approx(NEIGHBOURS / M, abs=0.06)


def test_a_kernel_that_knows_nothing_of_the_network_is_at_chance() -> None:
    data = rankings("kernel")
    shuffled = data.audit.network[RNG.permutation(N)]
    other = dataclasses.replace(data, audit=dataclasses.replace(data.audit, network=shuffled))
    found = neighbour_overlap_figure(other)
    assert found.value < 0.5 < neighbour_overlap_figure(data).value


def test_distance_is_blind_to_a_common_mean_and_rotation() -> None:
    x, y = RNG.normal(size=(30, 4)), RNG.normal(size=(50, 4))
    rotation = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    found = nearest_landmarks(x, y, 10)
    np.testing.assert_array_equal(
        found, nearest_landmarks(x @ rotation + 1e4, y @ rotation + 1e4, 10)
    )
    distance = np.linalg.norm(x[:, None] - y, axis=2)
    np.testing.assert_array_equal(found, np.argsort(distance, axis=1, kind="stable")[:, :10])


def test_ties_go_to_the_lower_index() -> None:
    nearest = nearest_landmarks(np.zeros((1, 2)), np.ones((5, 2)) * [[1], [1], [0], [1], [1]], 3)
    assert nearest.tolist() == [[2, 0, 1]]
    assert sample_overlap(np.zeros((1, 5)), nearest).tolist() == [1.0]


def test_what_is_not_defined_is_said_in_words() -> None:
    data = rankings()
    alike = dataclasses.replace(data.landmarks, network=np.ones((M, 2)))
    with pytest.raises(StageFailed, match="expected landmarks whose embeddings differ"):
        neighbour_overlap_figure(dataclasses.replace(data, rows=alike))
    few = dataclasses.replace(data.landmarks, network=data.landmarks.network[:NEIGHBOURS])
    with pytest.raises(StageFailed, match="expected more than 10 landmarks"):
        neighbour_overlap_figure(dataclasses.replace(data, rows=few))
    nobody = data.audit.take(np.zeros(N, dtype=bool))
    with pytest.raises(StageFailed, match="nearest landmarks is not defined"):
        neighbour_overlap_figure(dataclasses.replace(data, audit=nobody))
