"""Stage fidelity: figures that say whether to believe the audit, each beside its control.

Without labels: how well the embedding and the kernel reproduce the network's own embedding, how
much of the kernel the landmarks miss, how spread out the spectrum is. With labels: probes, removal
of landmarks, coverage of classes and Precision@1.
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
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.fidelity.component_sweep import ComponentSweepPoint, component_sweep
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
from krepes_ooc.stages.fidelity.precision_at_1 import LandmarkRankings
from krepes_ooc.stages.fidelity.rows import (
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
# Steps of all probes on rows as wide as the landmarks; each reads the rows twice. From two audits.
PROBE_ITERATIONS = 4000


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
    def probes(self) -> Probes:
        """The linear probes."""
        # As many random Fourier features as landmarks
        n_landmarks = len(self.landmarks.label)
        return open_probes(self.fit, self.audit, lambda: self.uniform.rows, n_landmarks, self.seed)

    @cached_property
    def component_sweep(self) -> list[ComponentSweepPoint]:
        """The audit with fewer components."""
        return component_sweep(self.inputs, self.context)

    @cached_property
    def uniform(self) -> UniformBaseline:
        """Uniform landmarks on the same samples."""
        return measure_uniform(self.inputs, self.context)

    @cached_property
    def rankings(self) -> LandmarkRankings:
        """Every way to rank the landmarks of the labelled audit samples."""
        return LandmarkRankings(
            self.audit.take(self.audit.labelled),
            self.landmarks,
            self.inputs.newton.array("step"),
            self.inputs.newton.array("coefficients"),
            self.second,
            str(self.inputs.influence.attributes["measure"]),
            self.n_classes,
        )

    @property
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
            self.inputs.newton.array("coefficients"),
            self.second,
            top[labelled][:, : self.context.settings.top],
            self.n_classes,
            self.seed,
            self.rankings.rankings(),
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
    write_whole(context, StoreSpec(load_contract("fidelity"), {}), {}, attributes)


def _label_free(data: _Measurements) -> dict[str, Callable[[], Figure]]:
    newton = data.inputs.newton
    spectrum = data.inputs.spectrum

    # Measured by the first figure that asks for it; where it is not defined, by none
    def uniform() -> UniformBaseline:
        return data.uniform

    return {
        "ridge_ceiling": lambda: ceiling_figure(data.fit, data.audit, uniform, data.seed),
        "cka": lambda: cka_figure(data.audit),
        "spectral_entropy": lambda: entropy_figure(newton, spectrum),
        "nystrom_error": lambda: nystrom_figure(spectrum, uniform),
        "stability": lambda: stability_figure(newton),
    }


def _labelled(data: _Measurements) -> dict[str, Callable[[], Figure]]:
    step = data.inputs.newton.array("step")
    return {
        "kendall_tau": lambda: data.probes.tau_figure(),
        "accuracy_gap": lambda: data.probes.gap_figure(),
        "confidence_drop": lambda: data.removal.drop_figure(),
        "drop_ratio": lambda: data.removal.ratio_figure(),
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
        curves["ceiling_over_components"] = ceiling_curve(data.fit, data.audit, sweep)
    # Probes need labels; the figures say so where there are none
    if data.has_labels:
        with skip_undefined():
            curves |= data.probes.component_curves(data.component_sweep)
    return curves


def estimate_cost(sizes: AuditSizes, settings: FidelitySettings) -> Cost:
    """Regressions, probes and k-NN classifiers on rows of the audited samples.

    Feature rows are read before the regressions, for the kernel rows of uniform landmarks.
    """
    n = sizes.n_audited
    m = sizes.n_landmarks
    h = sizes.n_components
    squares = Term("landmark kernels, moments and their eigenvectors", f64(m, m), 5)
    memory = {
        "regressions": (
            Term("kernel rows, those of uniform landmarks, random features, copies", f64(n, m), 7),
            Term("embeddings", f64(n, h), 6),
            Term("network embeddings", f64(n, sizes.n_outputs), 2),
            squares,
        ),
        "kernel rows of uniform landmarks": (
            Term("feature rows of audited samples", f16(n, sizes.n_features), 2),
            Term("feature rows of both sets of landmarks", f32(m, sizes.n_features), 5),
            Term("kernel rows", f64(n, m), 4),
            squares,
        ),
    }
    # Without labels no probe is fitted
    iterations = PROBE_ITERATIONS if sizes.n_classes else 0
    return Cost(
        disk=Quantity.of(Term("figures and curves", 2**15)),
        memory=Quantity(memory),
        flops=Quantity.of(Term("products of kernel rows and landmarks", 40.0 * n * m * m)),
        bytes_read=Quantity.of(Term("kernel rows, twice a probe's step", 16.0 * n * m, iterations)),
        float64=True,
    )


STAGE = Stage(
    name="fidelity",
    version=5,
    inputs=FidelityInputs,
    store="fidelity",
    settings=FidelitySettings,
    run=run,
    estimate_cost=estimate_cost,
    about="figures that say whether to believe the audit",
    uses_sklearn=True,
)
