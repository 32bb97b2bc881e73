"""Figures that need no label: ridge ceiling, likeness, entropy, Nystrom error, stability."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelityrows import Figure, Rows, attempt, figure
from krepes_ooc.stages.probing import fourier
from krepes_ooc.stages.uniform import Comparison
from krepes_ooc.storage.reader import StoreReader

Float = npt.NDArray[np.float64]


def ceiling(fit: Rows, held: Rows, uniform: Callable[[], Comparison], seed: int) -> Figure:
    """R^2 of linear maps to the network's embedding, scored on audit samples.

    Raises:
        StageFailed: fewer than two fit samples, or rows that are constant.
    """
    from krepes_ooc.algebra.measures import ridge_ceiling

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
    if fit.converged is not None and held.converged is not None:
        controls["embedding after further steps"] = score(fit.converged, held.converged)
    if fit.inputs is not None and held.inputs is not None:
        inputs = fit.inputs, held.inputs
        controls["raw inputs"] = attempt(lambda: score(*inputs))
        for name, rows in fourier(*inputs, fit.kernel.shape[1], seed).items():
            controls[name] = score(*rows)
    controls["as many uniform landmarks"] = attempt(lambda: uniform().ceiling)
    return figure(
        score(fit.kernel, held.kernel),
        "Variance of the network's embedding that kernel rows explain (ridge ceiling)",
        "Held-out R squared of a ridge regression. The ceiling is what any coefficients could "
        "reach; start and step are what the audit's own embedding reaches.",
        controls,
    )


def cka(held: Rows) -> Figure:
    """Likeness of the embeddings of the audit and of the network."""
    from krepes_ooc.algebra.measures import linear_cka

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
    from krepes_ooc.algebra.measures import spectral_entropy

    return figure(
        spectral_entropy(newton.array("coefficients")),
        "Spectral entropy of the coefficients",
        "1 means that all directions are used alike, 0 that a single one is.",
        {
            "start": spectral_entropy(spectrum.array("start")),
            "step": spectral_entropy(newton.array("step")),
        },
    )


def nystrom_error(spectrum: StoreReader, uniform: Callable[[], Comparison]) -> Figure:
    """What the landmarks miss of the kernel, beside uniform ones."""
    facts, m = spectrum.attributes, spectrum.info("eigenvalues").shape[0]
    return figure(
        float(facts["nystrom_error"]),
        "Share of the kernel that the landmarks miss (Nystrom error)",
        "Mean of k(x, x) - k_x K_mm^+ k_x over all samples and views, over the mean k(x, x).",
        {
            "usable rank over landmarks": facts["usable_rank"] / m,
            "on the audit samples": attempt(lambda: uniform().own.error()),
            "on the audit samples, as many uniform landmarks": attempt(
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
