"""Label figure Precision@1: does the first landmark of a sample have its label?

The audit's ranking beside the other measures, and beside other ways to name the nearest or most
influential landmark: cosines, the plain kernel, and two that are trained on the landmarks' labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity import baselines
from krepes_ooc.stages.fidelity.rows import EvaluationRows, Figure, control_or_none, figure
from krepes_ooc.stages.influence.scores import MEASURES, embedding_contribution
from krepes_ooc.stages.influence.stage import ranking_score

Float = npt.NDArray[np.float64]
NAMES = {
    "aligned": "aligned influence, max(k, 0) cos",
    "is": "the paper's influence score",
    "unique": "unique influence (leave-one-out kernel)",
    "kernel": "plain kernel",
}


@dataclass(frozen=True)
class LandmarkRankings:
    """Rankings of the landmarks for every labelled audit sample.

    Args:
        held: labelled audit samples.
        landmarks: the landmarks.
        step: dA [landmark, component].
        coefficients: A [landmark, component].
        second: un-centred S [landmark, landmark_].
        measure: the audit's own ranking.
        n_classes: number of classes.
    """

    held: EvaluationRows
    landmarks: EvaluationRows
    step: Float
    coefficients: Float
    second: Float
    measure: str
    n_classes: int

    def precision(self) -> Figure:
        """Precision@1 of the audit's ranking, beside every other."""
        from krepes_ooc.stages.fidelity.metrics import majority_share

        value = self._precision(self._scores(self.measure))
        known = int(np.sum(self.held.label >= 0))
        error = 1.96 * float(np.sqrt(value * (1 - value) / known))
        controls: dict[str, float | None] = {
            name: self._precision(scores) for name, scores in self.rankings().items()
        }
        controls["always the most frequent class"] = control_or_none(
            lambda: majority_share(self.held.label)
        )
        controls["a random landmark"] = self._random()
        return figure(
            value,
            f"First landmark has the sample's label (Precision@1, {NAMES[self.measure]})",
            "Share of audit samples with labels. Those marked (labels) are trained on the "
            "landmarks' labels; nothing else has seen a label.",
            controls,
            (value - error, value + error),
        )

    def rankings(self) -> dict[str, Float]:
        """Scores [audited, landmark] of every other way to rank the landmarks, by name in words."""
        found = {NAMES[name]: self._scores(name) for name in MEASURES if name != self.measure}
        found["signed contribution <k A_l, f_t>"] = embedding_contribution(
            self.held.kernel, self.coefficients, self.held.step
        )
        mean = self.held.network.mean(axis=0)
        found["cosine of network embeddings, centred"] = baselines.cosine(
            self.held.network - mean, self.landmarks.network - mean
        )
        found["cosine of network embeddings"] = baselines.cosine(
            self.held.network, self.landmarks.network
        )
        if self.held.inputs is not None and self.landmarks.inputs is not None:
            found["cosine of inputs"] = baselines.cosine(self.held.inputs, self.landmarks.inputs)
        return found | self._trained()

    def _trained(self) -> dict[str, Float]:
        """Scores by a linear probe that is fitted on the landmarks; those without a label last."""
        known = self.landmarks.label >= 0
        fitted, label = self.landmarks.network[known], self.landmarks.label[known]
        try:
            probe = baselines.LinearProbe.fit(fitted, label, self.n_classes)
        except StageFailed:
            return {}
        found = {}
        for name, values in (
            ("representer values of a probe (labels)", baselines.representer_values),
            ("influence functions of a probe (labels)", baselines.influence_functions),
        ):
            scores = np.full(self.held.kernel.shape, -np.inf)
            scores[:, known] = values(probe, fitted, label, self.held.network)
            found[name] = scores
        return found

    def _random(self) -> float:
        """Expected precision of a landmark drawn at random, exactly."""
        known = self.landmarks.label[self.landmarks.label >= 0]
        share = np.bincount(known, minlength=self.n_classes) / max(1, len(known))
        return float(share[self.held.label].mean())

    def _scores(self, measure: str) -> Float:
        score = ranking_score(measure, self.step, self.landmarks.kernel, self.second)
        return np.asarray(score(self.held.kernel))

    def _precision(self, scores: Float) -> float:
        from krepes_ooc.stages.fidelity.metrics import precision_at_1

        first = np.argmax(scores, axis=1)
        return precision_at_1(self.landmarks.label[first], self.held.label)
