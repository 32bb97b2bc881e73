"""The figures of an audit for one network, trained or with random weights, on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.landmark_rows import rows_of_each, strongest_view
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.alignment.gap import ColumnValues, agreement, sample_gaps
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.fidelity.rows import EvaluationRows
from krepes_ooc.stages.influence.ranking import ranking_score
from krepes_ooc.stages.influence.scores import top_k
from krepes_ooc.stages.minimiser.solution import MINIMISER
from krepes_ooc.stages.randomised.drawn_network import (
    KernelRows,
    RandomisedInputs,
    used_samples,
)
from krepes_ooc.stages.randomised.embedding_health import rank_me
from krepes_ooc.stages.randomised.fidelity_controls import FidelityRows, fidelity_controls
from krepes_ooc.stages.randomised.small_audit import ArrayStream, StepResult, StepRule, solve_audit

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
LABEL = "label"

# Figures for which more means that more was learned, in their order in the store.
FIGURES = {
    "ridge_r_squared": "variance of the network's embedding that kernel rows explain (R squared)",
    "cka": "similarity of the audit's embedding and the network's (linear CKA)",
    "rank_me": "effective rank of the network's embedding (RankMe)",
    "kendall_tau": "rank agreement of the probes on both embeddings (Kendall tau-b)",
    "precision_at_1": "first landmark has the sample's label (Precision@1)",
    "kernel_precision_at_1": "landmark of the largest kernel has the sample's label",
    "probe_accuracy": "accuracy of a linear probe on the network's embedding",
}


@dataclass(frozen=True)
class AuditRule:
    """Samples, columns and rules of the comparison, read from the sealed stores once.

    Args:
        role: of the used samples [used].
        label: their class codes, -1 for none [used].
        landmark_label: class codes of the landmarks [landmark].
        columns: compared columns by name, samples being the audit samples.
        measure: the score that ranks landmarks.
        top: landmarks compared per sample.
        step: how the audit took its step.
        normalise: how kernel values are normalised.
        block_rows: samples of one block of a streamed objective.
        sample_id: position in the source of the used samples [used].
        landmark_id: the same of every row of the landmarks [row].
        n_classes: classes of the labels.
        seed: of the recipe.
    """

    role: Index
    label: Index
    landmark_label: Index
    columns: dict[str, ColumnValues]
    measure: str
    top: int
    step: StepRule
    normalise: Any
    block_rows: int
    sample_id: Index
    landmark_id: Index
    n_classes: int
    seed: int


@dataclass(frozen=True)
class NetworkFigures:
    """Figures of one network; NaN where a figure is not defined.

    Args:
        top_landmark: under the audit's score [explained, rank].
        top_kernel: under the kernel alone [explained, rank].
        kernel: rows of the audit samples [explained, landmark], float32.
        figure: in the order of ``FIGURES`` [figure].
        gap: alignment gap of every column [column].
        fidelity: figures of the stage fidelity, in the order of ``CONTROLLED`` [figure].
    """

    top_landmark: Index
    top_kernel: Index
    kernel: npt.NDArray[np.float32]
    figure: Float
    gap: Float
    fidelity: Float


def read_audit_rule(
    inputs: RandomisedInputs, top: int, most_fit: int, block_rows: int
) -> AuditRule:
    """The comparison that the audit's stores define.

    Args:
        inputs: of the stage.
        top: landmarks compared per sample.
        most_fit: fit samples at most.
        block_rows: samples of one block of a streamed objective.
    """
    used = used_samples(inputs, most_fit)
    newton = inputs.newton.attributes
    ids = inputs.landmarks.array("sample_id")
    n_landmarks = len(ids) // rows_of_each(ids)
    step = StepRule(
        str(newton["objective"]),
        newton["objective_settings"],
        float(newton["damping_relative"]),
        str(newton["metric"]),
        inputs.spectrum.info("start").shape[1],
        _minimiser_damping(inputs),
    )
    return AuditRule(
        inputs.audited.array("role")[used],
        inputs.audited.array("label")[used],
        inputs.landmarks.array("label")[:n_landmarks],
        _columns(inputs),
        str(inputs.influence.attributes["measure"]),
        min(top, n_landmarks),
        step,
        inputs.kernel.attributes["normalise"],
        block_rows,
        inputs.audited.array("sample_id")[used],
        ids,
        len(inputs.audited.info("label").attributes["categories"]),
        inputs.recipe.seed,
    )


def network_figures(rule: AuditRule, rows: KernelRows) -> NetworkFigures:
    """Take the audit's step on a network's kernel rows and measure every figure.

    Args:
        rule: what is compared.
        rows: of the network.

    Raises:
        StageFailed: the network's kernel carries no embedding, or the loss has no curvature.
    """
    explained, fit = rule.role == ROLES["audit"], rule.role == ROLES["fit"]
    found = solve_audit(rule.step, rows.landmark_kernel, ArrayStream(rows.views, rule.block_rows))

    # Rankings of the landmarks, as the audit shows them and by the kernel alone.
    kernel = rows.clean[explained].astype(np.float64)
    displacement = rows.landmark_kernel @ found.step
    n_views = kernel.shape[1] // len(rule.landmark_label)
    score = ranking_score(rule.measure, found.step, displacement, found.second, n_views)
    scores = np.asarray(score(kernel))
    top_landmark = np.asarray(top_k(scores, rule.top)[0])
    top_kernel = np.asarray(top_k(strongest_view(np.maximum(kernel, 0.0), n_views), rule.top)[0])

    # Every figure of both embeddings: the audit's f = K A + gamma and the network's.
    audit_embedding = found.embedding(rows.clean)
    network_embedding = rows.embedding.astype(np.float64)
    pair = _Embeddings(rule.label, fit, explained, audit_embedding, network_embedding)
    values = {
        "ridge_r_squared": _or_nan(lambda: pair.ridge(rows.clean)),
        "cka": _or_nan(pair.cka),
        "rank_me": rank_me(network_embedding),
        "precision_at_1": _precision(rule, top_landmark, explained),
        "kernel_precision_at_1": _precision(rule, top_kernel, explained),
        **pair.probes(),
    }
    return NetworkFigures(
        top_landmark,
        top_kernel,
        rows.clean[explained],
        np.array([values[key] for key in FIGURES]),
        np.array([_gap(column, top_landmark) for column in rule.columns.values()]),
        fidelity_controls(_fidelity_rows(rule, rows, found, scores, top_landmark)),
    )


def _fidelity_rows(
    rule: AuditRule, rows: KernelRows, found: StepResult, scores: Float, top: Index
) -> FidelityRows:
    """Rows of one network as the figures of the stage fidelity read them."""

    def samples(ids: Index, label: Index, kernel: npt.NDArray[Any], network: Any) -> EvaluationRows:
        kernel = kernel.astype(np.float64)
        f = found.embedding(kernel)
        return EvaluationRows(ids, label, kernel, f, f, f, None, network.astype(np.float64), None)

    def of_role(role: str) -> EvaluationRows:
        part = rule.role == ROLES[role]
        return samples(
            rule.sample_id[part], rule.label[part], rows.clean[part], rows.embedding[part]
        )

    n_views = rows_of_each(rule.landmark_id)
    label = np.tile(rule.landmark_label, n_views)
    marks = samples(rule.landmark_id, label, rows.landmark_kernel, rows.landmark_embedding)
    unit_kernel = rule.normalise in ("ccos", "cosine")
    return FidelityRows(
        of_role("fit"),
        of_role("audit"),
        marks,
        found,
        scores,
        top,
        rule.n_classes,
        rule.seed,
        unit_kernel,
    )


@dataclass(frozen=True)
class _Embeddings:
    """The audit's and the network's embedding of the same samples.

    Args:
        label: class codes [audited].
        fit: which samples fit [audited].
        explained: which samples are scored [audited].
        audit: f [audited, component].
        network: [audited, output].
    """

    label: Index
    fit: npt.NDArray[np.bool_]
    explained: npt.NDArray[np.bool_]
    audit: Float
    network: Float

    def ridge(self, kernel: npt.NDArray[np.float32]) -> float:
        """R squared of the best linear map from kernel rows to the network's embedding."""
        from krepes_ooc.stages.fidelity.metrics import ridge_ceiling

        first, second = (kernel[part].astype(np.float64) for part in (self.fit, self.explained))
        found = ridge_ceiling(first, self.network[self.fit], second, self.network[self.explained])
        return found.r_squared

    def cka(self) -> float:
        """Likeness of both embeddings on the scored samples."""
        from krepes_ooc.stages.fidelity.metrics import linear_cka

        return linear_cka(self.audit[self.explained], self.network[self.explained])

    def probes(self) -> dict[str, float]:
        """Rank agreement of linear probes on both embeddings, and the accuracy of the network's."""
        from krepes_ooc.stages.fidelity.metrics import kendall_tau, linear_probe

        known = self.label >= 0
        fit, scored = self.fit & known, self.explained & known

        def probe(rows: Float) -> Any:
            return linear_probe(rows[fit], self.label[fit], rows[scored], self.label[scored])

        try:
            network = probe(self.network)
        except (StageFailed, ValueError):  # one class, or no sample with a label
            return {"kendall_tau": np.nan, "probe_accuracy": np.nan}

        def tau() -> float:
            audit = probe(self.audit)
            return kendall_tau(audit.true_probability, network.true_probability)

        return {"kendall_tau": _or_nan(tau), "probe_accuracy": network.accuracy}


def _precision(rule: AuditRule, top: Index, explained: npt.NDArray[np.bool_]) -> float:
    from krepes_ooc.stages.fidelity.metrics import precision_at_1

    nearest = rule.landmark_label[top[:, 0]]
    return _or_nan(lambda: precision_at_1(nearest, rule.label[explained]))


def _gap(column: ColumnValues, top: Index) -> float:
    return _or_nan(lambda: float(sample_gaps(agreement(column), top).mean()))


def _or_nan(measure: Callable[[], float]) -> float:
    try:
        return measure()
    except StageFailed:
        return float("nan")


def _minimiser_damping(inputs: RandomisedInputs) -> float | None:
    """Relative damping of the minimiser where it explains the audit."""
    facts = inputs.minimiser.attributes
    return float(facts["damping_relative"]) if facts["solution"] == MINIMISER else None


def _columns(inputs: RandomisedInputs) -> dict[str, ColumnValues]:
    """All table columns of the audit samples and landmarks, then the label where there is one."""
    audited, landmarks = inputs.audited, inputs.landmarks
    explained = np.flatnonzero(audited.array("role") == ROLES["audit"])
    found: dict[str, ColumnValues] = {}
    if audited.has("values"):
        values = audited.array("values")[explained]
        marks = landmarks.array("values")
        for i, column in enumerate(audited.attributes["columns"]):
            numeric = column["kind"] == "numeric"
            span = float(column["high"] - column["low"]) if numeric else None
            found[column["name"]] = ColumnValues(values[:, i], marks[:, i], span)
    label = audited.array("label")[explained]
    if (label >= 0).any():
        marks = landmarks.array("label").astype(np.float64)
        found[LABEL] = ColumnValues(label.astype(np.float64), marks)
    return found
