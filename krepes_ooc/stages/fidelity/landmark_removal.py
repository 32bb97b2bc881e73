"""Deletion test: loss of k-NN confidence when a sample's top landmarks are removed.

The k-NN classifier has the fit samples as its reference set, on the audit's embedding. Landmarks
are removed from the representer sum, from a reference set of landmarks, or from the sum with an
exact refit of the other landmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figure_specs import AGAINST_INPUTS, RANKED_BY, STEP_AGAINST_KERNEL
from krepes_ooc.core.figures import Figure, figure
from krepes_ooc.core.landmark_rows import rows_of, rows_of_each, split_views, strongest_view
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.confidence_drop import (
    confidence_drop,
    drop_ratio,
    knn_shares,
    largest,
    mean_interval,
    random_landmarks,
    refit_inverse,
    refit_without,
    remove_from_sum,
)
from krepes_ooc.stages.fidelity.metrics import coverage, random_coverage
from krepes_ooc.stages.fidelity.rows import EvaluationRows, control_or_none
from krepes_ooc.stages.fidelity.sample_estimates import mean_estimate, paired, ratio_estimate

# Random draws of landmarks; their mean is the control
DRAWS = 5
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LandmarkRemoval:
    """The top landmarks of every audit sample, and what their removal is measured with.

    Args:
        fit: labelled fit samples, the reference set.
        audit: labelled audit samples.
        landmarks: rows of the landmarks.
        coefficients: A [landmark, component].
        second: un-centred S [landmark, landmark_].
        top: landmarks to remove [audited, rank].
        n_classes: number of classes.
        seed: of random landmarks and intervals.
        rankings: scores [audited, landmark] of other ways to rank the landmarks, by key.
    """

    fit: EvaluationRows
    audit: EvaluationRows
    landmarks: EvaluationRows
    coefficients: Float
    second: Float
    top: Index
    n_classes: int
    seed: int
    rankings: Mapping[str, Float] = field(default_factory=dict)

    @cached_property
    def n_views(self) -> int:
        """Rows of a landmark; a landmark is removed with all of them."""
        return rows_of_each(self.landmarks.sample_id)

    @property
    def n_landmarks(self) -> int:
        """Landmarks m."""
        return len(self.coefficients) // self.n_views

    def without(self, removed: Index) -> Float:
        """Embedding of the audit samples without some landmarks [sample, component].

        Args:
            removed: landmarks of every sample [sample, rank].
        """
        audit, rows = self.audit, self._rows_of(removed)
        return remove_from_sum(audit.embedding, audit.kernel, self.coefficients, rows)

    def _rows_of(self, removed: Index) -> Index:
        return rows_of(removed, self.n_landmarks, self.n_views)

    def drop_figure(self) -> Figure:
        """Drop after removal from the representer sum, with all its controls."""
        drop = mean_interval(self.targeted_drop, self.seed)
        drops = {key: self._ranked_drop(scores) for key, scores in self.rankings.items()}
        error = float(self.random_drop.mean(axis=0).std() / np.sqrt(self.random_drop.shape[1]))
        # The same removal, of landmarks that are chosen without the step
        controls: dict[str, float | None] = {
            "random": float(self.random_drop.mean(axis=1).mean()),
            "random_two_standard_errors": 2 * error,
            "kernel_only": float(self._kernel_drop.mean()),
            "kernel_times_coefficients": float(self._kernel_times_coefficients_drop.mean()),
        }
        # The top landmarks, removed in other ways; each beside random landmarks
        random = self._random_landmarks(0)
        controls["reference_set_removal"] = control_or_none(
            lambda: self._reference_set_drop(self.top)
        )
        controls["reference_set_removal_random"] = control_or_none(
            lambda: self._reference_set_drop(random)
        )
        controls["exact_refit"] = float(self._refit_drop(self.top).mean())
        controls["exact_refit_random"] = float(self._refit_drop(random).mean())
        for key, other in drops.items():
            controls[f"{RANKED_BY}{key}"] = float(other.mean())
        inputs = drops.get("input_cosine")
        others = {
            STEP_AGAINST_KERNEL: mean_estimate(self._kernel_drop),
            AGAINST_INPUTS: None if inputs is None else mean_estimate(inputs),
        }
        differences = paired(mean_estimate(self.targeted_drop), others)
        interval = drop.low, drop.high
        return figure("confidence_drop", drop.value, controls, interval, paired=differences)

    def ratio_figure(self) -> Figure:
        """Drop over the drop of random landmarks."""
        ratio = drop_ratio(self.targeted_drop, self.random_drop, self.seed)
        # The same random drop lies below both
        random = self.random_drop.mean(axis=0)
        targeted, kernel = (
            ratio_estimate(drop, random) for drop in (self.targeted_drop, self._kernel_drop)
        )
        controls = {
            "kernel_only": kernel.value,
            "kernel_times_coefficients": float(
                self._kernel_times_coefficients_drop.mean() / random.mean()
            ),
        }
        differences = paired(targeted, {STEP_AGAINST_KERNEL: kernel})
        interval = ratio.low, ratio.high
        return figure("drop_ratio", ratio.value, controls, interval, paired=differences)

    @cached_property
    def _kernel_drop(self) -> Float:
        """Drop without the landmarks of largest |k_lt| [sample]."""
        return self._ranked_drop(strongest_view(np.abs(self.audit.kernel), self.n_views))

    @cached_property
    def _kernel_times_coefficients_drop(self) -> Float:
        """Drop without the landmarks of largest |k_lt| |A_l| [sample]."""
        size = np.abs(self.audit.kernel) * np.linalg.norm(self.coefficients, axis=1)
        return self._ranked_drop(strongest_view(size, self.n_views))

    @cached_property
    def _shares(self) -> Float:
        return self._classify(self.audit.embedding)

    @cached_property
    def targeted_drop(self) -> Float:
        """Drop without the top landmarks [sample]."""
        return self._sum_drop(self.top)

    @cached_property
    def random_drop(self) -> Float:
        """Drops without random landmarks [draw, sample]."""
        return np.stack([self._sum_drop(self._random_landmarks(draw)) for draw in range(DRAWS)])

    def _random_landmarks(self, draw: int) -> Index:
        count = self.top.shape[1]
        return random_landmarks(self.audit.sample_id, self.n_landmarks, count, self.seed + draw)

    def _classify(self, embedding: Float) -> Float:
        return knn_shares(embedding, self.fit.embedding, self.fit.label, self.n_classes)

    def _sum_drop(self, removed: Index) -> Float:
        # f_t without its removed landmarks, classified by the same reference set
        left = self.without(removed)
        return confidence_drop(self._shares, self._classify(left))

    def _ranked_drop(self, scores: Float) -> Float:
        """Drop without the landmarks of largest score [sample]."""
        return self._sum_drop(largest(scores, self.top.shape[1]))

    def _refit_drop(self, removed: Index) -> Float:
        audit = self.audit
        rows = self._rows_of(removed)
        left = refit_without(audit.embedding, audit.kernel, self.coefficients, rows, self._inverse)
        return confidence_drop(self._shares, self._classify(left))

    @cached_property
    def _inverse(self) -> Float:
        return refit_inverse(self.second)

    def _reference_set_drop(self, removed: Index) -> float:
        """Mean drop of a k-NN classifier whose reference set is the landmarks."""
        n_labelled = int(self.landmarks.labelled.sum())
        # Someone must be left in the reference set
        rows = self._rows_of(removed)
        if n_labelled <= rows.shape[1]:
            raise StageFailed(
                f"{n_labelled} landmarks with labels", where="fidelity", expected="more"
            )
        reference = self.landmarks.embedding, self.landmarks.label, self.n_classes
        before = knn_shares(self.audit.embedding, *reference)
        after = knn_shares(self.audit.embedding, *reference, without=rows)
        return float(confidence_drop(before, after).mean())


def coverage_figure(landmarks: EvaluationRows, step: Float, n_classes: int, seed: int) -> Figure:
    """Landmarks in order of |dA_l| until all classes are covered (kappa)."""
    # |dA_l| over all rows of a landmark
    rows = split_views(step, rows_of_each(landmarks.sample_id), axis=0)
    size = np.linalg.norm(np.concatenate(rows, axis=1), axis=1)
    label = landmarks.label[: len(size)]
    controls = {"random": random_coverage(label, n_classes, seed)}
    return figure("coverage", float(coverage(size, label, n_classes)), controls)
