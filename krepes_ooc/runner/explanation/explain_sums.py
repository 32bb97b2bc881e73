"""Similarities and logits of samples as exact sums over landmarks.

    <f_t, f_y> = sum_l k_lt <A_l, f_y> + <gamma, f_y>
    w . f_t + b = sum_l k_lt <A_l, w> + <gamma, w> + b

Single terms of distilled coefficients are large and cancel; there the landmarks are listed by their
part <k_lt A_l, z_t> in the network's own embedding z_t of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.rendering.drawing.sample_view import LandmarkSamples
from krepes_ooc.rendering.explanation_sum import BY_EMBEDDING, BY_TERM, ExplainedSum
from krepes_ooc.runner.explanation.explain_coefficients import (
    DISTILLED,
    Coefficients,
    choose_coefficients,
)
from krepes_ooc.runner.explanation.explain_names import nearest_name
from krepes_ooc.runner.explanation.explain_stores import (
    NEEDED,
    AuditStores,
    Samples,
    chosen_samples,
    stack_columns,
)
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.distilled.probe import PROBE_C, ExplainedProbe, fit_probe
from krepes_ooc.stages.distilled.terms import (
    LandmarkSum,
    logit_sum,
    logit_terms,
    similarity_sum,
)
from krepes_ooc.stages.minimiser.solution import LM_STEPS, STEP
from krepes_ooc.storage.workspace import Workspace

DEFAULT_TOP = 5
Float = npt.NDArray[np.float64]


def explain_pair(
    workspace: Path | str,
    *,
    against: int,
    sample: int | Sequence[int] | None = None,
    file: Path | str | None = None,
    coefficients: str = "auto",
    top: int | None = None,
    recipe: Recipe | str | None = None,
) -> list[ExplainedSum]:
    """Explain the similarity of samples to one other sample as sums over landmarks.

    Args:
        workspace: folder of the audit.
        against: position in the source of the sample that they are compared with.
        sample: position in the source, or several.
        file: new samples instead, in the form of the source.
        coefficients: step, minimiser, distilled, or auto for those that the audit explains with.
        top: landmarks of either sign to list; default 5.
        recipe: the recipe, its name or its file, if it names code that a new sample needs.

    Raises:
        UsageError: no such sample, no such coefficients, or neither or both of sample and file.
        WorkspaceError: the audit has not got that far, or its recipe is stale.
    """
    sums = _Sums.open(workspace, recipe, coefficients, top)
    samples = chosen_samples(sums.stores, sample, file)
    other = sums.stores.sample(against)
    other_embedding = sums.coefficients.embedding(other.kernel)[0]
    embedding = sums.coefficients.embedding(samples.kernel)
    columns = stack_columns([samples, other])
    found = []
    for i, f in enumerate(embedding):
        similarity = similarity_sum(
            samples.kernel[i],
            sums.coefficients.coefficients,
            sums.coefficients.offset,
            f,
            other_embedding,
        )
        lengths = float(np.linalg.norm(f) * np.linalg.norm(other_embedding))
        details = {
            "cosine": similarity.value / lengths if lengths > 0 else None,
            "network_similarity": float(samples.network[i] @ other.network[0]),
        }
        found.append(sums.explained(columns, samples, i, len(samples), similarity, details))
    return found


def explain_decision(
    workspace: Path | str,
    *,
    probe: str,
    sample: int | Sequence[int] | None = None,
    file: Path | str | None = None,
    coefficients: str = "auto",
    top: int | None = None,
    recipe: Recipe | str | None = None,
) -> list[ExplainedSum]:
    """Explain the logit that a linear probe gives to one class as a sum over landmarks.

    The probe is fitted on the labelled fit samples: on the embedding of the coefficients, and for
    distilled coefficients on the network's own embedding.

    Args:
        workspace: folder of the audit.
        probe: name of the class.
        sample: position in the source, or several.
        file: new samples instead, in the form of the source.
        coefficients: as ``explain_pair``.
        top: landmarks of either sign to list; default 5.
        recipe: as ``explain_pair``.

    Raises:
        UsageError: no labels, no such class, no such sample or coefficients.
        WorkspaceError: the audit has not got that far, or its recipe is stale.
    """
    sums = _Sums.open(workspace, recipe, coefficients, top)
    code = _class_code(sums.stores, probe)
    fitted = _fit(sums.stores, sums.coefficients)
    column = fitted.column(code)
    if column is None:
        raise UsageError(
            f"no fit sample has class {probe!r}",
            where="--probe",
            expected="a class among the fit samples",
            advice="raise stages.audited.fit",
        )
    samples = chosen_samples(sums.stores, sample, file)
    weight, bias = fitted.readout.weight[:, column], float(fitted.readout.bias[column])
    embedding = sums.coefficients.embedding(samples.kernel)
    found = []
    for i, f in enumerate(embedding):
        A, gamma = sums.coefficients.coefficients, sums.coefficients.offset
        logit = logit_sum(samples.kernel[i], A, gamma, f, weight, bias)
        details = {"probe": _probe_record(sums, fitted, probe, column, f, samples.network[i])}
        found.append(sums.explained(samples.columns, samples, i, None, logit, details))
    return found


@dataclass(frozen=True)
class _Sums:
    """Stores, coefficients and length of the lists of one question.

    Args:
        stores: of the audit.
        coefficients: A and gamma.
        top: landmarks of either sign to list.
    """

    stores: AuditStores
    coefficients: Coefficients
    top: int

    @classmethod
    def open(
        cls,
        workspace: Path | str,
        recipe: Recipe | str | None,
        coefficients: str,
        top: int | None,
    ) -> _Sums:
        """Open the stores and choose the coefficients."""
        needed = (*NEEDED, DISTILLED) if coefficients == DISTILLED else NEEDED
        stores = AuditStores(Workspace(workspace), recipe, needed)
        chosen = choose_coefficients(stores, coefficients)
        return cls(stores, chosen, DEFAULT_TOP if top is None else top)

    def explained(
        self,
        columns: dict[str, Any],
        samples: Samples,
        i: int,
        other: int | None,
        value: LandmarkSum,
        details: dict[str, Any],
    ) -> ExplainedSum:
        """One sum with its landmarks, rows of one landmark sample taken together."""
        uses_step = self.coefficients.name in (STEP, LM_STEPS)
        audit = self.stores.data(columns, uses_step=uses_step, warnings=samples.warnings)
        assert audit.landmarks is not None
        marks = LandmarkSamples(audit.landmarks)
        summed = replace(value, terms=np.asarray(marks.total(value.terms)))
        # Distilled terms cancel: their sizes say little about a landmark.
        ranking, ranked_by = summed.terms, BY_TERM
        if self.coefficients.is_distilled:
            kernel, A = samples.kernel[i][None], self.coefficients.coefficients
            parts = logit_terms(kernel, A, samples.network[i][None])
            ranking, ranked_by = np.asarray(marks.total(parts[0])), BY_EMBEDDING
        return ExplainedSum(
            audit,
            i,
            other,
            summed.terms,
            ranking,
            ranked_by,
            np.asarray(marks.mean(samples.kernel[i])),
            summed.record(),
            self.coefficients.record(),
            details,
            self.top,
        )


def _class_code(stores: AuditStores, name: str) -> int:
    """Code of a class by its name.

    Raises:
        UsageError: the audit has no labels, or no such class.
    """
    audited = stores.reader("audited")
    classes = [str(text) for text in audited.info("label").attributes["categories"]]
    if not classes or not (audited.array("label") >= 0).any():
        raise UsageError(
            "this audit has no labels to fit a probe on",
            where="--probe",
            expected="a source with labels",
            advice="name source.label in the recipe, or explain with --against",
        )
    if name not in classes:
        raise nearest_name("class", name, classes, "--probe")
    return classes.index(name)


def _fit(stores: AuditStores, coefficients: Coefficients) -> ExplainedProbe:
    """The probe on the fit samples.

    Raises:
        UsageError: fewer than two classes among them.
    """
    audited = stores.reader("audited")
    fit = np.flatnonzero(audited.array("role") == ROLES["fit"])
    samples = stores.stored([int(row) for row in fit])
    rows = samples.network if coefficients.is_distilled else coefficients.embedding(samples.kernel)
    try:
        return fit_probe(rows, audited.array("label")[fit])
    except StageFailed as error:
        raise UsageError(
            error.what, where=error.where, expected=error.expected, advice=error.advice
        ) from error


def _probe_record(
    sums: _Sums, fitted: ExplainedProbe, name: str, column: int, f: Float, network: Float
) -> dict[str, Any]:
    """The probe and what it says of one sample, as JSON values."""
    classes = sums.stores.reader("audited").info("label").attributes["categories"]
    distilled = sums.coefficients.is_distilled
    own = fitted.readout.logits(network[None])[0, column] if distilled else None
    return {
        "class": name,
        "probability": float(fitted.probability(f[None])[0, column]),
        "decision": str(classes[int(fitted.decisions(f[None])[0])]),
        "fitted_on": "network embedding" if distilled else "embedding of the coefficients",
        "fit_samples": fitted.n_fit,
        "classes": len(fitted.classes),
        "regularisation": PROBE_C,
        "converged": fitted.converged,
        "network_logit": None if own is None else float(own),
    }
