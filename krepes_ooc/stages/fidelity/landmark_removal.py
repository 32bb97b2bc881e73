"""Label figures about removal: how much a neighbour vote loses without a sample's top landmarks.

The vote is by the fit samples on the audit's embedding. A removal is taken out of the representer
sum, out of a bank of landmarks, or followed by an exact refit of the other landmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.confidence_drop import (
    confidence_drop,
    drop_ratio,
    largest,
    mean_interval,
    random_landmarks,
    refit_inverse,
    refit_without,
    remove_from_sum,
    vote_shares,
)
from krepes_ooc.stages.fidelity.rows import EvaluationRows, Figure, control_or_none, figure

DRAWS = 5
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LandmarkRemoval:
    """The landmarks of every audit sample, and what is needed to take them away.

    Args:
        fit: labelled fit samples, who vote.
        held: labelled audit samples.
        landmarks: the landmarks.
        coefficients: A [landmark, component].
        second: un-centred S [landmark, landmark_].
        top: landmarks to remove [audited, rank].
        n_classes: number of classes.
        seed: of random landmarks and intervals.
        others: scores [audited, landmark] of other ways to rank the landmarks, by name in words.
    """

    fit: EvaluationRows
    held: EvaluationRows
    landmarks: EvaluationRows
    coefficients: Float
    second: Float
    top: Index
    n_classes: int
    seed: int
    others: Mapping[str, Float] = field(default_factory=dict)

    def drop(self) -> Figure:
        """The drop after removal from the representer sum, with all its controls."""
        found = mean_interval(self._targeted, self.seed)
        random = self._random.mean(axis=1)
        error = float(self._random.mean(axis=0).std() / np.sqrt(self._random.shape[1]))
        return figure(
            found.value,
            "Confidence lost without the top landmarks",
            "A vote of the 50 nearest fit samples; the share of the class predicted before, minus "
            "its share after. Removal is from the representer sum, unless a control says "
            "otherwise; after an exact refit the other landmarks take over what they can express "
            "of the embedding by least squares over all samples.",
            {
                "random": float(random.mean()),
                "random, two standard errors": 2 * error,
                "largest |k| (no step)": self._mean(self._by_size(np.abs(self.held.kernel))),
                "largest |k| |A_l|": self._mean(
                    self._by_size(
                        np.abs(self.held.kernel) * np.linalg.norm(self.coefficients, axis=1)
                    )
                ),
                "out of a bank of landmarks": control_or_none(lambda: self._bank(self.top)),
                "out of a bank of landmarks, random ones": control_or_none(
                    lambda: self._bank(self._drawn(0))
                ),
                "with an exact refit": float(self._refit(self.top).mean()),
                "with an exact refit, random ones": float(self._refit(self._drawn(0)).mean()),
                **{
                    f"ranked by {name}": self._mean(self._by_size(scores))
                    for name, scores in self.others.items()
                },
            },
            (found.low, found.high),
        )

    def ratio(self) -> Figure:
        """The drop over the drop of random landmarks."""
        found = drop_ratio(self._targeted, self._random, self.seed)
        return figure(
            found.value,
            "Drop without the top landmarks over the drop without random ones",
            "Quote it with its interval: the random drop is close to its own noise.",
            {
                "largest |k| (no step)": self._ratio(np.abs(self.held.kernel)),
                "largest |k| |A_l|": self._ratio(
                    np.abs(self.held.kernel) * np.linalg.norm(self.coefficients, axis=1)
                ),
            },
            (found.low, found.high),
        )

    @cached_property
    def _before(self) -> Float:
        return self._vote(self.held.step)

    @cached_property
    def _targeted(self) -> Float:
        return self._sum_drop(self.top)

    @cached_property
    def _random(self) -> Float:
        """Drops without random landmarks [draw, sample]."""
        return np.stack([self._sum_drop(self._drawn(draw)) for draw in range(DRAWS)])

    def _drawn(self, draw: int) -> Index:
        count = self.top.shape[1]
        return random_landmarks(
            self.held.sample_id, len(self.coefficients), count, self.seed + draw
        )

    def _vote(self, embedding: Float) -> Float:
        return vote_shares(embedding, self.fit.step, self.fit.label, self.n_classes)

    def _sum_drop(self, removed: Index) -> Float:
        left = remove_from_sum(self.held.step, self.held.kernel, self.coefficients, removed)
        return confidence_drop(self._before, self._vote(left))

    def _mean(self, removed: Index) -> float:
        return float(self._sum_drop(removed).mean())

    def _ratio(self, size: Float) -> float | None:
        random = float(self._random.mean())
        return self._mean(self._by_size(size)) / random if random > 0 else None

    def _by_size(self, size: Float) -> Index:
        return largest(size, self.top.shape[1])

    def _refit(self, removed: Index) -> Float:
        left = refit_without(
            self.held.step, self.held.kernel, self.coefficients, removed, self._inverse
        )
        return confidence_drop(self._before, self._vote(left))

    @cached_property
    def _inverse(self) -> Float:
        return refit_inverse(self.second)

    def _bank(self, removed: Index) -> float:
        """Mean drop of a vote by landmarks alone."""
        known = self.landmarks.label >= 0
        if int(known.sum()) <= removed.shape[1]:
            raise StageFailed(
                f"{int(known.sum())} landmarks with labels", where="fidelity", expected="more"
            )
        bank = self.landmarks.step, self.landmarks.label, self.n_classes
        before = vote_shares(self.held.step, *bank)
        after = vote_shares(self.held.step, *bank, without=removed)
        return float(confidence_drop(before, after).mean())


def coverage_figure(landmarks: EvaluationRows, step: Float, n_classes: int, seed: int) -> Figure:
    """Landmarks in order of |dA_l| until all classes are covered (kappa)."""
    from krepes_ooc.stages.fidelity.metrics import coverage, random_coverage

    size = np.linalg.norm(step, axis=1)
    return figure(
        float(coverage(size, landmarks.label, n_classes)),
        "Landmarks needed to cover all classes (kappa)",
        "In descending order of |dA_l|. If it is no better than random orders, the size of a "
        "landmark's step says nothing about the classes.",
        {"random order": random_coverage(landmarks.label, n_classes, seed)},
    )
