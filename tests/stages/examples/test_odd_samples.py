"""Novelty and mixing against their definitions; planted samples are found."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.examples import odd_samples
from krepes_ooc.stages.examples.odd_samples import closeness, mixing


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
