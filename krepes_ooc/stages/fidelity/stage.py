"""Stage fidelity: figures that say whether to believe the audit, each beside its control.

Without labels: how well the embedding and the kernel reproduce the network's own embedding, how
much of the kernel the landmarks miss, how spread out the spectrum is. With labels: probes, removal
of landmarks, coverage of classes and Precision@1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.settings import setting
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.fidelity import label_free
from krepes_ooc.stages.fidelity.component_sweep import ComponentSweepPoint, component_sweep
from krepes_ooc.stages.fidelity.label_free import (
    ALL_ROWS,
    AUDIT_ROWS,
    UNIFORM,
    ceiling_curve,
    entropy_curve,
    landmark_curves,
)
from krepes_ooc.stages.fidelity.landmark_removal import LandmarkRemoval, coverage_figure
from krepes_ooc.stages.fidelity.linear_probes import Probes, keep, open_probes
from krepes_ooc.stages.fidelity.precision_at_1 import LandmarkRankings
from krepes_ooc.stages.fidelity.rows import (
    EvaluationRows,
    Figure,
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
class _Measured:
    """What the figures are measured on, read once."""

    context: StageContext

    @cached_property
    def fit(self) -> EvaluationRows:
        """Samples that probes and ceilings are fitted on, and that vote."""
        return audited_rows(self.context, "fit")

    @cached_property
    def held(self) -> EvaluationRows:
        """Samples that are explained; every figure is scored on them."""
        return audited_rows(self.context, "audit")

    @cached_property
    def landmarks(self) -> EvaluationRows:
        """The landmarks themselves."""
        return landmark_rows(self.context)

    @cached_property
    def second(self) -> Float:
        """Un-centred second moment of the kernel rows."""
        return np.asarray(read_moments(self.context.reader("moments")).mean_uncentred())

    @cached_property
    def probes(self) -> Probes:
        """The linear probes."""
        m = len(self.landmarks.label)
        return open_probes(self.fit, self.held, lambda: self.uniform.rows, m, self.seed)

    @cached_property
    def narrow(self) -> list[ComponentSweepPoint]:
        """The audit with fewer components."""
        return component_sweep(self.context)

    @cached_property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.context.reader("audited").info("label").attributes["categories"])

    @cached_property
    def uniform(self) -> UniformBaseline:
        """Uniform landmarks on the same samples."""
        return measure_uniform(self.context, self.seed)

    @property
    def has_labels(self) -> bool:
        """Whether any label is known."""
        return bool(self.fit.labelled.any() or self.held.labelled.any())

    @property
    def seed(self) -> int:
        """Seed of the recipe."""
        return self.context.recipe.seed


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


def run(inputs: FidelityInputs, context: StageContext) -> None:
    """Measure one figure after the other, and seal them as attributes."""
    data = _Measured(context)
    measures = _label_free(data) | (_labelled(data) if data.has_labels else {})
    context.progress.begin("fidelity", len(measures) + 2, 0)
    figures = {}
    for name, measure in measures.items():
        context.stop.check()
        figures[name] = figure_or_reason(measure)
        context.progress.advance(1)
    curves = _curves(data)
    context.progress.advance(1)
    newton = context.reader("newton").attributes
    for line in fidelity_lines(figures, newton):
        context.progress.note(line)
    attributes = {"figures": figures, "curves": curves}
    write_whole(context, StoreSpec(load_contract("fidelity"), {}), {}, attributes)


def _label_free(data: _Measured) -> dict[str, Callable[[], Figure]]:
    newton, spectrum = data.context.reader("newton"), data.context.reader("spectrum")

    def uniform() -> UniformBaseline:
        return data.uniform

    return {
        "ridge_ceiling": lambda: label_free.ceiling(data.fit, data.held, uniform, data.seed),
        "cka": lambda: label_free.cka(data.held),
        "spectral_entropy": lambda: label_free.entropy(newton, spectrum),
        "nystrom_error": lambda: label_free.nystrom_error(spectrum, uniform),
        "stability": lambda: label_free.stability(newton),
    }


def _labelled(data: _Measured) -> dict[str, Callable[[], Figure]]:
    newton = data.context.reader("newton")
    return {
        "kendall_tau": lambda: data.probes.tau(),
        "accuracy_gap": lambda: data.probes.accuracy_gap(),
        "confidence_drop": lambda: _removal(data).drop(),
        "drop_ratio": lambda: _removal(data).ratio(),
        "coverage": lambda: coverage_figure(
            data.landmarks, newton.array("step"), data.n_classes, data.seed
        ),
        "precision_at_1": lambda: _nearest(data).precision(),
    }


def _removal(data: _Measured) -> LandmarkRemoval:
    influence = data.context.reader("influence")
    held = data.held.labelled
    top = influence.array("top_landmark")[
        data.context.reader("audited").array("role") == ROLES["audit"]
    ]
    return LandmarkRemoval(
        keep(data.fit, data.fit.labelled),
        keep(data.held, held),
        data.landmarks,
        data.context.reader("newton").array("coefficients"),
        data.second,
        top[held][:, : data.context.settings.top],
        data.n_classes,
        data.seed,
        _nearest(data).rankings(),
    )


def _nearest(data: _Measured) -> LandmarkRankings:
    newton = data.context.reader("newton")
    return LandmarkRankings(
        keep(data.held, data.held.labelled),
        data.landmarks,
        newton.array("step"),
        newton.array("coefficients"),
        data.second,
        str(data.context.reader("influence").attributes["measure"]),
        data.n_classes,
    )


def _curves(data: _Measured) -> dict[str, Any]:
    """All curves that are defined here."""
    context = data.context
    kernel, spectrum = context.reader("kernel"), context.reader("spectrum")
    spans = {
        ALL_ROWS: LandmarkSubspace(
            kernel.whole("landmark_kernel"),
            data.second,
            float(kernel.attributes["self_kernel_mean"]),
            kernel.info("values").dtype.name,
        )
    }
    with skip_undefined():
        spans |= {AUDIT_ROWS: data.uniform.chosen, UNIFORM: data.uniform.uniform}
    found: dict[str, Any] = {"spectral_entropy": entropy_curve(context.reader("newton"), spectrum)}
    found |= landmark_curves(spans, data.seed)
    with skip_undefined():  # the figures say why
        found["ceiling_over_components"] = ceiling_curve(data.fit, data.held, data.narrow)
    if data.has_labels:
        with skip_undefined():
            found |= data.probes.over_components(data.narrow)
    return found


def predict(shape: AuditSizes, settings: FidelitySettings) -> Cost:
    """Regressions, probes and votes on rows of the audited samples.

    Kept are kernel rows of uniform landmarks and random features; a probe or a regression holds its
    rows twice more and sorts out those without a label. Feature rows are read before all that.
    """
    n, m, h, width = shape.n_audited, shape.n_landmarks, shape.n_components, shape.n_features
    rows = 8 * n * (7 * m + 6 * h + 2 * shape.n_outputs)
    reading = 4 * n * width + 20 * m * width + 32 * n * m
    need = MemoryNeed(max(rows, reading) + 40 * m * m)
    read = 16.0 * n * m * PROBE_ITERATIONS if shape.n_classes else 0.0
    return plain_cost(1, 2**15, need, 40.0 * n * m * m, bytes_read=read, float64=True)


STAGE = Stage(
    name="fidelity",
    version=4,
    inputs=FidelityInputs,
    store="fidelity",
    settings=FidelitySettings,
    run=run,
    estimate_cost=predict,
    about="figures that say whether to believe the audit",
    uses_sklearn=True,
)
