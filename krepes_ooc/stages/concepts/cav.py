"""Concept activation vectors: directions between two sample sets, and influence along them.

The concept vector v_c is the unit normal of a linear discriminant between positive and negative
samples, with shrinkage: (0.9 S + 0.1 tr(S)/h I)^-1 (mean of positive - of negative), S the mean
of both sets' covariances of standardised embeddings. It is regularised, exact and needs no solver.
The influence of landmark l on sample t along it is k_lt <dA_l, v_c>.
Source: Kim et al. (2018), "Interpretability beyond feature attribution" (TCAV), with KREPES's
concept-conditioned influence (arXiv 2509.24467).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FOLDS = 5
SHRINKAGE = 0.1
_FOLD = 401
_RANDOM = 402


@dataclass(frozen=True)
class ConceptVector:
    """A concept vector with its held-out accuracy and that of random concepts.

    Args:
        vector: v_c [component], unit length; points from the negative to the positive set.
        accuracy: held-out balanced accuracy, mean over folds.
        random: held-out balanced accuracy of random concepts on the same samples [draw].
    """

    vector: Float
    accuracy: float
    random: Float

    @property
    def p_value(self) -> float:
        """Share of random concepts that are recognised as well, this one counted."""
        return float((1 + np.sum(self.random >= self.accuracy)) / (1 + len(self.random)))

    @property
    def trusted(self) -> bool:
        """True if the concept is recognised better than chance at the 5 % level."""
        return self.p_value <= 0.05


def concept_vector(
    rows: Float, positive: Mask, key: Index, seed: int, draws: int = 99
) -> ConceptVector:
    """The concept vector of two sample sets with its held-out accuracy and its control.

    The control shuffles which samples are positive: sets of the same sizes that mean nothing. All
    draws are keyed by sample, so that the order of the rows does not matter.

    Args:
        rows: embeddings of both sets [sample, component].
        positive: which rows are positive [sample]; at least two of either kind.
        key: sample ids [sample].
        seed: of folds and random concepts.
        draws: random concepts; 5 % needs at least 19.
    """
    # Control: random positive sets of the same size, keyed by sample id
    random = np.empty(draws)
    for draw in range(draws):
        order = np.argsort(counter_rng.bits(seed, _RANDOM, draw, key), kind="stable")
        shuffled = np.zeros(len(rows), dtype=bool)
        shuffled[order[: int(positive.sum())]] = True
        random[draw] = held_out_accuracy(rows, shuffled, key, seed)
    accuracy = held_out_accuracy(rows, positive, key, seed)
    return ConceptVector(normal(rows, positive), accuracy, random)


def normal(rows: Float, positive: Mask) -> Float:
    """Unit normal [component] of the classifier between two sets, towards the positive one.

    A zero vector where the sets have the same mean.
    """
    weight, _ = classifier(rows, positive)
    length = np.linalg.norm(weight)
    return np.asarray(weight / length if length > 0 else weight)


def classifier(rows: Float, positive: Mask) -> tuple[Float, float]:
    """Weights [component] and threshold of the discriminant; positive where rows @ w > threshold.

    Args:
        rows: [sample, component].
        positive: [sample]; both kinds occur.
    """
    # Standardised embeddings of both sets; a constant component stays as it is
    spread = rows.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    sets = [rows[kind] / scale for kind in (positive, ~positive)]
    means = [part.mean(axis=0) for part in sets]
    # Pooled within-set covariance
    S = sum(
        (part - mean).T @ (part - mean) / len(part) for part, mean in zip(sets, means, strict=True)
    )
    S = np.asarray(S) / 2.0
    # Shrinkage towards the mean eigenvalue: (0.9 S + 0.1 tr(S)/h I)^-1 (mean_+ - mean_-)
    ridge = SHRINKAGE * np.trace(S) / len(S) + np.finfo(float).tiny
    shrunk = (1.0 - SHRINKAGE) * S + ridge * np.eye(len(S))
    weight = np.linalg.lstsq(shrunk, means[0] - means[1], rcond=None)[0]
    # Back to the scale of the rows; the threshold lies midway between the means
    return weight / scale, float(weight @ (means[0] + means[1]) / 2.0)


def held_out_accuracy(rows: Float, positive: Mask, key: Index, seed: int) -> float:
    """Balanced accuracy of the classifier over held-out folds; 0.5 is chance, ties count as half.

    Args:
        rows: [sample, component].
        positive: [sample].
        key: sample ids that deal the samples of either set to the folds [sample].
        seed: of the folds.
    """
    fold = folds(positive, key, seed)
    hit = np.empty(len(rows))
    for k in range(int(fold.max()) + 1):
        test = fold == k
        weight, threshold = classifier(rows[~test], positive[~test])
        side = np.sign(rows[test] @ weight - threshold)
        # 1 for a hit, 0 for a miss, 1/2 on the threshold
        hit[test] = (1.0 + side * np.where(positive[test], 1.0, -1.0)) / 2.0
    # Balanced: each set counts as half
    return float((hit[positive].mean() + hit[~positive].mean()) / 2.0)


def folds(positive: Mask, key: Index, seed: int) -> Index:
    """Fold of every sample [sample]: either set dealt evenly, in an order keyed by sample id."""
    count = min(FOLDS, int(positive.sum()), int((~positive).sum()))
    fold = np.empty(len(positive), dtype=np.int64)
    for kind in (True, False):
        members = np.flatnonzero(positive == kind)
        order = np.argsort(counter_rng.bits(seed, _FOLD, key[members]), kind="stable")
        fold[members[order]] = np.arange(len(members)) % count
    return fold


def sample_scores(kernel: Float, step: Float, vectors: Float) -> Float:
    """Influence of all landmarks along every concept: sum_l k_lt <dA_l, v_c> [audited, concept].

    This is <df_t, v_c>, the displacement of the sample by the step along the concept.

    Args:
        kernel: [audited, landmark].
        step: dA [landmark, component].
        vectors: v_c [concept, component].
    """
    return np.asarray(kernel @ (step @ vectors.T))


def landmark_scores(kernel: Float, step: Float, vectors: Float) -> Float:
    """Mean size of a landmark's influence along a concept, signed as <dA_l, v_c>.

    mean_t |k_lt| <dA_l, v_c> [concept, landmark]: the sign of k_lt is left out, because centred
    kernel values cancel over the samples.
    """
    return np.asarray(np.abs(kernel).mean(axis=0) * (vectors @ step.T))
