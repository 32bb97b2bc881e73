"""Convex weights against non-negative least squares, optimality, and degenerate landmarks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from krepes_ooc.stages.examples import convex_weights as cw


def nnls_on_simplex(target: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Oracle: differences from the target and one heavy equation for the sum, one sample."""
    D = (landmarks - target).T
    scale = np.abs(D).max() or 1.0
    heavy = 1e6
    system = np.vstack([D / scale, np.full(len(landmarks), heavy)])
    found = nnls(system, np.append(np.zeros(len(D)), heavy))[0]
    return found / found.sum()


def case(n: int = 60, m: int = 40, outputs: int = 16, seed: int = 0) -> tuple:
    draw = np.random.default_rng(seed)
    landmarks = draw.normal(size=(m, outputs)) + 3.0
    target = draw.dirichlet(np.full(m, 0.1), size=n) @ landmarks
    target += 0.2 * draw.normal(size=target.shape)
    return target, landmarks, cw.random_landmarks(n, m, 10, seed)


@pytest.mark.parametrize("outputs", [10, 16, 64])
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_those_of_nnls(outputs: int, seed: int) -> None:
    target, landmarks, chosen = case(outputs=outputs, seed=seed)
    found = cw.convex_weights(target, landmarks, chosen)
    expected = np.stack(
        [nnls_on_simplex(z, landmarks[few]) for z, few in zip(target, chosen, strict=True)]
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-12)
    assert (found >= 0).all()
    assert ((found > 0).sum(axis=1) > 1).any()


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_where_weights_are_not_unique_the_distance_is(outputs: int) -> None:
    """Fewer outputs than landmarks: many weights give the nearest point."""
    target, landmarks, chosen = case(outputs=outputs, n=100)
    found = cw.convex_weights(target, landmarks, chosen)
    point = cw.weighted_sum(found, landmarks, chosen)
    for z, few, here in zip(target, chosen, point, strict=True):
        best = nnls_on_simplex(z, landmarks[few]) @ landmarks[few]
        assert np.linalg.norm(z - here) <= np.linalg.norm(z - best) + 1e-5


def test_nothing_that_moves_weight_is_nearer() -> None:
    """Optimality: no landmark lies nearer to the target, seen from the point found."""
    target, landmarks, chosen = case(n=300)
    found = cw.convex_weights(target, landmarks, chosen)
    left = target - cw.weighted_sum(found, landmarks, chosen)
    towards = np.einsum("so,sko->sk", left, landmarks[chosen])
    here = np.einsum("sk,sk->s", found, towards)
    assert (towards.max(axis=1) - here).max() < 1e-6


def test_a_landmark_itself_takes_all_weight() -> None:
    target, landmarks, chosen = case()
    target[:5] = landmarks[chosen[:5, 3]]
    found = cw.convex_weights(target, landmarks, chosen)
    np.testing.assert_allclose(found[:5], np.eye(10)[np.full(5, 3)], atol=1e-6)


def test_equal_missing_and_single_landmarks() -> None:
    target, landmarks, chosen = case(n=4)
    landmarks[chosen[0]] = landmarks[chosen[0, 0]]
    chosen[1, 4:] = -1
    chosen[2] = -1
    chosen[3, 1:] = -1
    found = cw.convex_weights(target, landmarks, chosen)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=1), [1, 1, 0, 1], atol=1e-12)
    assert (found[1, 4:] == 0).all()
    assert found[3, 0] == 1.0
    everywhere = np.zeros((3, 5))
    assert np.isfinite(cw.convex_weights(everywhere, everywhere, np.zeros((3, 2), int))).all()


def test_all_landmarks_are_the_bound() -> None:
    target, landmarks, chosen = case()
    few = cw.weighted_sum(cw.convex_weights(target, landmarks, chosen), landmarks, chosen)
    whole = cw.weights_over_all(target, landmarks)
    assert (whole >= 0).all()
    everyone = np.tile(np.arange(len(landmarks)), (len(target), 1))
    exact = cw.convex_weights(target, landmarks, everyone) @ landmarks
    np.testing.assert_allclose(whole @ landmarks, exact, atol=1e-4)
    assert cw.share_explained(target, whole @ landmarks) > cw.share_explained(target, few)


def test_weights_of_many_samples_are_those_of_each_alone() -> None:
    target, landmarks, _ = case(n=300, m=1000, outputs=64)
    chosen = cw.nearest_landmarks(target, landmarks, 10)
    together = cw.convex_weights(target, landmarks, chosen)
    for i in (0, 17, 299):
        alone = cw.convex_weights(target[i : i + 1], landmarks, chosen[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], atol=1e-9)


def test_a_sample_does_not_explain_itself() -> None:
    ranked = np.array([[4, 2, 7], [4, 2, 7], [5, -1, -1]])
    found = cw.without_own(ranked, np.array([2, -1, 5]), 2)
    assert found.tolist() == [[4, 7], [4, 2], [-1, -1]]


def test_figures_of_exact_and_constant_targets() -> None:
    target, _, _ = case()
    assert cw.share_explained(target, target) == 1.0
    assert cw.share_explained(target, np.tile(target.mean(axis=0), (60, 1))) == pytest.approx(0.0)
    assert cw.share_explained(np.ones((4, 2)), np.zeros((4, 2))) == 0.0
    np.testing.assert_array_equal(cw.relative_residual(np.ones((4, 2)), np.zeros((4, 2))), 0.0)
    residual = cw.relative_residual(target, np.tile(target.mean(axis=0), (60, 1)))
    assert np.sqrt(np.mean(residual**2)) == pytest.approx(1.0)


def test_random_landmarks_are_distinct_and_keyed() -> None:
    found = cw.random_landmarks(50, 30, 10, 0)
    assert all(len(set(row)) == 10 for row in found.tolist())
    assert len({tuple(row) for row in found.tolist()}) == 50
    assert np.array_equal(found[:20], cw.random_landmarks(20, 30, 10, 0))
