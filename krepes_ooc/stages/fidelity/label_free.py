"""Figures that need no label: ridge ceiling, likeness, entropy, Nystrom error, stability."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.component_sweep import ComponentSweepPoint, streaming_note
from krepes_ooc.stages.fidelity.linear_probes import fourier
from krepes_ooc.stages.fidelity.rows import (
    EvaluationRows,
    Figure,
    control_or_none,
    curve,
    figure,
    powers_of_two,
)
from krepes_ooc.stages.fidelity.uniform_landmarks import LandmarkSubspace, UniformBaseline
from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]


def ceiling(
    fit: EvaluationRows, held: EvaluationRows, uniform: Callable[[], UniformBaseline], seed: int
) -> Figure:
    """R^2 of linear maps to the network's embedding, scored on audit samples.

    Raises:
        StageFailed: fewer than two fit samples, or rows that are constant.
    """
    from krepes_ooc.stages.fidelity.metrics import ridge_ceiling

    if len(fit.kernel) < 2:
        raise StageFailed(
            "the ridge ceiling is not defined",
            where="fidelity",
            expected="at least two fit samples",
            advice="raise stages.audited.fit",
        )

    def score(rows: Float, other: Float) -> float:
        return ridge_ceiling(rows, fit.network, other, held.network).r_squared

    controls: dict[str, float | None] = {
        "embedding at the start": score(fit.start, held.start),
        "embedding after the step": score(fit.step, held.step),
    }
    if fit.coefficients_lm is not None and held.coefficients_lm is not None:
        controls["embedding after further steps"] = score(fit.coefficients_lm, held.coefficients_lm)
    if fit.inputs is not None and held.inputs is not None:
        inputs = fit.inputs, held.inputs
        controls["raw inputs"] = control_or_none(lambda: score(*inputs))
        for name, rows in fourier(*inputs, fit.kernel.shape[1], seed).items():
            controls[name] = score(*rows)
    controls["as many uniform landmarks"] = control_or_none(lambda: uniform().ceiling)
    return figure(
        score(fit.kernel, held.kernel),
        "Variance of the network's embedding that kernel rows explain (ridge ceiling)",
        "Held-out R squared of a ridge regression. The ceiling is what any coefficients could "
        "reach; start and step are what the audit's own embedding reaches.",
        controls,
    )


def cka(held: EvaluationRows) -> Figure:
    """Likeness of the embeddings of the audit and of the network."""
    from krepes_ooc.stages.fidelity.metrics import linear_cka

    return figure(
        linear_cka(held.step, held.network),
        "Similarity of the audit's embedding and the network's (linear CKA)",
        "1 means the same geometry up to rotation and scale.",
        {
            "embedding at the start": linear_cka(held.start, held.network),
            "kernel rows": linear_cka(held.kernel, held.network),
        },
    )


def entropy(newton: StoreReader, spectrum: StoreReader) -> Figure:
    """Spread of the coefficients over directions."""
    from krepes_ooc.stages.spectrum.nystrom import spectral_entropy

    return figure(
        spectral_entropy(newton.array("coefficients")),
        "Spectral entropy of the coefficients",
        "1 means that all directions are used alike, 0 that a single one is.",
        {
            "start": spectral_entropy(spectrum.array("start")),
            "step": spectral_entropy(newton.array("step")),
        },
    )


def nystrom_error(spectrum: StoreReader, uniform: Callable[[], UniformBaseline]) -> Figure:
    """What the landmarks miss of the kernel, beside uniform ones."""
    facts, m = spectrum.attributes, spectrum.info("eigenvalues").shape[0]
    return figure(
        float(facts["nystrom_error"]),
        "Share of the kernel that the landmarks miss (Nystrom error)",
        "Mean of k(x, x) - k_x K_mm^+ k_x over all samples and views, over the mean k(x, x).",
        {
            "usable rank over landmarks": facts["usable_rank"] / m,
            "on the audit samples": control_or_none(lambda: uniform().chosen.error()),
            "on the audit samples, as many uniform landmarks": control_or_none(
                lambda: uniform().uniform.error()
            ),
        },
    )


def stability(newton: StoreReader) -> Figure:
    """Whether the ranking survives another damping."""
    chosen = int(np.argmin(np.abs(newton.array("damping") - newton.attributes["damping"])))
    return figure(
        float(newton.array("stability")[chosen]),
        "Top-10 landmarks that survive the next larger damping",
        "Mean overlap under the paper's influence score; low: the damping decides the ranking.",
        {"lowest over the sweep": float(newton.array("stability").min())},
    )


LEAST_LANDMARKS = 8
ALL_ROWS = "all samples"
AUDIT_ROWS = "audit samples"
UNIFORM = "uniform landmarks"
_SUBSET_STREAM = 422


def entropy_curve(newton: StoreReader, spectrum: StoreReader) -> dict[str, Any]:
    """Spectral entropy of start + step over the damping sweep, beside that of the start."""
    from krepes_ooc.stages.spectrum.nystrom import spectral_entropy

    found = newton.array("entropy")
    start = spectral_entropy(spectrum.array("start"))
    return curve(
        "Spectral entropy over the damping",
        ("relative damping", "entropy of A, 1 = all directions alike"),
        newton.array("damping_relative"),
        {"start + step": found, "start": np.full(len(found), start)},
        "Each point is a step of its own; the chosen damping is in the panel of the step.",
    )


def ceiling_curve(
    fit: EvaluationRows, held: EvaluationRows, audits: list[ComponentSweepPoint]
) -> dict[str, Any]:
    """R squared of the network's embedding from the embeddings of narrower audits.

    Raises:
        StageFailed: fewer than two fit samples, or as ``ridge_ceiling``.
    """
    from krepes_ooc.stages.fidelity.metrics import ridge_ceiling

    if len(fit.kernel) < 2:
        raise StageFailed("too few fit samples", where="fidelity", expected="at least two")

    def score(audit: ComponentSweepPoint, name: str) -> float:
        first, second = (audit.embedding(name, part.kernel) for part in (fit, held))
        return ridge_ceiling(first, fit.network, second, held.network).r_squared

    return curve(
        "What h components carry of the network's embedding",
        ("components h", "held-out R squared"),
        [audit.n_components for audit in audits],
        {name: [score(audit, name) for audit in audits] for name in audits[-1].coefficients},
        "Ridge regression from the embedding of an audit with h components; its steps are solved "
        "anew. " + streaming_note(audits),
    )


def landmark_curves(spans: Mapping[str, LandmarkSubspace], seed: int) -> dict[str, Any]:
    """Nystrom error and effective dimension of nested random subsets of landmarks.

    Args:
        spans: equally many landmarks before their populations, by name in words.
        seed: of the order in which landmarks are added.
    """
    m = len(next(iter(spans.values())).landmark_kernel)
    order = np.argsort(counter_rng.bits(seed, _SUBSET_STREAM, np.arange(m)), kind="stable")
    counts = [count for count in powers_of_two(m) if count >= min(m, LEAST_LANDMARKS)]
    parts = {name: [span.subset(order[:count]) for count in counts] for name, span in spans.items()}
    subsets = "Random subsets of the landmarks, each holding the one before."
    return {
        "nystrom_error_over_landmarks": curve(
            "Share of the kernel that is missed, against the number of landmarks",
            ("landmarks m", "Nystrom error"),
            counts,
            {name: [part.error() for part in line] for name, line in parts.items()},
            subsets + " Where the curve is still falling at its end, more landmarks would help. "
            "Over all samples and views, over the audit samples, and for as many uniform landmarks "
            "over the same audit samples.",
        ),
        "effective_dimension_over_landmarks": curve(
            "Effective dimension against the number of landmarks",
            ("landmarks m", "effective dimension"),
            counts,
            {
                name: [part.dimension() for part in parts[name]]
                for name in (ALL_ROWS, UNIFORM)
                if name in parts
            },
            "Sum of Lambda / (Lambda + mean k(x, x)). " + subsets + " It levels off once the "
            "landmarks span the data.",
        ),
    }
