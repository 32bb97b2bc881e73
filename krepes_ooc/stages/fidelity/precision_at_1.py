"""Label figure Precision@1: share of samples whose first landmark has their label.

The audit's ranking beside the other measures, and beside other ways to name the nearest or most
influential landmark: cosines, the plain kernel, and two that are trained on the landmarks' labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figure_specs import AGAINST_INPUTS, MEASURE_KEYS, STEP_AGAINST_KERNEL
from krepes_ooc.core.figures import Figure, figure
from krepes_ooc.core.landmark_rows import rows_of_each, sum_views
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity import baselines
from krepes_ooc.stages.fidelity.metrics import majority_share, precision_at_1
from krepes_ooc.stages.fidelity.rows import EvaluationRows, control_or_none
from krepes_ooc.stages.fidelity.sample_estimates import (
    NORMAL_QUANTILE,
    SampleEstimate,
    paired,
    ratio_estimate,
)
from krepes_ooc.stages.influence.ranking import ranking_score
from krepes_ooc.stages.influence.scores import MEASURES, embedding_contribution

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LandmarkRankings:
    """Rankings of the landmarks for every labelled audit sample.

    Args:
        audit: labelled audit samples.
        rows: rows of the landmarks.
        step: dA [landmark, component].
        coefficients: A [landmark, component].
        second: un-centred S [landmark, landmark_].
        measure: the audit's own ranking.
        n_classes: number of classes.
    """

    audit: EvaluationRows
    rows: EvaluationRows
    step: Float
    coefficients: Float
    second: Float
    measure: str
    n_classes: int

    @cached_property
    def n_views(self) -> int:
        """Rows of a landmark."""
        return rows_of_each(self.rows.sample_id)

    @cached_property
    def landmarks(self) -> EvaluationRows:
        """The landmarks, each by its first row."""
        return self.rows.first(len(self.rows.sample_id) // self.n_views)

    def precision_figure(self) -> Figure:
        """Precision@1 of the audit's ranking, beside every other."""
        value = self._precision(self.own_scores)
        n_labelled = int(np.sum(self.audit.label >= 0))
        # Normal interval of a share
        half_width = NORMAL_QUANTILE * float(np.sqrt(value * (1 - value) / n_labelled))
        controls: dict[str, float | None] = {
            key: self._precision(scores) for key, scores in self.rankings.items()
        }
        controls["majority_class"] = control_or_none(lambda: majority_share(self.audit.label))
        controls["random"] = self._expected_by_chance()
        estimates = {key: self._estimate(scores) for key, scores in self.rankings.items()}
        differences = paired(self._estimate(self.own_scores), against_rankings(estimates))
        interval = value - half_width, value + half_width
        return figure("precision_at_1", value, controls, interval, paired=differences)

    @cached_property
    def own_scores(self) -> Float:
        """Scores [audited, landmark] of the audit's own ranking."""
        return self._scores(self.measure)

    @cached_property
    def rankings(self) -> dict[str, Float]:
        """Scores [audited, landmark] of every other way to rank the landmarks, by key."""
        return self.label_free_rankings | self._trained()

    @cached_property
    def label_free_rankings(self) -> dict[str, Float]:
        """Scores [audited, landmark] of the rankings that see no label, by key."""
        audit = self.audit
        landmarks = self.landmarks
        scores = {
            MEASURE_KEYS[name]: self._scores(name) for name in MEASURES if name != self.measure
        }
        terms = embedding_contribution(audit.kernel, self.coefficients, audit.embedding)
        scores["contribution"] = sum_views(terms, self.n_views)
        # Likeness without the kernel: of the network's embeddings, and without any network
        mean = audit.network.mean(axis=0)
        scores["network_cosine_centred"] = baselines.cosine(
            audit.network - mean, landmarks.network - mean
        )
        scores["network_cosine"] = baselines.cosine(audit.network, landmarks.network)
        if audit.inputs is not None and landmarks.inputs is not None:
            scores["input_cosine"] = baselines.cosine(audit.inputs, landmarks.inputs)
        return scores

    def _trained(self) -> dict[str, Float]:
        """Scores by a linear probe that is fitted on the landmarks; those without a label last."""
        labelled = self.landmarks.labelled
        label_of = self.landmarks.label
        fitted = self.landmarks.network[labelled]
        label = label_of[labelled]
        try:
            probe = baselines.LinearProbe.fit(fitted, label, self.n_classes)
        except StageFailed:
            return {}
        scores = {}
        for key, attribute in (
            ("representer_values", baselines.representer_values),
            ("influence_functions", baselines.influence_functions),
        ):
            scores[key] = np.full((len(self.audit.label), len(label_of)), -np.inf)
            scores[key][:, labelled] = attribute(probe, fitted, label, self.audit.network)
        return scores

    def _expected_by_chance(self) -> float:
        """Expected precision of a landmark drawn at random, exactly."""
        label = self.landmarks.label[self.landmarks.labelled]
        share = np.bincount(label, minlength=self.n_classes) / max(1, len(label))
        return float(share[self.audit.label].mean())

    def _scores(self, measure: str) -> Float:
        # Kernel rows of the landmarks are K_mm, so this is their displacement K_mm dA
        displacement = self.rows.kernel @ self.step
        score = ranking_score(measure, self.step, displacement, self.second, self.n_views)
        return np.asarray(score(self.audit.kernel))

    def _nearest_label(self, scores: Float) -> Index:
        # Ties go to the lower landmark index
        return np.asarray(self.landmarks.label[np.argmax(scores, axis=1)])

    def _precision(self, scores: Float) -> float:
        return precision_at_1(self._nearest_label(scores), self.audit.label)

    def _estimate(self, scores: Float) -> SampleEstimate:
        """The share of hits; a sample whose first landmark has no label has no influence."""
        nearest = self._nearest_label(scores)
        known = (nearest >= 0) & (self.audit.label >= 0)
        hit = known & (nearest == self.audit.label)
        return ratio_estimate(hit.astype(np.float64), known.astype(np.float64))


def against_rankings(
    estimates: Mapping[str, SampleEstimate],
) -> dict[str, SampleEstimate | None]:
    """The plain kernel and the inputs' cosine, by the key of the difference to them."""
    return {
        STEP_AGAINST_KERNEL: estimates.get("kernel"),
        AGAINST_INPUTS: estimates.get("input_cosine"),
    }
