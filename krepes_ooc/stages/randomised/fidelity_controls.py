"""Fidelity figures of one network's small audit, trained or with random weights.

They are those of the stage fidelity on the samples of the comparison, so that the audited network
stands beside random ones on the same rows. Figures that a network cannot give are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.landmark_rows import rows_of_each
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.decision_flips import flips_figure
from krepes_ooc.stages.fidelity.landmark_removal import LandmarkRemoval, coverage_figure
from krepes_ooc.stages.fidelity.metrics import linear_probe
from krepes_ooc.stages.fidelity.neighbour_overlap import (
    NEIGHBOURS,
    nearest_landmarks,
    sample_overlap,
)
from krepes_ooc.stages.fidelity.rows import EvaluationRows
from krepes_ooc.stages.randomised.small_audit import StepResult
from krepes_ooc.stages.spectrum import nystrom

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Keys of the stage fidelity, in their order in the partial results. The other figures of that stage
# are among ``FIGURES``; the stability of a sweep of dampings is not defined for one damping.
CONTROLLED = (
    "neighbour_overlap",
    "spectral_entropy",
    "nystrom_error",
    "accuracy_gap",
    "confidence_drop",
    "drop_ratio",
    "decision_flips",
    "coverage",
)


@dataclass(frozen=True)
class FidelityRows:
    """Rows of one network that the figures are measured on.

    Args:
        fit: samples that classifiers are fitted on.
        audit: samples that are scored.
        landmarks: rows of the landmarks, with their kernel K_mm.
        found: the solution of the small audit.
        score: of the audit's ranking [audited, landmark].
        top: landmarks that are removed [audited, rank].
        n_classes: classes of the labels.
        seed: of random landmarks.
        unit_kernel: whether every k(x, x) is 1, so that the Nystrom error needs no other rows.
    """

    fit: EvaluationRows
    audit: EvaluationRows
    landmarks: EvaluationRows
    found: StepResult
    score: Float
    top: Index
    n_classes: int
    seed: int
    unit_kernel: bool

    @property
    def coefficients(self) -> Float:
        """A [row, component]."""
        return self.found.start + self.found.step


def fidelity_controls(rows: FidelityRows) -> Float:
    """Figures in the order of ``CONTROLLED`` [figure]; NaN where one is not defined."""
    fit, audit = (part.take(part.labelled) for part in (rows.fit, rows.audit))
    removal = LandmarkRemoval(
        fit,
        audit,
        rows.landmarks,
        rows.coefficients,
        rows.found.second,
        rows.top[rows.audit.labelled],
        rows.n_classes,
        rows.seed,
    )
    measures: dict[str, Callable[[], float]] = {
        "neighbour_overlap": lambda: _neighbour_overlap(rows),
        "spectral_entropy": lambda: nystrom.spectral_entropy(rows.coefficients),
        "nystrom_error": lambda: _nystrom_error(rows),
        "accuracy_gap": lambda: _accuracy_gap(fit, audit),
        "confidence_drop": lambda: float(removal.targeted_drop.mean()),
        "drop_ratio": lambda: _ratio(removal),
        "decision_flips": lambda: _value(flips_figure(removal).value),
        "coverage": lambda: _value(
            coverage_figure(rows.landmarks, rows.found.step, rows.n_classes, rows.seed).value
        ),
    }
    # Without two classes none of the figures that ask for labels is defined.
    if len(np.unique(fit.label)) < 2 or not len(audit.label):
        for key in CONTROLLED[CONTROLLED.index("accuracy_gap") :]:
            measures.pop(key)
    return np.array([_or_nan(measures[key]) if key in measures else np.nan for key in CONTROLLED])


def _neighbour_overlap(rows: FidelityRows) -> float:
    """Share of the network's nearest landmarks among as many of largest score."""
    n_views = rows_of_each(rows.landmarks.sample_id)
    marks = rows.landmarks.network[: len(rows.landmarks.network) // n_views]
    if len(marks) <= NEIGHBOURS:
        return float("nan")
    nearest = nearest_landmarks(rows.audit.network, marks, NEIGHBOURS)
    return float(sample_overlap(rows.score, nearest).mean())


def _nystrom_error(rows: FidelityRows) -> float:
    """Share of the kernel's trace over the fit samples' views that the landmarks miss."""
    if not rows.unit_kernel:
        return float("nan")
    second = rows.found.second
    values, vectors = nystrom.eigenpairs(rows.landmarks.kernel)
    rms = float(np.sqrt(np.trace(second) / len(second)))
    rank = max(1, nystrom.usable_rank(values, rms, len(values), "float32"))
    return nystrom.nystrom_error(1.0, second, values, vectors, rank)


def _accuracy_gap(fit: EvaluationRows, audit: EvaluationRows) -> float:
    """Accuracy of a probe on the audit's embedding minus that on the network's, in points."""
    own, network = (
        linear_probe(getattr(fit, name), fit.label, getattr(audit, name), audit.label).accuracy
        for name in ("embedding", "network")
    )
    return 100.0 * (own - network)


def _ratio(removal: LandmarkRemoval) -> float:
    """Drop of the top landmarks over that of random ones; NaN where the latter is not above 0."""
    random = float(removal.random_drop.mean())
    return float(removal.targeted_drop.mean()) / random if random > 0 else float("nan")


def _value(value: float | None) -> float:
    return float("nan") if value is None else value


def _or_nan(measure: Callable[[], float]) -> float:
    try:
        return measure()
    except StageFailed:
        return float("nan")
