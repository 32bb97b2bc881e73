"""Health of a network's own embedding, without any label.

    RankMe        exp(-sum_k p_k ln p_k),  p_k = sigma_k / sum sigma      of Z [sample, output]
    alignment     mean_i |u_i - u'_i|^2                    u, u': unit embeddings of two views
    uniformity    ln mean_{i != j} exp(-2 |u_i - u_j|^2)
    mean share    |mean z|^2 / mean |z|^2

Sources: Garrido et al. (2023), "RankMe: Assessing the downstream performance of pretrained
self-supervised representations by their rank"; Wang and Isola (2020), "Understanding contrastive
representation learning through alignment and uniformity on the hypersphere".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.stages.influence.scores import unit_rows

Float = npt.NDArray[np.float64]

COLLAPSED_RANK = 2.0
# A float32 network repeats a constant to about 1e-6 of its size.
FLOAT_NOISE = 1e-5
MOST_ROWS = 4096
_BLOCK = 512


@dataclass(frozen=True)
class EmbeddingHealth:
    """Figures of one embedding.

    Args:
        rank_me: effective rank, between 1 and the number of outputs.
        alignment: mean squared distance of the unit embeddings of two views; 0 is best.
        uniformity: log of the mean Gaussian potential of unit embeddings; 0 means one point.
        mean_share: share of the squared norm that lies in the mean embedding.
        dead_dimensions: outputs that are constant up to float noise.
        n_outputs: outputs of the network.
    """

    rank_me: float
    alignment: float
    uniformity: float
    mean_share: float
    dead_dimensions: int
    n_outputs: int

    @property
    def collapse(self) -> str:
        """Reason that the embedding counts as collapsed; empty if it does not."""
        if self.dead_dimensions == self.n_outputs:
            return "the embedding is constant up to float noise"
        if self.n_outputs > 1 and self.rank_me < COLLAPSED_RANK:
            return f"the embedding has an effective rank (RankMe) of {self.rank_me:.2f}, below 2"
        return ""


def embedding_health(clean: Float, first: Float, second: Float) -> EmbeddingHealth:
    """Figures of a network's embedding.

    Args:
        clean: embeddings [sample, output].
        first: embeddings of the first view of some samples [sample, output].
        second: of the second view of the same samples.
    """
    return EmbeddingHealth(
        rank_me(clean),
        alignment(first, second),
        uniformity(clean),
        mean_share(clean),
        int(dead_outputs(clean).sum()),
        clean.shape[1],
    )


def rank_me(embedding: Float) -> float:
    """Effective rank of an embedding [sample, output], un-centred; 1 for a zero embedding."""
    from scipy.special import entr  # on first use: scipy costs 0.2 s

    sigma = np.linalg.svd(embedding, compute_uv=False)
    total = sigma.sum()
    return float(np.exp(np.sum(entr(sigma / total)))) if total > 0 else 1.0


def alignment(first: Float, second: Float) -> float:
    """Mean squared distance of the unit embeddings [sample, output] of two views."""
    return float(np.mean(np.sum((unit_rows(first) - unit_rows(second)) ** 2, axis=1)))


def uniformity(embedding: Float) -> float:
    """Log of the mean Gaussian potential over pairs of the first samples [sample, output].

    At most ``MOST_ROWS`` samples enter; a single one gives 0.
    """
    u = unit_rows(embedding[:MOST_ROWS])
    n = len(u)
    if n < 2:
        return 0.0
    square, total = np.sum(u * u, axis=1), 0.0
    for start in range(0, n, _BLOCK):
        rows = u[start : start + _BLOCK]
        distance = square[start : start + _BLOCK, None] + square - 2.0 * rows @ u.T
        total += float(np.exp(-2.0 * np.maximum(distance, 0.0)).sum())
    # Each sample beside itself has potential 1.
    return float(np.log((total - n) / (n * (n - 1))))


def mean_share(embedding: Float) -> float:
    """Share of the mean squared norm that lies in the mean; 1 for a zero embedding."""
    size = float(np.mean(np.sum(embedding**2, axis=1)))
    return float(np.sum(embedding.mean(axis=0) ** 2) / size) if size > 0 else 1.0


def dead_outputs(embedding: Float) -> npt.NDArray[np.bool_]:
    """Which outputs [output] are constant up to float noise.

    The noise of an output follows its own size, and that of the whole embedding for an output
    that is nearly 0: rounding of sums of large activations.
    """
    size = np.sqrt(np.mean(embedding**2, axis=0))
    floor = FLOAT_NOISE * np.maximum(size, FLOAT_NOISE * size.max(initial=0.0))
    return np.asarray(np.std(embedding, axis=0) <= floor)
