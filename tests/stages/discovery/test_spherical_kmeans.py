"""Spherical k-means against a dense float64 Lloyd iteration, on planted and on degenerate rows."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.discovery import spherical_kmeans
from krepes_ooc.stages.discovery.concept_map import half_sample, stability
from krepes_ooc.stages.discovery.spherical_kmeans import (
    fit_clusters,
    nearest_centres,
    unit_rows,
)

REFITS = 3


def planted(seed: int = 0, noise: float = 0.15, sizes=(80, 60, 40, 20)) -> tuple:
    """Unit rows around orthogonal directions, and the direction of each."""
    draw = np.random.default_rng(seed)
    directions = np.linalg.qr(draw.normal(size=(12, len(sizes))))[0].T
    member = np.repeat(np.arange(len(sizes)), sizes)
    rows = (directions[member] + noise * draw.normal(size=(len(member), 12))).astype(np.float32)
    order = draw.permutation(len(rows))
    rows, member = rows[order], member[order]
    unit_rows(rows)
    return rows, member


def lloyd(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense float64 oracle without empty clusters."""
    Z = rows.astype(np.float64)
    winners = np.full(len(Z), -1)
    for _ in range(spherical_kmeans.MAX_ROUNDS):
        moved = np.argmax(Z @ centres.T, axis=1)
        if np.array_equal(moved, winners):
            break
        winners = moved
        sums = np.array([Z[winners == c].sum(axis=0) for c in range(len(centres))])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return centres, np.argmax(Z @ centres.T, axis=1)


@pytest.mark.parametrize("key", [0, 1, 2])
@pytest.mark.parametrize("chunk", [7, 2048])
def test_it_is_lloyds_iteration(monkeypatch: pytest.MonkeyPatch, key: int, chunk: int) -> None:
    monkeypatch.setattr(spherical_kmeans, "CHUNK", chunk)
    rows, _ = planted()
    centres, winners = lloyd(rows, spherical_kmeans._seed_centres(rows, 4, 5, key))
    found = fit_clusters(rows, 4, 5, key)
    order = np.argsort(-np.bincount(winners, minlength=4), kind="stable")
    np.testing.assert_allclose(found.centres, centres[order], atol=1e-6)
    assert found.count.tolist() == np.bincount(winners, minlength=4)[order].tolist()
    cosine = np.einsum("ij,ij->i", rows.astype(float), centres[winners])
    assert found.mean_cosine == pytest.approx(cosine.mean(), abs=1e-6)


def test_planted_directions_are_found_and_stable() -> None:
    rows, member = planted()
    found = max((fit_clusters(rows, 4, 0, key) for key in (0, 1)), key=lambda c: c.mean_cosine)
    winners, _ = nearest_centres(rows, found.centres)
    assert found.count.tolist() == [80, 60, 40, 20]
    assert np.array_equal(winners, member)
    refits = [
        fit_clusters(rows[half_sample(len(rows), 0, f)], 4, 0, 2 + f).centres for f in range(REFITS)
    ]
    assert (stability(found.centres, refits) > 0.9).all()


def test_rows_without_clusters_give_no_stable_centre() -> None:
    """The control: every row of the planted case with its entries shuffled."""
    rows, _ = planted()
    draw = np.random.default_rng(1)
    shuffled = np.stack([draw.permutation(row) for row in rows])
    found = max((fit_clusters(shuffled, 4, 0, key) for key in (0, 1)), key=lambda c: c.mean_cosine)
    refits = [
        fit_clusters(shuffled[half_sample(len(rows), 0, f)], 4, 0, 2 + f).centres
        for f in range(REFITS)
    ]
    assert (stability(found.centres, refits) < 0.8).all()


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [
        (np.ones((9, 3)), 4, 1),
        (np.eye(3), 20, 3),
        (np.repeat(np.eye(3), 5, axis=0), 20, 3),
        (np.eye(3)[:1], 2, 1),
        (np.random.default_rng(0).normal(size=(150, 130)), 100, 100),
    ],
)
def test_no_more_centres_than_directions(rows: np.ndarray, count: int, expected: int) -> None:
    given = rows.astype(np.float32)
    unit_rows(given)
    found = fit_clusters(given, count, 0, 0)
    assert len(found.centres) == expected
    assert found.count.sum() == len(rows)
    assert (found.count > 0).all()
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1.0, atol=1e-6)


def test_rows_of_rounding_have_no_direction() -> None:
    rows = np.array([[3.0, 4.0], [1e-9, 0.0], [0.0, 0.0]], dtype=np.float32)
    assert unit_rows(rows).tolist() == [True, False, False]
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [0, 0]], atol=1e-7)


def test_a_fit_can_be_stopped() -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit_clusters(planted()[0], 4, 0, 0, stop)
