"""Comparator: as many landmarks drawn uniformly, measured on the same samples.

Source: Rudi, Camoriano and Rosasco (2015), "Less is more: Nystrom computational regularization".
The uniform landmarks are fit samples, whose clean rows are at hand; they fit nothing afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc import counter
from krepes_ooc.algebra import nystrom
from krepes_ooc.algebra.kernel import kernel_map
from krepes_ooc.algebra.kernel import landmark_kernel as kernel_between
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.audited import ROLES
from krepes_ooc.stages.base import StageContext
from krepes_ooc.stages.features import unscaled
from krepes_ooc.stages.kernel import LandmarkKernel, open_landmark_kernel

_CHOICE_STREAM = 423
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """The audit's landmarks beside uniform ones.

    Args:
        own_error: Nystrom error of the audit's landmarks on the audit samples.
        uniform_error: that of the uniform ones.
        uniform_ceiling: held-out R squared from uniform kernel rows to the network's embedding.
    """

    own_error: float
    uniform_error: float
    uniform_ceiling: float


def compare(context: StageContext, seed: int) -> Comparison:
    """Measure uniform landmarks drawn from the fit samples.

    Raises:
        StageFailed: fewer fit samples than twice the landmarks.
    """
    from krepes_ooc.algebra.measures import ridge_ceiling

    audited, influence = context.reader("audited"), context.reader("influence")
    role, ids = audited.array("role"), audited.array("sample_id")
    m = influence.info("kernel").shape[1]
    pool = np.flatnonzero(role == ROLES["fit"])
    if len(pool) < 2 * m:
        raise StageFailed(
            f"{len(pool)} fit samples for {m} uniform landmarks",
            where="fidelity",
            expected=f"at least {2 * m}",
            advice="raise stages.audited.fit",
        )
    drawn = pool[np.argsort(counter.bits(seed, _CHOICE_STREAM, ids[pool]), kind="stable")]
    chosen, fit, held = drawn[:m], np.sort(drawn[m:]), np.flatnonzero(role == ROLES["audit"])
    own_map = open_landmark_kernel(context, context.reader("kernel").attributes["normalise"])
    features, self_kernel = audited.array("features"), audited.array("self_kernel")
    uniform = _uniform(own_map, features[chosen])
    between = kernel_between(
        uniform.mapped.landmarks.astype(np.float64),
        uniform.layout,
        uniform.mapped.centre,
        uniform.mapped.normalisation,
    )
    rows_fit, rows_held = (
        uniform.rows(features[part], self_kernel[part]).astype(np.float64) for part in (fit, held)
    )
    network = audited.array("network_embedding").astype(np.float64)
    own_mean = _self_kernel_mean(own_map, self_kernel[held])
    landmark_kernel = context.reader("kernel").array("landmark_kernel")
    return Comparison(
        _error(landmark_kernel, influence.array("kernel")[held], own_mean),
        _error(np.asarray(between), rows_held, own_mean),
        ridge_ceiling(rows_fit, network[fit], rows_held, network[held]).r_squared,
    )


def _uniform(own_map: LandmarkKernel, stored: npt.NDArray[np.float16]) -> LandmarkKernel:
    mapped = own_map.mapped
    rows = unscaled(stored, own_map.layout)
    other = kernel_map(rows, own_map.layout, mapped.centre, mapped.normalisation)
    return LandmarkKernel(other, own_map.layout, own_map.sub_rows)


def _self_kernel_mean(own_map: LandmarkKernel, raw: Float) -> float:
    normalisation = own_map.mapped.normalisation
    if normalisation.mode in ("ccos", "cosine"):
        return 1.0
    return float(raw.mean() / normalisation.scale)


def _error(landmark_kernel: Float, rows: Float, self_kernel_mean: float) -> float:
    """Nystrom error on kernel rows [sample, landmark]."""
    values, vectors = nystrom.eigenpairs(landmark_kernel)
    second = rows.T @ rows / len(rows)
    rms = float(np.sqrt(np.trace(second) / len(second)))
    rank = max(1, nystrom.usable_rank(values, rms, len(values), "float32"))
    return nystrom.nystrom_error(self_kernel_mean, second, values, vectors, rank)
