"""Exact sums over landmarks behind a decision or a similarity, and what removing terms does.

With f_t = sum_l k_lt A_l + gamma for any coefficients A (the step's, or distilled ones):

    logit of a probe      w . f_t + b    = sum_l k_lt <A_l, w>   + (<gamma, w> + b)
    similarity            <f_t, f_y>     = sum_l k_lt <A_l, f_y> + <gamma, f_y>

Source: Yeh et al. (2018), "Representer point selection", for sums over samples behind a logit;
deletion as a test: Samek et al. (2017), "Evaluating the visualization of what a deep neural
network has learned".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

_RANDOM_STREAM = 711


@dataclass(frozen=True)
class LinearReadout:
    """A linear classifier on embeddings.

    Args:
        weight: w of every class [output, class].
        bias: [class].
    """

    weight: Float
    bias: Float

    def logits(self, embedding: Float) -> Float:
        """Logits [sample, class] of embeddings [sample, output]."""
        return np.asarray(embedding @ self.weight + self.bias)

    def decisions(self, embedding: Float) -> Index:
        """Class of the largest logit [sample]; the lower code among equals."""
        return np.asarray(self.logits(embedding).argmax(axis=1))


@dataclass(frozen=True)
class LandmarkSum:
    """A value as the exact sum of one term for each landmark and a constant.

    Args:
        terms: [landmark].
        constant: what no landmark has a part in.
        value: the same value, computed from the embedding and not from the terms.
    """

    terms: Float
    constant: float
    value: float

    @property
    def total(self) -> float:
        """Terms and constant added up, rounded once."""
        return math.fsum([*self.terms, self.constant])

    @property
    def residual(self) -> float:
        """Value minus total: rounding alone."""
        return self.value - self.total

    @property
    def attracting(self) -> float:
        """Sum of the terms above 0."""
        return math.fsum(self.terms[self.terms > 0])

    @property
    def repelling(self) -> float:
        """Sum of the terms below 0."""
        return math.fsum(self.terms[self.terms < 0])

    @property
    def cancelled(self) -> float:
        """Share of the terms' sizes that cancels, 1 - |sum| / sum of sizes; 0 without terms."""
        size = self.attracting - self.repelling
        return 1.0 - abs(self.attracting + self.repelling) / size if size > 0 else 0.0

    def record(self) -> dict[str, float]:
        """Value, its parts and the rounding error as plain numbers by name."""
        return {
            "value": self.value,
            "terms_sum": math.fsum(self.terms),
            "constant": self.constant,
            "residual": self.residual,
            "attracting_sum": self.attracting,
            "repelling_sum": self.repelling,
            "cancelled": self.cancelled,
        }


def similarity_sum(
    kernel: Float, coefficients: Float, offset: Float, embedding: Float, other: Float
) -> LandmarkSum:
    """Similarity <f_t, f_y> of two samples as a sum over the landmarks of the first.

    Args:
        kernel: k_t [landmark].
        coefficients: A [landmark, output].
        offset: gamma [output].
        embedding: f_t [output].
        other: f_y [output].
    """
    terms = similarity_terms(kernel[None], coefficients, other[None])[0]
    return LandmarkSum(terms, float(offset @ other), float(embedding @ other))


def logit_sum(
    kernel: Float,
    coefficients: Float,
    offset: Float,
    embedding: Float,
    weight: Float,
    bias: float,
) -> LandmarkSum:
    """Logit w . f_t + b of one class as a sum over landmarks.

    Args:
        kernel: k_t [landmark].
        coefficients: A [landmark, output].
        offset: gamma [output].
        embedding: f_t [output].
        weight: w of the class [output].
        bias: b of the class.
    """
    terms = logit_terms(kernel[None], coefficients, weight[None])[0]
    constant = float(offset @ weight) + bias
    return LandmarkSum(terms, constant, float(embedding @ weight) + bias)


def logit_terms(kernel: Float, coefficients: Float, weight: Float) -> Float:
    """Terms k_lt <A_l, w_t> [sample, landmark] of one logit of every sample.

    Args:
        kernel: k [sample, landmark].
        coefficients: A [landmark, output].
        weight: w_t, the weights of the class that is explained, [sample, output].
    """
    return np.asarray(kernel * (weight @ coefficients.T))


def similarity_terms(kernel: Float, coefficients: Float, other: Float) -> Float:
    """Terms k_lt <A_l, f_y> [sample, landmark] of the similarity to other samples.

    Args:
        kernel: k of the first samples [sample, landmark].
        coefficients: A [landmark, output].
        other: embedding f_y of the sample that each one is compared with [sample, output].
    """
    return logit_terms(kernel, coefficients, other)


def without_landmarks(
    embedding: Float, kernel: Float, coefficients: Float, removed: Index
) -> Float:
    """Embedding f_t - sum over the removed landmarks of k_lt A_l [sample, output].

    Args:
        embedding: f [sample, output].
        kernel: k [sample, landmark].
        coefficients: A [landmark, output].
        removed: landmarks taken out of every sample's sum [sample, rank], distinct in a row.
    """
    weight = np.zeros_like(kernel)
    np.put_along_axis(weight, removed, np.take_along_axis(kernel, removed, axis=1), axis=1)
    return np.asarray(embedding - weight @ coefficients)


def flipped_share(
    readout: LinearReadout, embedding: Float, kernel: Float, coefficients: Float, removed: Index
) -> float:
    """Share of decisions that change when each sample's removed landmarks leave its sum.

    Args:
        readout: the classifier that decides.
        embedding: f = K A + gamma [sample, output].
        kernel: k [sample, landmark].
        coefficients: A [landmark, output].
        removed: landmarks of every sample [sample, rank], distinct in a row.
    """
    left = without_landmarks(embedding, kernel, coefficients, removed)
    return float(np.mean(readout.decisions(left) != readout.decisions(embedding)))


def random_landmarks(n_samples: int, n_landmarks: int, count: int, seed: int, draw: int) -> Index:
    """Distinct landmarks drawn uniformly for every sample [sample, rank]."""
    samples, landmarks = np.arange(n_samples)[:, None], np.arange(n_landmarks)
    keys = counter_rng.bits(seed, _RANDOM_STREAM, draw, samples, landmarks)
    return np.argsort(keys, axis=1, kind="stable")[:, :count]
