"""Clusters, nearest landmarks, ranges and levels."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.groups.partitions import (
    cluster_landmarks,
    level_codes,
    nearest_landmark,
    range_codes,
    range_names,
)


def blobs(clusters: int = 3, each: int = 10) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    code = np.repeat(np.arange(clusters), each)
    points = 10 * np.eye(clusters)[code] + draw.normal(size=(clusters * each, clusters))
    return points @ points.T, code


def test_separate_clusters_are_told_apart():
    kernel, code = blobs()
    assert np.array_equal(cluster_landmarks(kernel, 3, seed=0), code)


def test_scatter_is_that_of_lloyd_in_input_space():
    kernel, _ = blobs()
    found = cluster_landmarks(kernel, 5, seed=0)
    assert set(found) == set(range(5))
    member = np.eye(5)[found] / np.bincount(found)
    centre = np.linalg.cholesky(kernel + 1e-9 * np.eye(30))
    distance = ((centre[:, None] - (member.T @ centre)[None]) ** 2).sum(axis=2)
    assert np.array_equal(distance.argmin(axis=1), found)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_duplicates_make_fewer_clusters(count: int):
    kernel = np.repeat(np.repeat(np.eye(3), 2, axis=0), 2, axis=1)
    found = cluster_landmarks(kernel, count, seed=3)
    assert found.max() + 1 == min(count, 3)
    assert np.array_equal(np.unique(found), np.arange(found.max() + 1))


def test_clusters_depend_on_the_seed_alone():
    kernel = np.cov(np.random.default_rng(0).normal(size=(40, 60)))
    assert np.array_equal(cluster_landmarks(kernel, 6, 1), cluster_landmarks(kernel, 6, 1))


def test_the_nearest_landmark_sums_views_and_takes_the_first_of_equals():
    views = [np.float32([[0, 1, 0], [2, 2, 0]]), np.float32([[3, 1, 0], [1, 1, 0]])]
    assert nearest_landmark(views).tolist() == [0, 0]
    assert views[0][0, 0] == 0


def test_ranges():
    assert range_codes(np.array([-1, 0, 1.5, 2, np.nan]), (0.0, 2.0)).tolist() == [0, 1, 1, 2, -1]
    assert range_names("a", (0.0, 2.0)) == ("a < 0", "0 <= a < 2", "a >= 2")
    assert range_names("a", (3.0,)) == ("a < 3", "a >= 3")


def test_levels_that_are_not_chosen_or_missing_have_no_group():
    values = np.array([0, 1, 2, 5, -1, np.nan])
    assert level_codes(values, np.array([2, 0])).tolist() == [1, -1, 0, -1, -1, -1]
