"""Comparator: as many landmarks drawn uniformly, measured on the same samples.

Source: Rudi, Camoriano and Rosasco (2015), "Less is more: Nystrom computational regularization".
The uniform landmarks are fit samples, whose clean rows are at hand; the ceiling is fitted without
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.features.featurizer import unscale_rows
from krepes_ooc.stages.kernel.kernel_map import kernel_map
from krepes_ooc.stages.kernel.kernel_map import landmark_kernel as kernel_between
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel, open_landmark_kernel
from krepes_ooc.stages.spectrum import nystrom

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LandmarkSubspace:
    """Landmarks before a population of samples.

    Args:
        landmark_kernel: K_mm [landmark, landmark_].
        second: un-centred S [landmark, landmark_], mean of k_x k_x^T over the population.
        self_kernel_mean: mean normalised self kernel over the population.
        dtype: float type in which the rows were kept.
    """

    landmark_kernel: Float
    second: Float
    self_kernel_mean: float
    dtype: str

    @property
    def rms(self) -> float:
        """Root mean square of the kernel rows' values."""
        return float(np.sqrt(np.trace(self.second) / len(self.second)))

    def subset(self, landmarks: Index) -> LandmarkSubspace:
        """The span of some of the landmarks, before the same population."""
        part = np.ix_(landmarks, landmarks)
        return LandmarkSubspace(
            self.landmark_kernel[part], self.second[part], self.self_kernel_mean, self.dtype
        )

    def error(self) -> float:
        """Nystrom error: the share of the kernel's trace that the landmarks miss."""
        values, vectors = nystrom.eigenpairs(self.landmark_kernel)
        rank = max(1, nystrom.usable_rank(values, self.rms, len(values), self.dtype))
        return nystrom.nystrom_error(self.self_kernel_mean, self.second, values, vectors, rank)

    def dimension(self) -> float:
        """Effective dimension at a damping of the landmarks' mean self kernel."""
        values, _ = nystrom.eigenpairs(self.landmark_kernel)
        return nystrom.effective_dimension(values, float(np.mean(np.diag(self.landmark_kernel))))


_CHOICE_STREAM = 423
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class UniformBaseline:
    """The audit's landmarks beside uniform ones.

    Args:
        chosen: the audit's landmarks before the audit samples.
        uniform: the uniform ones before the same samples.
        ceiling: held-out R squared from uniform kernel rows to the network's embedding.
        rows: kernel rows of uniform landmarks, of the fit and of the audit samples, each
            [sample, landmark]; the landmarks themselves are among the fit samples.
    """

    chosen: LandmarkSubspace
    uniform: LandmarkSubspace
    ceiling: float
    rows: tuple[Float, Float]


def measure_uniform(context: StageContext, seed: int) -> UniformBaseline:
    """Measure uniform landmarks drawn from the fit samples.

    Raises:
        StageFailed: fewer fit samples than twice the landmarks.
    """
    from krepes_ooc.stages.fidelity.metrics import ridge_ceiling

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
    drawn = pool[np.argsort(counter_rng.bits(seed, _CHOICE_STREAM, ids[pool]), kind="stable")]
    chosen, held = drawn[:m], np.flatnonzero(role == ROLES["audit"])
    normalise = context.reader("kernel").attributes["normalise"]
    own_map = open_landmark_kernel(
        context.reader("features"), context.reader("landmarks"), normalise, context
    )
    features, self_kernel = audited.array("features"), audited.array("self_kernel")
    uniform = _uniform(own_map, features[chosen])
    between = kernel_between(
        uniform.kernel_map.landmarks.astype(np.float64),
        uniform.layout,
        uniform.kernel_map.centre,
        uniform.kernel_map.normalisation,
    )
    rows_fit, rows_held = (
        uniform.rows(features[part], self_kernel[part]).astype(np.float64) for part in (pool, held)
    )
    network = audited.array("network_embedding").astype(np.float64)
    own_mean = _self_kernel_mean(own_map, self_kernel[held])
    others = ~np.isin(pool, chosen)
    ceiling = ridge_ceiling(rows_fit[others], network[pool[others]], rows_held, network[held])
    return UniformBaseline(
        _subspace(
            context.reader("kernel").whole("landmark_kernel"),
            influence.whole("kernel")[held],
            own_mean,
        ),
        _subspace(np.asarray(between), rows_held, own_mean),
        ceiling.r_squared,
        (rows_fit, rows_held),
    )


def _uniform(own_map: LandmarkKernel, stored: npt.NDArray[np.float16]) -> LandmarkKernel:
    mapped = own_map.kernel_map
    rows = unscale_rows(stored, own_map.layout)
    other = kernel_map(rows, own_map.layout, mapped.centre, mapped.normalisation)
    return LandmarkKernel(other, own_map.layout, own_map.sub_rows)


def _self_kernel_mean(own_map: LandmarkKernel, raw: Float) -> float:
    normalisation = own_map.kernel_map.normalisation
    if normalisation.mode in ("ccos", "cosine"):
        return 1.0
    return float(raw.mean() / normalisation.scale)


def _subspace(landmark_kernel: Float, rows: Float, self_kernel_mean: float) -> LandmarkSubspace:
    """Landmarks before kernel rows [sample, landmark] that were never rounded below float32."""
    return LandmarkSubspace(landmark_kernel, rows.T @ rows / len(rows), self_kernel_mean, "float32")
