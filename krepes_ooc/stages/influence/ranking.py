"""Ranking of landmarks for people: one definition for the store, new samples and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from krepes_ooc.core.landmark_rows import sum_views
from krepes_ooc.stages.influence.scores import (
    aligned_with,
    contribution,
    embedding,
    positive_only,
    repelling,
    scorer,
    strongest_scores,
    top_k,
)

# The most repelling landmarks are kept besides the ranked ones, which seldom hold any of them.
REPELLING_KEPT = 3
Array = Any
Float = npt.NDArray[np.float64]


class RankedLandmarks(NamedTuple):
    """Landmarks of some samples; the fields are arrays of the store influence.

    Args:
        embedding: f = K A + gamma [audited, component].
        top_landmark: landmarks of largest score [audited, rank].
        score: their scores [audited, rank].
        contribution: their signed contributions [audited, rank].
        repelling_landmark: landmarks of most negative contribution [audited, repelled].
        repelling: their contributions [audited, repelled].
    """

    embedding: Array
    top_landmark: Array
    score: Array
    contribution: Array
    repelling_landmark: Array
    repelling: Array


@dataclass(frozen=True)
class InfluenceScorer:
    """Scores and rankings of landmarks from kernel rows, with all else fixed.

    Args:
        step: dA [landmark, component].
        coefficients: A [landmark, component].
        offset: gamma [component].
        score: of ``ranking_score``.
        top: landmarks kept for every sample.
        n_views: rows of a landmark; its contributions are summed over them.
    """

    step: Array
    coefficients: Array
    offset: Array
    score: Callable[[Array], Array]
    top: int
    n_views: int = 1

    def rank(self, kernel: Array) -> RankedLandmarks:
        """Landmarks of samples with kernel rows [audited, row] in float64, on their device."""
        xp = array_namespace(kernel)
        f = embedding(kernel, self.coefficients, self.offset)
        landmark, value = top_k(self.score(kernel), self.top)
        # Signed contributions of the ranked landmarks, then the most negative ones of all
        signed = sum_views(contribution(kernel, self.step, f), self.n_views)
        ranked = xp.take_along_axis(signed, landmark, axis=1)
        return RankedLandmarks(f, landmark, value, ranked, *repelling(signed, REPELLING_KEPT))


def ranking_score(
    measure: str,
    step: Float,
    landmark_displacement: Float,
    second: Float | None = None,
    n_views: int = 1,
) -> Callable[[Array], Array]:
    """The scores that rank landmarks for people, from a kernel block [audited, landmark].

    They are those of ``scorer``, but ``aligned`` is max(k, 0) cos(df_t, df_l): a landmark that is
    less like the sample than the average is no example of it, even where both moved the same way.
    Measured against |k cos| on one network each, as the share of top-1 / top-10 landmarks that have
    the sample's label: digits .937 / .768 against .937 / .765; Adult .799 / .781, .797 / .778.

    Args:
        measure: one of ``MEASURES``.
        step: dA [landmark, component].
        landmark_displacement: df of the landmarks, K_mm dA [landmark, component].
        second: un-centred S [landmark, landmark_], needed by ``unique``.
        n_views: rows of a landmark; its score is that of ``scorer``.

    Raises:
        UsageError: no such measure, or ``unique`` without moments.
    """
    if measure == "aligned":
        # Partial functions: their arrays can be moved to where the kernel block is
        score = partial(aligned_with, step=step, landmark_displacement=landmark_displacement)
        return strongest_scores(partial(positive_only, score), n_views)
    return scorer(measure, step, None, second, n_views)
