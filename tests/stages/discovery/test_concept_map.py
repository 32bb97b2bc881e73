"""Activations against the map that they come from, matches, halves and random directions."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.discovery.concept_map import (
    ConceptMap,
    half_sample,
    nystrom_projection,
    random_centres,
    stability,
)


def test_activation_is_the_product_with_the_centred_map() -> None:
    draw = np.random.default_rng(0)
    X, L = draw.normal(size=(50, 6)), draw.normal(size=(9, 6))
    K, K_mm = X @ L.T, L @ L.T
    values, vectors = np.linalg.eigh(K_mm)
    P = nystrom_projection(values[::-1], vectors[:, ::-1], 6)
    assert P.shape == (9, 6)
    # A linear kernel of rank 6: the map keeps all inner products.
    Z = K @ P
    np.testing.assert_allclose(Z @ Z.T, X @ X.T, atol=1e-9)
    centres = random_centres(4, 6, seed=1)
    found = ConceptMap.of_centres(centres, Z.mean(axis=0), P)
    np.testing.assert_allclose(found.activation(K), (Z - Z.mean(axis=0)) @ centres.T, atol=1e-9)
    cosine = found.activation(K) / np.linalg.norm(Z - Z.mean(axis=0), axis=1, keepdims=True)
    assert np.array_equal(found.winners(K), np.argmax(cosine, axis=1))


def test_fewer_known_eigenvectors_or_positive_eigenvalues_lower_the_rank() -> None:
    assert nystrom_projection(np.array([3.0, 2.0, 1.0]), np.eye(3)[:, :2], 3).shape == (3, 2)
    assert nystrom_projection(np.array([3.0, 0.0, -1.0]), np.eye(3), 3).shape == (3, 1)


def test_stability_matches_one_to_one() -> None:
    centres = np.eye(4)
    assert stability(centres, [centres[[2, 0, 3, 1]]]).tolist() == [1.0] * 4
    # Two refits, one of which lost a centre: it counts 0 there.
    assert stability(centres, [centres, centres[:3]]).tolist() == [1, 1, 1, 0.5]
    # A refit with one centre for two concepts matches only one of them.
    between = np.array([[1.0, 0.9, 0, 0]]) / np.hypot(1.0, 0.9)
    found = stability(centres, [between])
    assert found[0] == pytest.approx(1 / np.hypot(1.0, 0.9))
    assert found[1] == 0.0


def test_halves_are_keyed_and_differ() -> None:
    halves = [half_sample(101, 3, key) for key in range(3)]
    assert all(len(set(half.tolist())) == 50 for half in halves)
    assert not np.array_equal(halves[0], halves[1])
    assert np.array_equal(halves[0], half_sample(101, 3, 0))
    assert half_sample(1, 0, 0).tolist() == [0]


def test_random_centres_are_unit_and_spread() -> None:
    centres = random_centres(200, 30, 0)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1.0)
    assert np.abs(centres.mean(axis=0)).max() < 5 / np.sqrt(200 * 30)
