"""Novelty, near duplicates and mixing against their definitions; planted ones are found."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.examples import odd_samples
from krepes_ooc.stages.examples.odd_samples import closeness, mixing, near_pairs


@pytest.fixture(params=[7, 256])
def row_range(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(odd_samples, "ROWS", request.param)


@pytest.mark.usefixtures("row_range")
def test_closeness_is_the_mean_of_the_largest_without_itself() -> None:
    draw = np.random.default_rng(0)
    kernel, own = draw.normal(size=(40, 25)), np.full(40, -1)
    own[:25] = np.arange(25)
    kernel[np.arange(25), np.arange(25)] = 9.0
    found = closeness(kernel, own)
    for sample in range(40):
        others = np.delete(kernel[sample], own[sample]) if own[sample] >= 0 else kernel[sample]
        assert found[sample] == pytest.approx(np.sort(others)[-10:].mean())
    assert (kernel[np.arange(25), np.arange(25)] == 9.0).all()


@pytest.mark.parametrize("m", [1, 2, 5])
def test_closeness_with_few_landmarks(m: int) -> None:
    kernel = np.eye(m)
    assert np.isfinite(closeness(kernel, np.arange(m))).all()
    assert np.isfinite(closeness(kernel, np.full(m, -1))).all()


@pytest.mark.usefixtures("row_range")
@pytest.mark.parametrize("count", [1, 30, 5000])
def test_pairs_are_those_of_all_distances(count: int) -> None:
    rows = np.random.default_rng(1).normal(size=(50, 4)) + 100.0
    spread = np.sqrt(np.mean(np.sum((rows - rows.mean(axis=0)) ** 2, axis=1)))
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2) / spread
    upper = np.triu_indices(50, 1)
    order = np.argsort(distance[upper])[:count]
    found = near_pairs(rows, count)
    np.testing.assert_allclose(found.distance, distance[upper][order], atol=1e-7)
    assert found.first.tolist() == upper[0][order].tolist()
    assert found.second.tolist() == upper[1][order].tolist()
    np.fill_diagonal(distance, np.inf)
    assert np.array_equal(found.nearest, distance.argmin(axis=1))
    np.testing.assert_allclose(found.nearest_distance, distance.min(axis=1), atol=1e-7)


def test_planted_copies_are_found_first() -> None:
    draw = np.random.default_rng(2)
    rows = draw.normal(size=(1500, 16))
    copies = draw.choice(1300, 200, replace=False)
    rows[1300:] = rows[copies] + 0.01 * draw.normal(size=(200, 16))
    found = near_pairs(rows, 200)
    planted = {(int(a), 1300 + i) for i, a in enumerate(copies)}
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == planted


@pytest.mark.parametrize("n", [1, 2])
def test_pairs_of_almost_nothing(n: int) -> None:
    found = near_pairs(np.ones((n, 3)), 10)
    assert len(found.distance) == (n == 2)
    assert len(found.nearest) == n
    assert np.isfinite(found.nearest_distance).all()


def test_far_samples_are_the_most_novel() -> None:
    draw = np.random.default_rng(3)
    inside = draw.normal(size=(300, 8)) + 4 * np.eye(8)[draw.integers(0, 3, 300)]
    outside = draw.normal(size=(20, 8)) - 4 * np.eye(8)[draw.integers(3, 8, 20)]
    landmarks = inside[:80]
    samples = np.concatenate([inside[80:], outside])
    unit = samples / np.linalg.norm(samples, axis=1, keepdims=True)
    kernel = unit @ (landmarks / np.linalg.norm(landmarks, axis=1, keepdims=True)).T
    found = np.argsort(closeness(kernel, np.full(len(samples), -1)))[:20]
    assert np.mean(found >= 220) > 0.8


def test_mixing_is_what_the_largest_group_leaves() -> None:
    weights = np.array([[0.5, 0.3, 0.2], [1.0, 0, 0], [0, 0, 0], [0.4, 0.4, 0.2], [0.5, 0.5, 0]])
    groups = np.array([[0, 1, 0], [2, 1, 1], [0, 0, 0], [-1, 1, 2], [-1, -1, -1]])
    np.testing.assert_allclose(mixing(weights, groups), [0.3, 0, 0, 1 / 3, 0])
    assert (mixing(weights, np.full((5, 3), -1)) == 0).all()
