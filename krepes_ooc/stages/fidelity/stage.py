"""Stage fidelity: agreement with the network, each figure beside its controls.

Without labels: how well the embedding and the kernel reproduce the network's own embedding, whether
the ranking names the network's own nearest landmarks, how much of the kernel the landmarks miss,
how spread out the spectrum is. With labels: probes, removal of landmarks, coverage of classes and
Precision@1. What is compared with the plain kernel or with raw inputs has a paired interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figure_specs import ALL_SAMPLES, AUDIT_SAMPLES, UNIFORM_LANDMARKS
from krepes_ooc.core.figures import Curve, Figure
from krepes_ooc.core.settings import setting
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.features.featurizer import batch_term, input_terms
from krepes_ooc.stages.fidelity.component_sweep import ComponentSweepPoint, component_sweep
from krepes_ooc.stages.fidelity.decision_flips import flips_figure
from krepes_ooc.stages.fidelity.label_free import (
    ceiling_curve,
    ceiling_figure,
    cka_figure,
    entropy_curve,
    entropy_figure,
    landmark_curves,
    nystrom_figure,
    stability_figure,
)
from krepes_ooc.stages.fidelity.landmark_removal import LandmarkRemoval, coverage_figure
from krepes_ooc.stages.fidelity.linear_probes import Probes, open_probes
from krepes_ooc.stages.fidelity.logistic_regression import MEMORY
from krepes_ooc.stages.fidelity.neighbour_overlap import neighbour_overlap_figure
from krepes_ooc.stages.fidelity.precision_at_1 import LandmarkRankings
from krepes_ooc.stages.fidelity.regressions import (
    REFITS,
    Regressions,
    audit_tasks,
    measure_regressions,
    sweep_tasks,
)
from krepes_ooc.stages.fidelity.rows import (
    MAX_INPUTS,
    EvaluationRows,
    audited_rows,
    figure_or_reason,
    landmark_rows,
    skip_undefined,
)
from krepes_ooc.stages.fidelity.summary import fidelity_lines
from krepes_ooc.stages.fidelity.uniform_landmarks import (
    LandmarkSubspace,
    UniformBaseline,
    measure_uniform,
)
from krepes_ooc.stages.moments.stored_moments import read_moments
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]
# Steps of all probes on rows as wide as the landmarks; each reads the rows twice. From Adult.
PROBE_ITERATIONS = 150


@dataclass(frozen=True)
class FidelitySettings:
    """Recipe key ``stages.fidelity``."""

    top: int = setting(10, about="landmarks of a sample that are removed", minimum=1)


@dataclass(frozen=True)
class FidelityInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    moments: StoreReader
    spectrum: StoreReader
    newton: StoreReader
    influence: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "network")


@dataclass(frozen=True)
class _Measurements:
    """Rows, probes and baselines that several figures share, each computed once."""

    inputs: FidelityInputs
    context: StageContext

    @cached_property
    def fit(self) -> EvaluationRows:
        """Samples that probes and ceilings are fitted on, and the k-NN reference set."""
        return audited_rows(self.inputs, "fit")

    @cached_property
    def audit(self) -> EvaluationRows:
        """Samples that are explained; every figure is scored on them."""
        return audited_rows(self.inputs, "audit")

    @cached_property
    def landmarks(self) -> EvaluationRows:
        """The landmarks themselves."""
        return landmark_rows(self.inputs, self.context)

    @cached_property
    def second(self) -> Float:
        """Un-centred second moment of the kernel rows [landmark, landmark_]."""
        return np.asarray(read_moments(self.inputs.moments).mean_uncentred())

    @cached_property
    def regressions(self) -> Regressions:
        """Ridge regressions and probes of all spaces, computed by the workers."""
        uniform = None
        with skip_undefined():
            uniform = self.uniform.rows, self.uniform.others
        tasks = audit_tasks(self.fit, self.audit, uniform, self.seed)
        with skip_undefined():
            tasks += sweep_tasks(self.fit, self.audit, self.component_sweep)
        executor = self.context.executor()
        return measure_regressions(self.fit, self.audit, tasks, self.has_labels, executor)

    @cached_property
    def probes(self) -> Probes:
        """The linear probes."""
        return open_probes(self.regressions, self.fit, self.audit)

    @cached_property
    def component_sweep(self) -> list[ComponentSweepPoint]:
        """The audit with fewer components."""
        return component_sweep(self.inputs, self.context)

    @cached_property
    def uniform(self) -> UniformBaseline:
        """Uniform landmarks on the same samples."""
        return measure_uniform(self.inputs, self.context)

    def rankings_of(self, audit: EvaluationRows) -> LandmarkRankings:
        """Every way to rank the landmarks of some audit samples."""
        return LandmarkRankings(
            audit,
            self.landmarks,
            self.inputs.influence.array("step"),
            self.inputs.influence.array("coefficients"),
            self.second,
            str(self.inputs.influence.attributes["measure"]),
            self.n_classes,
        )

    @cached_property
    def all_rankings(self) -> LandmarkRankings:
        """Rankings of all audit samples, for figures without labels."""
        return self.rankings_of(self.audit)

    @cached_property
    def rankings(self) -> LandmarkRankings:
        """Rankings of the labelled audit samples."""
        labelled = self.audit.labelled
        return self.all_rankings if labelled.all() else self.rankings_of(self.audit.take(labelled))

    @cached_property
    def removal(self) -> LandmarkRemoval:
        """Removal of the top landmarks of the labelled audit samples."""
        labelled = self.audit.labelled
        is_audit = self.inputs.audited.array("role") == ROLES["audit"]
        # Ranked landmarks of the audit samples, in the order of their rows
        top = self.inputs.influence.array("top_landmark")[is_audit]
        return LandmarkRemoval(
            self.fit.take(self.fit.labelled),
            self.audit.take(labelled),
            self.landmarks,
            self.inputs.influence.array("coefficients"),
            self.second,
            top[labelled][:, : self.context.settings.top],
            self.n_classes,
            self.seed,
            self.rankings.rankings,
        )

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.inputs.audited.info("label").attributes["categories"])

    @property
    def has_labels(self) -> bool:
        """True if any label is known."""
        return bool(self.fit.labelled.any() or self.audit.labelled.any())

    @property
    def seed(self) -> int:
        """Seed of the recipe."""
        return self.inputs.recipe.seed


def run(inputs: FidelityInputs, context: StageContext) -> None:
    """Measure one figure after the other, and seal them as attributes."""
    # Nothing is read before the first figure asks for it
    data = _Measurements(inputs, context)
    measures = _label_free(data) | (_labelled(data) if data.has_labels else {})
    context.progress.begin("fidelity", len(measures) + 2, 0)
    figures = {}
    for key, measure in measures.items():
        # Figures are not resumed: each takes seconds, and all are written at once
        context.stop.check()
        figures[key] = figure_or_reason(key, measure)
        context.progress.advance(1)
    curves = _curves(data)
    context.progress.advance(1)
    for line in fidelity_lines(figures, inputs.newton.attributes):
        context.progress.note(line)
    # Keys and values only: labels are looked up when something is shown
    attributes = {
        "figures": {key: figure.to_attributes() for key, figure in figures.items()},
        "curves": {key: curve.to_attributes() for key, curve in curves.items()},
    }
    arrays: dict[str, Float] = {}
    if data.has_labels:
        with skip_undefined():
            arrays = {"refit_tau": data.probes.refit_tau, "refit_gap": data.probes.refit_gap}
    sizes = {"refit": REFITS, "half": 2}
    spec = StoreSpec(load_contract("fidelity"), sizes, arrays=tuple(arrays))
    write_whole(context, spec, arrays, attributes)


def _label_free(data: _Measurements) -> dict[str, Callable[[], Figure]]:
    newton = data.inputs.newton
    spectrum = data.inputs.spectrum

    # Measured by the first figure that asks for it; where it is not defined, by none
    def uniform() -> UniformBaseline:
        return data.uniform

    return {
        "ridge_ceiling": lambda: ceiling_figure(data.regressions, data.fit, data.audit),
        "cka": lambda: cka_figure(data.audit),
        "neighbour_overlap": lambda: neighbour_overlap_figure(data.all_rankings),
        "spectral_entropy": lambda: entropy_figure(newton, spectrum),
        "nystrom_error": lambda: nystrom_figure(spectrum, uniform),
        "stability": lambda: stability_figure(newton),
    }


def _labelled(data: _Measurements) -> dict[str, Callable[[], Figure]]:
    step = data.inputs.influence.array("step")
    return {
        "kendall_tau": lambda: data.probes.tau_figure(),
        "accuracy_gap": lambda: data.probes.gap_figure(),
        "confidence_drop": lambda: data.removal.drop_figure(),
        "drop_ratio": lambda: data.removal.ratio_figure(),
        "decision_flips": lambda: flips_figure(data.removal),
        "coverage": lambda: coverage_figure(data.landmarks, step, data.n_classes, data.seed),
        "precision_at_1": lambda: data.rankings.precision_figure(),
    }


def _curves(data: _Measurements) -> dict[str, Curve]:
    """All curves that are defined here; of the others the figures say why they are not."""
    kernel = data.inputs.kernel
    # The audit's landmarks before all samples and views
    subspaces = {
        ALL_SAMPLES: LandmarkSubspace(
            kernel.whole("landmark_kernel"),
            data.second,
            float(kernel.attributes["self_kernel_mean"]),
            kernel.info("values").dtype.name,
        )
    }
    with skip_undefined():
        subspaces[AUDIT_SAMPLES] = data.uniform.chosen
        subspaces[UNIFORM_LANDMARKS] = data.uniform.uniform
    curves = {"spectral_entropy": entropy_curve(data.inputs.newton, data.inputs.spectrum)}
    curves |= landmark_curves(subspaces, data.seed)
    with skip_undefined():
        sweep = data.component_sweep
        curves["ceiling_over_components"] = ceiling_curve(data.regressions, data.fit, sweep)
    # Probes need labels; the figures say so where there are none
    if data.has_labels:
        with skip_undefined():
            curves |= data.probes.component_curves(data.component_sweep)
    return curves


def estimate_cost(sizes: AuditSizes, settings: FidelitySettings) -> Cost:
    """Regressions on every space, rankings of the audit samples, and k-NN classifiers.

    Feature rows are read before the regressions, for the kernel rows of uniform landmarks.
    """
    n = sizes.n_audited
    m = sizes.n_landmarks
    # Inputs are a space of their own, unless they are very long.
    n_inputs = sizes.n_inputs if sizes.n_inputs <= MAX_INPUTS else 0
    width = max(m, n_inputs)
    # Rows of the widest space are made, then centred and multiplied; ridge and probe may differ in
    # their samples
    made = Term("rows of one space and what they are made of", f64(n, width), 3)
    centred = Term("rows of one space, centred", f64(n, width), 2)
    factors = Term("Gram matrices and their factors", f64(width, width), 5)
    worker = {"rows": (made,), "fits": (centred, factors, *_probe_memory(sizes, width))}
    # Before and after the regressions there are none of their rows
    none = tuple(Term(term.label, term.size, -term.times) for term in (centred, factors))
    # Without labels no probe is fitted
    iterations = PROBE_ITERATIONS if sizes.n_classes else 0
    return Cost(
        disk=Quantity.of(Term("figures and curves", 2**15)),
        memory=_memory(sizes, n_inputs, none),
        worker_memory=Quantity(worker),
        flops=Quantity.of(
            Term("Gram matrices, scores and kernel rows", 10.0 * n * m * m),
            Term("eigenvectors", 40.0 * m**3),
            Term(ROW_PASSES, sizes.row_operations * m / 3),
        ),
        bytes_read=Quantity.of(Term("kernel rows, twice a probe's step", 16.0 * n * m, iterations)),
        float64=True,
    )


def _memory(sizes: AuditSizes, n_inputs: int, none: tuple[Term, ...]) -> Quantity:
    """Bytes besides the workers', by phase; ``none``: what no worker has outside regressions."""
    n = sizes.n_audited
    m = sizes.n_landmarks
    squares = Term("landmark kernels, moments and their eigenvectors", f64(m, m), 5)
    kept = (
        Term("kernel rows of uniform landmarks", f64(n, m)),
        Term("embeddings", f64(n, sizes.n_components), 6),
        Term("network embeddings", f64(n, sizes.n_outputs), 2),
        Term("network inputs", f64(n, n_inputs), 2),
        squares,
    )
    return Quantity(
        {
            "regressions": kept,
            "rankings": (
                *kept,
                Term("kernel rows of labelled samples", f64(n, m)),
                Term("scores of the landmarks", f64(sizes.n_explained, m), 16),
                *none,
            ),
            "network embeddings of the landmarks": (
                *kept,
                batch_term(sizes),
                *input_terms(sizes, sizes.plan.sub_rows),
                *none,
            ),
            "kernel rows of uniform landmarks": (
                Term("feature rows of audited samples", f16(n, sizes.n_features), 2),
                Term("feature rows of both sets of landmarks", f32(m, sizes.n_features), 5),
                Term("kernel rows", f64(n, m), 2),
                squares,
                *none,
            ),
        }
    )


def _probe_memory(sizes: AuditSizes, width: int) -> tuple[Term, ...]:
    """Memory of a worker that fits a linear probe on rows of one space."""
    n, classes = sizes.n_audited, sizes.n_classes
    return (
        Term("logits and errors of a probe", f64(n, classes), 6),
        Term("weights, gradients and steps of a probe", f64(width, classes), 2 * MEMORY + 8),
    )


STAGE = Stage(
    name="fidelity",
    version=7,
    inputs=FidelityInputs,
    store="fidelity",
    settings=FidelitySettings,
    run=run,
    estimate_cost=estimate_cost,
    about="agreement with the network, each figure beside its controls",
)
