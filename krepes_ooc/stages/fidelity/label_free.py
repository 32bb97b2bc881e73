"""Figures that need no label: ridge ceiling, CKA, entropy, Nystrom error, stability."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from krepes_ooc.core import counter_rng
from krepes_ooc.core.figure_specs import (
    AGAINST_INPUTS,
    ALL_SAMPLES,
    LM_STEPS,
    SOLUTION,
    START,
    STEP,
    STEP_AGAINST_KERNEL,
    UNIFORM_LANDMARKS,
)
from krepes_ooc.core.figures import Curve, Figure, curve, figure
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.component_sweep import ComponentSweepPoint
from krepes_ooc.stages.fidelity.metrics import linear_cka
from krepes_ooc.stages.fidelity.regressions import (
    FOURIER,
    KERNEL_ROWS,
    RAW_INPUTS,
    UNIFORM,
    Regressions,
    sweep_key,
)
from krepes_ooc.stages.fidelity.rows import (
    EvaluationRows,
    control_or_none,
    powers_of_two,
    skip_undefined,
)
from krepes_ooc.stages.fidelity.sample_estimates import (
    SampleEstimate,
    cka_estimate,
    paired,
    r_squared_estimate,
)
from krepes_ooc.stages.fidelity.uniform_landmarks import LandmarkSubspace, UniformBaseline
from krepes_ooc.stages.spectrum.nystrom import spectral_entropy
from krepes_ooc.storage.store_reader import StoreReader

# With fewer landmarks a curve shows little but the draw
LEAST_LANDMARKS = 8
_SUBSET_STREAM = 422


def ceiling_figure(regressions: Regressions, fit: EvaluationRows, audit: EvaluationRows) -> Figure:
    """R^2 of linear maps to the network's embedding, scored on audit samples.

    Args:
        regressions: results of all spaces.
        fit: samples that the maps are fitted on.
        audit: samples that they are scored on.

    Raises:
        StageFailed: fewer than two fit samples, or rows that are constant.
    """
    _check_fit(fit)

    def score(key: str) -> float:
        return regressions.ridge(key).r_squared

    # What this audit reaches of the ceiling
    controls: dict[str, float | None] = {
        START: score(START),
        SOLUTION: score(SOLUTION),
        STEP: score(STEP),
    }
    if LM_STEPS in regressions:
        controls[LM_STEPS] = score(LM_STEPS)
    # What rows without any network reach
    if RAW_INPUTS in regressions:
        controls[RAW_INPUTS] = control_or_none(lambda: score(RAW_INPUTS))
        if (fourier := control_or_none(lambda: score(FOURIER))) is not None:
            controls[FOURIER] = fourier
    controls[UNIFORM] = None
    if UNIFORM in regressions:
        controls[UNIFORM] = control_or_none(lambda: score(UNIFORM))

    def estimate(key: str) -> SampleEstimate:
        return r_squared_estimate(audit.network, regressions.predicted(key))

    # The figure is what kernel rows carry: the solution is compared with it, and inputs from it
    rows = estimate(KERNEL_ROWS)
    differences = paired(estimate(SOLUTION), {STEP_AGAINST_KERNEL: rows})
    if controls.get(RAW_INPUTS) is not None:
        differences |= paired(rows, {AGAINST_INPUTS: estimate(RAW_INPUTS)})
    return figure("ridge_ceiling", score(KERNEL_ROWS), controls, rows.interval, paired=differences)


def cka_figure(audit: EvaluationRows) -> Figure:
    """Linear CKA of the audit's embedding and the network's."""
    solution = cka_estimate(audit.embedding, audit.network)
    kernel = cka_estimate(audit.kernel, audit.network)
    controls: dict[str, float | None] = {
        START: linear_cka(audit.embedding_start, audit.network),
        STEP: linear_cka(audit.embedding_step, audit.network),
        KERNEL_ROWS: kernel.value,
    }
    others: dict[str, SampleEstimate | None] = {STEP_AGAINST_KERNEL: kernel}
    if audit.inputs is not None:
        inputs = audit.inputs
        with skip_undefined():
            others[AGAINST_INPUTS] = cka_estimate(inputs, audit.network)
        controls[RAW_INPUTS] = control_or_none(lambda: linear_cka(inputs, audit.network))
    value = linear_cka(audit.embedding, audit.network)
    return figure("cka", value, controls, solution.interval, paired=paired(solution, others))


def entropy_figure(newton: StoreReader, spectrum: StoreReader) -> Figure:
    """Spectral entropy of the coefficients over directions."""
    controls = {
        START: spectral_entropy(spectrum.array("start")),
        STEP: spectral_entropy(newton.array("step")),
    }
    return figure("spectral_entropy", spectral_entropy(newton.array("coefficients")), controls)


def nystrom_figure(spectrum: StoreReader, uniform: Callable[[], UniformBaseline]) -> Figure:
    """Nystrom error of the landmarks, beside that of uniform ones."""
    attributes = spectrum.attributes
    n_landmarks = spectrum.info("eigenvalues").shape[0]
    controls = {
        "usable_rank_share": attributes["usable_rank"] / n_landmarks,
        "audit_samples": control_or_none(lambda: uniform().chosen.nystrom_error()),
        "uniform_landmarks": control_or_none(lambda: uniform().uniform.nystrom_error()),
    }
    return figure("nystrom_error", float(attributes["nystrom_error"]), controls)


def stability_figure(newton: StoreReader) -> Figure:
    """Overlap of the ranking with that of the next larger damping."""
    stability = newton.array("stability")
    # The damping of the sweep that is nearest to the one in use
    chosen = int(np.argmin(np.abs(newton.array("damping") - newton.attributes["damping"])))
    return figure("stability", float(stability[chosen]), {"lowest": float(stability.min())})


def entropy_curve(newton: StoreReader, spectrum: StoreReader) -> Curve:
    """Spectral entropy of start + step over the damping sweep, beside that of the start."""
    entropy = newton.array("entropy")
    at_start = spectral_entropy(spectrum.array("start"))
    lines = {"coefficients": entropy, START: np.full(len(entropy), at_start)}
    return curve("spectral_entropy", newton.array("damping_relative"), lines)


def ceiling_curve(
    regressions: Regressions, fit: EvaluationRows, sweep: list[ComponentSweepPoint]
) -> Curve:
    """R squared of the network's embedding from the embeddings of audits with h components.

    Raises:
        StageFailed: fewer than two fit samples, or as ``ridge_ceiling``.
    """
    _check_fit(fit)

    def score(point: ComponentSweepPoint, key: str) -> float:
        is_whole = point is sweep[-1]
        return regressions.ridge(key if is_whole else sweep_key(point.n_components, key)).r_squared

    lines = {key: [score(point, key) for point in sweep] for key in sweep[-1].coefficients}
    return curve("ceiling_over_components", [point.n_components for point in sweep], lines)


def _check_fit(fit: EvaluationRows) -> None:
    if len(fit.kernel) < 2:
        raise StageFailed(
            "the ridge ceiling is not defined",
            where="fidelity",
            expected="at least two fit samples",
            advice="raise stages.audited.fit",
        )


def landmark_curves(subspaces: Mapping[str, LandmarkSubspace], seed: int) -> dict[str, Curve]:
    """Nystrom error and effective dimension of nested random subsets of landmarks.

    Args:
        subspaces: equally many landmarks before their populations, by key.
        seed: of the order in which landmarks are added.
    """
    m = len(next(iter(subspaces.values())).landmark_kernel)
    # Nested subsets: each is the beginning of one random order
    order = np.argsort(counter_rng.bits(seed, _SUBSET_STREAM, np.arange(m)), kind="stable")
    counts = [count for count in powers_of_two(m) if count >= min(m, LEAST_LANDMARKS)]
    subsets = {
        key: [subspace.subset(order[:count]) for count in counts]
        for key, subspace in subspaces.items()
    }
    errors = {key: [part.nystrom_error() for part in line] for key, line in subsets.items()}
    # The effective dimension depends on the landmarks alone, not on the population
    dimensions = {
        key: [part.effective_dimension() for part in subsets[key]]
        for key in (ALL_SAMPLES, UNIFORM_LANDMARKS)
        if key in subsets
    }
    return {
        "nystrom_error_over_landmarks": curve("nystrom_error_over_landmarks", counts, errors),
        "effective_dimension_over_landmarks": curve(
            "effective_dimension_over_landmarks", counts, dimensions
        ),
    }
