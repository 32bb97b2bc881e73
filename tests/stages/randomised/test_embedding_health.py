"""Health of an embedding against loops, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.randomised import embedding_health as health


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_figures_by_loops() -> None:
    draw = np.random.default_rng(0)
    clean, first, second = draw.normal(size=(3, 40, 6)) + 0.5
    found = health.embedding_health(clean, first, second)
    sigma = np.sqrt(np.linalg.eigvalsh(clean.T @ clean))
    p = sigma / sigma.sum()
    assert found.rank_me == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    distance = [np.sum((a - b) ** 2) for a, b in zip(unit(first), unit(second), strict=True)]
    assert found.alignment == pytest.approx(np.mean(distance))
    u = unit(clean)
    potential = [
        np.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i in range(40) for j in range(40) if i != j
    ]
    assert found.uniformity == pytest.approx(np.log(np.mean(potential)))
    mean = clean.mean(axis=0)
    assert found.mean_share == pytest.approx(mean @ mean / np.mean(np.sum(clean**2, axis=1)))
    assert (found.dead_dimensions, found.n_outputs, found.collapse) == (0, 6, "")


def test_uniformity_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).normal(size=(50, 3))
    whole = health.uniformity(rows)
    monkeypatch.setattr(health, "_BLOCK", 7)
    assert health.uniformity(rows) == pytest.approx(whole, abs=1e-13)
    assert health.uniformity(rows[:1]) == 0.0


def test_rank_of_known_spectra() -> None:
    assert health.rank_me(np.eye(5)) == pytest.approx(5.0)
    assert health.rank_me(np.ones((9, 4))) == pytest.approx(1.0)
    assert health.rank_me(np.zeros((9, 4))) == 1.0


def test_a_constant_embedding_is_collapsed_up_to_float_noise() -> None:
    noise = np.random.default_rng(2).normal(size=(30, 4))
    constant = np.full((30, 4), 3.0) + 1e-6 * noise
    found = health.embedding_health(constant, constant, constant)
    assert found.dead_dimensions == 4
    assert found.collapse == "the embedding is constant up to float noise"
    assert health.embedding_health(*[np.zeros((30, 4))] * 3).collapse


def test_an_embedding_near_one_direction_is_collapsed() -> None:
    rows = np.ones((30, 4)) + 1e-2 * np.random.default_rng(3).normal(size=(30, 4))
    found = health.embedding_health(rows, rows, rows)
    assert found.dead_dimensions == 0
    assert "effective rank (RankMe) of 1." in found.collapse


def test_one_output_is_no_collapse() -> None:
    rows = np.random.default_rng(4).normal(size=(30, 1))
    assert not health.embedding_health(rows, rows, rows).collapse


def test_dead_outputs_among_live_ones() -> None:
    rows = np.random.default_rng(5).normal(size=(30, 3))
    rows[:, 1], rows[:, 2] = 0.0, 100.0
    assert health.dead_outputs(rows).tolist() == [False, True, True]
