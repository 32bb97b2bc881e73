"""Stage fidelity: figures that say whether to believe the audit, each beside its control.

Everything here needs no label: how well the embedding and the kernel reproduce the network's own
embedding, how much of the kernel the landmarks miss, and how spread out the spectrum is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.engine.budget import Need
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.audited import ROLES
from krepes_ooc.stages.base import Cost, Stage, StageContext, write_whole
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.storage.contracts import StoreSpec, load_contract

Float = npt.NDArray[np.float64]
Figure = dict[str, Any]


@dataclass(frozen=True)
class FidelitySettings:
    """Recipe key ``stages.fidelity``: nothing to set."""


@dataclass(frozen=True)
class _Rows:
    """Kernel rows, embeddings and network embeddings of the fit or audit samples."""

    kernel: Float
    start: Float
    step: Float
    network: Float


def run(context: StageContext) -> None:
    """Measure, and seal the figures as attributes."""
    context.progress.begin("fidelity", 1, 0)
    newton, spectrum = context.reader("newton"), context.reader("spectrum")
    fit, held = (_rows(context, ROLES[role]) for role in ("fit", "audit"))
    figures = {
        "ridge_ceiling": _measured(lambda: _ceiling(fit, held)),
        "cka": _measured(lambda: _cka(held)),
        "spectral_entropy": _measured(lambda: _entropy(newton, spectrum)),
        "nystrom_error": _nystrom(spectrum),
        "stability": _stability(newton),
    }
    write_whole(context, StoreSpec(load_contract("fidelity"), {}), {}, {"figures": figures})


def _rows(context: StageContext, role: int) -> _Rows:
    audited, influence = context.reader("audited"), context.reader("influence")
    spectrum = context.reader("spectrum")
    here = audited.array("role") == role
    kernel = influence.array("kernel")[here]
    start = kernel @ spectrum.array("start") + spectrum.array("offset")
    network = audited.array("network_embedding")[here].astype(np.float64)
    return _Rows(kernel, start, influence.array("embedding")[here], network)


def _measured(measure: Callable[[], Figure]) -> Figure:
    """A figure, or why it is not defined here: a reduced result, never a silent NaN."""
    try:
        return measure()
    except StageFailed as error:
        return {"value": None, "controls": {}, "words": "", "note": str(error)}


def _figure(value: float, words: str, note: str, controls: Mapping[str, float]) -> Figure:
    return {"value": value, "controls": dict(controls), "words": words, "note": note}


def _ceiling(fit: _Rows, held: _Rows) -> Figure:
    """R^2 of linear maps to the network's embedding, fitted on fit samples, scored on audit samples."""
    from krepes_ooc.algebra.measures import ridge_ceiling

    if len(fit.kernel) < 2:
        raise StageFailed(
            "the ridge ceiling is not defined",
            where="fidelity",
            expected="at least two fit samples",
            advice="raise stages.audited.fit",
        )

    def score(name: str) -> float:
        rows = getattr(fit, name), fit.network, getattr(held, name), held.network
        return ridge_ceiling(*rows).r_squared

    return _figure(
        score("kernel"),
        "Variance of the network's embedding that kernel rows explain (ridge ceiling)",
        "Held-out R squared of a ridge regression. The ceiling is what any coefficients could "
        "reach; start and step are what the audit's own embedding reaches.",
        {"embedding at the start": score("start"), "embedding after the step": score("step")},
    )


def _cka(held: _Rows) -> Figure:
    from krepes_ooc.algebra.measures import linear_cka

    return _figure(
        linear_cka(held.step, held.network),
        "Similarity of the audit's embedding and the network's (linear CKA)",
        "1 means the same geometry up to rotation and scale.",
        {
            "embedding at the start": linear_cka(held.start, held.network),
            "kernel rows": linear_cka(held.kernel, held.network),
        },
    )


def _entropy(newton: Any, spectrum: Any) -> Figure:
    from krepes_ooc.algebra.measures import spectral_entropy

    return _figure(
        spectral_entropy(newton.array("coefficients")),
        "Spectral entropy of the coefficients",
        "1 means that all directions are used alike, 0 that a single one is.",
        {
            "start": spectral_entropy(spectrum.array("start")),
            "step": spectral_entropy(newton.array("step")),
        },
    )


def _nystrom(spectrum: Any) -> Figure:
    facts = spectrum.attributes
    return _figure(
        float(facts["nystrom_error"]),
        "Share of the kernel that the landmarks miss (Nystrom error)",
        "Mean of k(x, x) - k_x K_mm^+ k_x over all samples and views, relative to the mean k(x, x).",
        {"usable rank over landmarks": facts["usable_rank"] / spectrum.info("eigenvalues").shape[0]},
    )


def _stability(newton: Any) -> Figure:
    chosen = int(np.argmin(np.abs(newton.array("damping") - newton.attributes["damping"])))
    return _figure(
        float(newton.array("stability")[chosen]),
        "Top-10 landmarks that survive the next larger damping",
        "Mean overlap under the paper's influence score; low means that damping decides the ranking.",
        {"lowest over the sweep": float(newton.array("stability").min())},
    )


def predict(shape: AuditShape, settings: FidelitySettings) -> Cost:
    """A few regressions on kernel rows of the audited samples."""
    n, m = shape.n_audited, shape.n_landmarks
    return Cost(1, 2**14, Need(32 * n * m + 48 * m * m), 4.0 * n * m * m)


STAGE = Stage(
    name="fidelity",
    version=1,
    reads=("audited", "kernel", "moments", "spectrum", "newton", "influence"),
    store="fidelity",
    settings=FidelitySettings,
    run=run,
    predict=predict,
    about="figures that say whether to believe the audit",
)
