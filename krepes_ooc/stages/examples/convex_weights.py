"""Samples as convex sums of landmarks in the network's embedding.

    min_w |z_t - sum_l w_l z_l|^2,   w_l >= 0,   sum_l w_l = 1,     l among a sample's landmarks

Because the weights sum to 1 this is the point of least norm in the hull of the differences
d_l = z_l - z_t, a quadratic program in their Gram matrix: G w = mu 1 on the support, G w >= mu
beside it. All samples are solved at once by the active set method of Wolfe (1976), "Finding the
nearest point in a polytope". The measure is that of Crabbe et al. (2021), "Explaining latent
representations with a corpus of examples".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NONE = -1
# Shares of the mean squared difference: what makes equal landmarks share a weight, and the slack
# of the optimality condition.
RIDGE, TOLERANCE = 1e-10, 1e-12
_RANDOM_STREAM = 841


def convex_weights(target: Float, landmarks: Float, chosen: Index) -> Float:
    """Weights [sample, rank] of the chosen landmarks of every sample.

    Args:
        target: the network's embedding of the samples [sample, output].
        landmarks: that of the landmarks [landmark, output].
        chosen: landmarks of every sample; ``NONE`` where there are fewer [sample, rank].

    Returns:
        Non-negative, sum 1; 0 beside ``NONE``; all 0 for a sample without landmarks.
    """
    available = chosen >= 0
    difference = landmarks[np.where(available, chosen, 0)] - target[:, None, :]
    gram = np.einsum("sko,slo->skl", difference, difference)
    return least_norm_weights(gram, available)


def least_norm_weights(gram: Float, available: Mask) -> Float:
    """Weights w on the simplex that minimise w^T G w, for many G at once [sample, rank].

    Args:
        gram: G, positive semidefinite [sample, rank, rank].
        available: entries that may have a weight [sample, rank].
    """
    n, k = available.shape
    diagonal = np.einsum("skk->sk", gram)
    size = np.where(available, diagonal, 0.0).sum(axis=1) / np.maximum(available.sum(axis=1), 1)
    G = gram + RIDGE * size[:, None, None] * np.eye(k)
    # The start is the nearest landmark alone.
    w = np.zeros((n, k))
    some = np.flatnonzero(available.any(axis=1))
    first = np.argmin(np.where(available, diagonal, np.inf), axis=1)
    w[some, first[some]] = 1.0
    support = w > 0
    active = some
    for _ in range(10 * k):
        slope = np.einsum("skl,sl->sk", G[active], w[active])
        multiplier = np.sum(w[active] * slope, axis=1)
        outside = available[active] & ~support[active]
        gain = np.where(outside, slope - multiplier[:, None], np.inf)
        enters = np.argmin(gain, axis=1)
        improves = gain[np.arange(len(active)), enters] < -TOLERANCE * size[active]
        active = active[improves]
        if not active.size:
            break
        support[active, enters[improves]] = True
        w[active], support[active] = _descend(G[active], w[active], support[active])
    return w


def _descend(G: Float, w: Float, support: Mask) -> tuple[Float, Mask]:
    """Minimum on the support, which loses entries until no weight is below 0."""
    w, support = w.copy(), support.copy()
    left = np.arange(len(w))
    for _ in range(support.shape[1]):
        solved = _on_support(G[left], support[left])
        falls = support[left] & (solved <= 0)
        whole = ~falls.any(axis=1)
        w[left[whole]] = solved[whole]
        left, solved, falls = left[~whole], solved[~whole], falls[~whole]
        if not left.size:
            break
        # As far towards the minimum as the weights allow; the first that reaches 0 leaves.
        step = w[left] - solved
        ratio = np.where(falls, w[left] / np.where(falls, step, 1.0), np.inf)
        leaves = np.argmin(ratio, axis=1)
        length = np.take_along_axis(ratio, leaves[:, None], axis=1)
        moved = np.maximum(w[left] - length * step, 0.0)
        moved[np.arange(len(left)), leaves] = 0.0
        w[left] = moved / moved.sum(axis=1, keepdims=True)
        support[left] &= moved > 0
    return w, support


def _on_support(G: Float, support: Mask) -> Float:
    """Minimum of w^T G w with sum 1 on each support, signs free [sample, rank]."""
    n, k = support.shape
    system = np.zeros((n, k + 1, k + 1))
    both = support[:, :, None] & support[:, None, :]
    # Scaled, so that the row of the sum is of the size of the others.
    size = np.maximum(np.einsum("skk->s", np.where(both, G, 0.0)), np.finfo(float).tiny)
    system[:, :k, :k] = np.where(both, G / size[:, None, None], np.eye(k))
    system[:, :k, k] = system[:, k, :k] = support
    right = np.zeros((n, k + 1, 1))
    right[:, k] = 1.0
    solved = np.linalg.solve(system, right)[:, :k, 0]
    return np.where(support, solved, 0.0)


def weighted_sum(weights: Float, landmarks: Float, chosen: Index) -> Float:
    """sum_l w_l z_l [sample, output]."""
    return np.asarray(np.einsum("sk,sko->so", weights, landmarks[np.maximum(chosen, 0)]))


def share_explained(target: Float, found: Float) -> float:
    """R^2 over samples and outputs; 0 where the target does not vary."""
    spread = float(np.sum((target - target.mean(axis=0)) ** 2))
    return 1.0 - float(np.sum((target - found) ** 2)) / spread if spread > 0 else 0.0


def relative_residual(target: Float, found: Float) -> Float:
    """|z_t - sum_l w_l z_l| over the root mean square of |z - mean| [sample]."""
    spread = float(np.sqrt(np.mean(np.sum((target - target.mean(axis=0)) ** 2, axis=1))))
    distance = np.linalg.norm(target - found, axis=1)
    return np.asarray(distance / spread if spread > 0 else np.zeros(len(target)))


def without_own(ranked: Index, own: Index, count: int) -> Index:
    """The first ``count`` landmarks of a ranking that are not the sample itself [sample, rank].

    Args:
        ranked: landmarks, first to last; ``NONE`` where there are fewer [sample, rank].
        own: landmark that is the sample itself, or ``NONE`` [sample].
        count: landmarks at most; fewer come back where fewer are ranked.
    """
    is_own = (ranked == own[:, None]) | (ranked < 0)
    order = np.argsort(is_own, axis=1, kind="stable")
    kept = np.where(
        np.take_along_axis(is_own, order, axis=1), NONE, np.take_along_axis(ranked, order, axis=1)
    )
    return kept[:, :count]


def nearest_landmarks(target: Float, landmarks: Float, count: int) -> Index:
    """Landmarks of the least distance in the embedding, nearest first [sample, rank]."""
    square = np.sum(landmarks**2, axis=1) - 2.0 * target @ landmarks.T
    return np.argsort(square, axis=1, kind="stable")[:, :count].astype(np.int64)


def random_landmarks(n_samples: int, n_landmarks: int, count: int, seed: int) -> Index:
    """Distinct landmarks, drawn uniformly for every sample [sample, rank]."""
    samples, landmarks = np.arange(n_samples)[:, None], np.arange(n_landmarks)
    keys = counter_rng.bits(seed, _RANDOM_STREAM, samples, landmarks)
    return np.argsort(keys, axis=1, kind="stable")[:, :count].astype(np.int64)


def weights_over_all(target: Float, landmarks: Float) -> Float:
    """Convex weights over all landmarks by non-negative least squares [sample, landmark].

    The sum is held by one more equation of large weight (Lawson and Hanson 1974, chapter 22).
    """
    from scipy.optimize import nnls  # on first use: 0.2 s

    centre = landmarks.mean(axis=0)
    scale = float(np.abs(landmarks - centre).max(initial=0.0)) or 1.0
    heavy = 1e3
    system = np.vstack([(landmarks - centre).T / scale, np.full(len(landmarks), heavy)])
    right = np.column_stack([(target - centre) / scale, np.full(len(target), heavy)])
    found = np.stack([nnls(system, row)[0] for row in right])
    return np.asarray(found / found.sum(axis=1, keepdims=True))
