"""Label-free figure of the ranking: overlap with the network's own nearest landmarks.

    O_t = |R_t & N_t| / k       R_t: k first landmarks of sample t,  N_t: its k nearest landmarks

by the Euclidean distance of the network's embeddings. A ranking explains the network if it names
the samples that the network itself places nearby; labels are not asked. Random landmarks have
k / m in expectation; the plain kernel and the cosine of the inputs name theirs without the step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figures import Figure, figure
from krepes_ooc.stages.fidelity.confidence_drop import largest
from krepes_ooc.stages.fidelity.metrics import undefined
from krepes_ooc.stages.fidelity.precision_at_1 import LandmarkRankings, against_rankings
from krepes_ooc.stages.fidelity.sample_estimates import mean_estimate, paired

# Landmarks of a sample that are compared
NEIGHBOURS = 10
# The centred cosine is the distance under another name
_LEFT_OUT = "network_cosine_centred"
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def neighbour_overlap_figure(rankings: LandmarkRankings) -> Figure:
    """Overlap of the audit's ranking and of every label-free one with the nearest landmarks.

    Args:
        rankings: of all audit samples, with labels or without.

    Raises:
        StageFailed: no more landmarks than are compared, or embeddings that are all alike.
    """
    landmarks = rankings.landmarks.network
    m = len(landmarks)
    if m <= NEIGHBOURS or not len(rankings.audit.kernel):
        raise undefined("the overlap with nearest landmarks", f"more than {NEIGHBOURS} landmarks")
    if not (landmarks - landmarks[0]).any():
        raise undefined("the overlap with nearest landmarks", "landmarks whose embeddings differ")
    nearest = nearest_landmarks(rankings.audit.network, landmarks, NEIGHBOURS)
    own = mean_estimate(sample_overlap(rankings.own_scores, nearest))
    others: Mapping[str, Float] = rankings.label_free_rankings
    estimates = {
        key: mean_estimate(sample_overlap(scores, nearest))
        for key, scores in others.items()
        if key != _LEFT_OUT
    }
    controls: dict[str, float | None] = {key: one.value for key, one in estimates.items()}
    controls["random"] = NEIGHBOURS / m
    differences = paired(own, against_rankings(estimates))
    return figure("neighbour_overlap", own.value, controls, own.interval, paired=differences)


def nearest_landmarks(embedding: Float, landmarks: Float, k: int) -> Index:
    """The k nearest landmarks of every sample [sample, rank] by Euclidean distance, ties by index.

    Args:
        embedding: of the samples [sample, output].
        landmarks: embedding of the landmarks [landmark, output].
        k: at most the number of landmarks.
    """
    # Centred, so that a common mean costs no digits; |x|^2 is the same for all landmarks
    mean = landmarks.mean(axis=0)
    y = landmarks - mean
    closeness = (embedding - mean) @ y.T - np.sum(y * y, axis=1) / 2.0
    return largest(closeness, k)


def sample_overlap(scores: Float, nearest: Index) -> Float:
    """Share of the nearest landmarks among as many of largest score [sample].

    Args:
        scores: [sample, landmark].
        nearest: [sample, rank].
    """
    first = largest(scores, nearest.shape[1])
    shared = (first[:, :, None] == nearest[:, None, :]).any(axis=2)
    return np.asarray(shared.mean(axis=1))
