"""Exact sums over landmarks behind a decision or a similarity, and what removing terms does.

With f_t = sum_l k_lt A_l + gamma for any coefficients A (the step's, or distilled ones):

    logit of a probe      w . f_t + b    = sum_l k_lt <A_l, w>   + (<gamma, w> + b)
    similarity            <f_t, f_y>     = sum_l k_lt <A_l, f_y> + <gamma, f_y>

Source: Yeh et al. (2018), "Representer point selection", for sums over samples behind a logit;
deletion as a test: Samek et al. (2017), "Evaluating the visualization of what a deep neural
network has learned".
"""

from __future__ import annotations

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
