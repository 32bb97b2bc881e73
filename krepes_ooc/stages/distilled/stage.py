"""Stage distilled: the linear map from kernel rows to the network's own embedding.

    min_A  sum over fit samples of |z_t - zbar - A^T (k_t - kbar)|^2 + penalty |A|^2

with z the network's embedding and both means taken over the fit samples' clean rows. The penalty
has the least leave-one-out error on the fit rows; audit rows are only scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.landmark_rows import rows_of, strongest_view, sum_views
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.distilled.terms import (
    LinearReadout,
    flipped_share,
    logit_terms,
    random_landmarks,
)
from krepes_ooc.stages.fidelity.baselines import LinearProbe
from krepes_ooc.stages.fidelity.metrics import RIDGE_GRID, RidgeFit, ridge_ceiling
from krepes_ooc.stages.landmarks.recorded_rows import rows_of_landmarks
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

RANDOM_DRAWS = 5
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DistilledSettings:
    """Recipe key ``stages.distilled``."""

    removed: int = setting(10, about="landmarks that the deletion test takes out", minimum=1)


@dataclass(frozen=True)
class DistilledInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    audited: StoreReader
    influence: StoreReader
    recipe: RecipeInputs = recipe_parts("source")


@dataclass(frozen=True)
class _Samples:
    """Samples of one role: kernel rows, network embedding and class codes."""

    kernel: Float
    network: Float
    label: Index


def run(inputs: DistilledInputs, context: StageContext) -> None:
    """Fit on the fit samples, score on the audit samples, seal."""
    context.progress.begin("distilled", 1, 0)
    role = inputs.audited.array("role")
    fit, audit = (_samples(inputs, role == ROLES[name]) for name in ("fit", "audit"))
    m, outputs = fit.kernel.shape[1], fit.network.shape[1]
    distilled, offset, output_r_squared = (
        np.zeros((m, outputs)),
        np.zeros(outputs),
        np.zeros(outputs),
    )
    attributes: dict[str, Any] = {
        "defined": False,
        "reason": "",
        "penalty_relative": 0.0,
        "penalty_at_edge": False,
        "r_squared": 0.0,
        "r_squared_fit": 0.0,
        "deletion": {},
    }
    try:
        found = distil(fit.kernel, fit.network, audit.kernel, audit.network)
    except StageFailed as error:
        attributes["reason"] = str(error)
    else:
        distilled, offset = found.coefficients, found.offset
        output_r_squared = r_squared_by_output(audit.network, found.predict(audit.kernel))
        attributes |= {
            "defined": True,
            "penalty_relative": found.damping,
            "penalty_at_edge": found.damping in (RIDGE_GRID[0], RIDGE_GRID[-1]),
            "r_squared": found.r_squared,
            "r_squared_fit": float(_r_squared(fit.network, found.predict(fit.kernel))),
            "deletion": _deletion(inputs, context, found, fit, audit),
        }
    for line in summary_lines(attributes):
        context.progress.note(line)
    arrays = {"distilled": distilled, "offset": offset, "output_r_squared": output_r_squared}
    spec = StoreSpec(load_contract("distilled"), {"landmark": m, "output": outputs})
    write_whole(context, spec, arrays, attributes)


def distil(
    kernel_fit: Float, network_fit: Float, kernel_audit: Float, network_audit: Float
) -> RidgeFit:
    """Coefficients A and offset gamma with K A + gamma near the network's embedding.

    Args:
        kernel_fit: clean kernel rows of the fit samples [sample, landmark].
        network_fit: the network's embedding of them [sample, output].
        kernel_audit: clean kernel rows of the audit samples.
        network_audit: the network's embedding of them.

    Raises:
        StageFailed: fewer than two fit samples, or constant rows or embeddings.
    """
    if len(kernel_fit) < 2:
        raise StageFailed(
            f"{len(kernel_fit)} fit samples",
            where="distilled",
            expected="at least 2",
            advice="raise stages.audited.fit",
        )
    return ridge_ceiling(kernel_fit, network_fit, kernel_audit, network_audit)


def r_squared_by_output(target: Float, predicted: Float) -> Float:
    """Share of each output's variance that is predicted [output]; 0 for a constant output."""
    spread = np.sum((target - target.mean(axis=0)) ** 2, axis=0)
    error = np.sum((target - predicted) ** 2, axis=0)
    return np.asarray(np.where(spread > 0, 1.0 - error / np.where(spread > 0, spread, 1.0), 0.0))


def _samples(inputs: DistilledInputs, chosen: npt.NDArray[np.bool_]) -> _Samples:
    return _Samples(
        inputs.influence.whole("kernel")[chosen],
        inputs.audited.array("network_embedding")[chosen].astype(np.float64),
        inputs.audited.array("label")[chosen],
    )


def _r_squared(target: Float, predicted: Float) -> Float:
    spread = np.sum((target - target.mean(axis=0)) ** 2)
    return np.asarray(1.0 - np.sum((target - predicted) ** 2) / spread)


def _deletion(
    inputs: DistilledInputs,
    context: StageContext,
    found: RidgeFit,
    fit: _Samples,
    audit: _Samples,
) -> dict[str, Any]:
    """Decisions that flip without a sample's first landmarks, under rankings and at random.

    The classifier is a linear probe on the network's embedding; without labels there is none.
    """
    try:
        readout = _readout(fit)
    except StageFailed as error:
        return {"reason": str(error)}

    # Decisions of the distilled embedding, and the terms of the logit that won.
    embedding, kernel = found.predict(audit.kernel), audit.kernel
    # A landmark with several rows is ranked by their sum, and leaves with all of them.
    n_views = rows_of_landmarks(context)
    n_landmarks = kernel.shape[1] // n_views
    decided = readout.decisions(embedding)
    terms = logit_terms(kernel, found.coefficients, readout.weight.T[decided])
    terms = sum_views(terms, n_views)
    by_kernel = strongest_view(np.abs(kernel), n_views)
    count = min(context.settings.removed, n_landmarks)
    explained = inputs.audited.array("role") == ROLES["audit"]
    rankings = {
        "logit_terms": np.argsort(-terms, axis=1, kind="stable")[:, :count],
        "kernel": np.argsort(-by_kernel, axis=1, kind="stable")[:, :count],
        str(inputs.influence.attributes["measure"]): inputs.influence.array("top_landmark")[
            explained
        ][:, :count],
    }
    draws = [
        random_landmarks(len(kernel), n_landmarks, count, inputs.recipe.seed, draw)
        for draw in range(RANDOM_DRAWS)
    ]

    def flipped(removed: Index) -> float:
        rows = rows_of(removed, n_landmarks, n_views)
        return flipped_share(readout, embedding, kernel, found.coefficients, rows)

    shares = {name: flipped(removed) for name, removed in rankings.items()}
    shares["random"] = float(np.mean([flipped(removed) for removed in draws]))
    return {
        "removed": count,
        "flipped": shares,
        "same_decision_as_network": float(np.mean(decided == readout.decisions(audit.network))),
    }


def _readout(fit: _Samples) -> LinearReadout:
    """Linear classifier on the network's embedding, fitted on the labelled samples.

    Raises:
        StageFailed: too few classes or samples.
    """
    known, n_classes = fit.label >= 0, int(fit.label.max(initial=-1)) + 1
    probe = LinearProbe.fit(fit.network[known], fit.label[known], n_classes)
    # Weights on the embedding itself: the probe standardises its inputs.
    weight = probe.W[:-1] / probe.scale[:, None]
    return LinearReadout(weight, probe.W[-1] - probe.mean @ weight)


def summary_lines(attributes: dict[str, Any]) -> list[str]:
    """Lines for the terminal.

    Args:
        attributes: of the store.
    """
    if not attributes["defined"]:
        return [f"no distilled coefficients: {attributes['reason']}"]
    lines = [
        f"distilled coefficients reproduce {attributes['r_squared']:.3f} of the network's "
        f"embedding on audit samples (penalty {attributes['penalty_relative']:g})"
    ]
    deletion = attributes["deletion"]
    if "flipped" in deletion:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in deletion["flipped"].items())
        lines.append(f"decisions flipped without {deletion['removed']} landmarks: {shares}")
    return lines


def estimate_cost(sizes: AuditSizes, settings: DistilledSettings) -> Cost:
    """A ridge regression with leave-one-out errors, and the deletion test."""
    m, outputs = sizes.n_landmarks, sizes.n_outputs
    fit = max(0, sizes.n_audited - sizes.n_explained)
    rows = Term("kernel rows of fit and audit samples", f64(sizes.n_audited, m))
    embeddings = Term("embeddings", f64(sizes.n_audited, outputs), 4)
    return Cost(
        disk=Quantity.of(Term("coefficients", f64(m + 2, outputs)), Term("attributes", 2**13)),
        memory=Quantity(
            {
                "fit": (
                    rows,
                    embeddings,
                    Term("centred rows, scores and squares", f64(fit, m), 2),
                    Term("covariance and eigenvectors", f64(m, m), 4),
                ),
                "deletion": (rows, embeddings, Term("terms", f64(sizes.n_explained, m), 6)),
            }
        ),
        flops=Quantity.of(
            Term("covariance and scores", 4.0 * fit * m * m),
            Term("eigenvectors", 9.0 * m**3),
            Term("leave-one-out", 2.0 * len(RIDGE_GRID) * fit * m * (outputs + 1)),
        ),
        float64=True,
    )


STAGE = Stage(
    name="distilled",
    version=1,
    inputs=DistilledInputs,
    store="distilled",
    settings=DistilledSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="coefficients that reproduce the network's embedding",
)
