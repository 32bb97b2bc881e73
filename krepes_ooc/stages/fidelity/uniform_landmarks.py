"""Baseline: as many landmarks drawn uniformly, measured on the same samples.

Source: Rudi, Camoriano and Rosasco (2015), "Less is more: Nystrom computational regularization".
The uniform landmarks are fit samples, whose clean rows are stored; ridge regressions are fitted
without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.features.featurizer import unscale_rows
from krepes_ooc.stages.fidelity.rows import RowInputs
from krepes_ooc.stages.kernel import kernel_map
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel, open_landmark_kernel
from krepes_ooc.stages.spectrum import nystrom

_CHOICE_STREAM = 423
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LandmarkSubspace:
    """The span of landmarks, and a population of samples that is projected on it.

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

    @cached_property
    def eigenpairs(self) -> tuple[Float, Float]:
        """Eigenvalues [component], descending, and eigenvectors of K_mm."""
        return nystrom.eigenpairs(self.landmark_kernel)

    @property
    def rms(self) -> float:
        """Root mean square of the kernel rows' values."""
        return float(np.sqrt(np.trace(self.second) / len(self.second)))

    def subset(self, landmarks: Index) -> LandmarkSubspace:
        """The span of some of the landmarks, with the same population."""
        # All of them in another order have the same span
        if len(landmarks) == len(self.landmark_kernel):
            return self
        part = np.ix_(landmarks, landmarks)
        return LandmarkSubspace(
            self.landmark_kernel[part], self.second[part], self.self_kernel_mean, self.dtype
        )

    def nystrom_error(self) -> float:
        """Share of the kernel's trace that the landmarks miss."""
        values, vectors = self.eigenpairs
        rank = max(1, nystrom.usable_rank(values, self.rms, len(values), self.dtype))
        return nystrom.nystrom_error(self.self_kernel_mean, self.second, values, vectors, rank)

    def effective_dimension(self) -> float:
        """Effective dimension at a damping of the landmarks' mean self kernel."""
        values, _ = self.eigenpairs
        return nystrom.effective_dimension(values, float(np.mean(np.diag(self.landmark_kernel))))


@dataclass(frozen=True)
class UniformBaseline:
    """The audit's landmarks beside uniform ones.

    Args:
        chosen: the audit's landmarks before the audit samples.
        uniform: the uniform ones before the same samples.
        rows: kernel rows of uniform landmarks, of the fit and of the audit samples, each
            [sample, landmark]; the landmarks themselves are among the fit samples.
        others: fit samples that are none of the uniform landmarks [sample]. Ridge regressions are
            fitted on them: the landmarks' rows hold their own self kernel.
    """

    chosen: LandmarkSubspace
    uniform: LandmarkSubspace
    rows: tuple[Float, Float]
    others: npt.NDArray[np.bool_]


def measure_uniform(inputs: RowInputs, context: StageContext) -> UniformBaseline:
    """Measure uniform landmarks drawn from the fit samples.

    Raises:
        StageFailed: fewer fit samples than twice the landmarks.
    """
    audited = inputs.audited
    role = audited.array("role")
    fit = np.flatnonzero(role == ROLES["fit"])
    audit = np.flatnonzero(role == ROLES["audit"])
    # As many fit samples as there are landmarks, in an order keyed by sample id
    chosen = _draw(
        fit,
        audited.array("sample_id"),
        inputs.influence.info("kernel").shape[1],
        inputs.recipe.seed,
    )
    landmark_kernel = open_landmark_kernel(
        inputs.features, inputs.landmarks, inputs.kernel.attributes["normalise"], context
    )
    features = audited.array("features")
    self_kernel = audited.array("self_kernel")
    uniform = _with_landmarks(landmark_kernel, features[chosen])
    uniform_kernel = kernel_map.landmark_kernel(
        uniform.kernel_map.landmarks.astype(np.float64),
        uniform.layout,
        uniform.kernel_map.centre,
        uniform.kernel_map.normalisation,
    )
    # Kernel rows of both roles against the uniform landmarks
    fit_rows, audit_rows = (
        uniform.rows(features[part], self_kernel[part]).astype(np.float64) for part in (fit, audit)
    )
    self_mean = _self_kernel_mean(landmark_kernel, self_kernel[audit])
    own_rows = inputs.influence.whole("kernel")[audit]
    return UniformBaseline(
        _subspace(inputs.kernel.whole("landmark_kernel"), own_rows, self_mean),
        _subspace(np.asarray(uniform_kernel), audit_rows, self_mean),
        (fit_rows, audit_rows),
        ~np.isin(fit, chosen),
    )


def _draw(fit: Index, ids: Index, count: int, seed: int) -> Index:
    """Rows of ``count`` fit samples drawn uniformly.

    Raises:
        StageFailed: fewer fit samples than twice as many.
    """
    if len(fit) < 2 * count:
        raise StageFailed(
            f"{len(fit)} fit samples for {count} uniform landmarks",
            where="fidelity",
            expected=f"at least {2 * count}",
            advice="raise stages.audited.fit",
        )
    order = np.argsort(counter_rng.bits(seed, _CHOICE_STREAM, ids[fit]), kind="stable")
    return fit[order][:count]


def _with_landmarks(kernel: LandmarkKernel, stored: npt.NDArray[np.float16]) -> LandmarkKernel:
    """The same kernel against other landmarks [landmark, feature], as they are stored."""
    rows = unscale_rows(stored, kernel.layout)
    other = kernel_map.kernel_map(
        rows, kernel.layout, kernel.kernel_map.centre, kernel.kernel_map.normalisation
    )
    return LandmarkKernel(other, kernel.layout, kernel.sub_rows)


def _self_kernel_mean(kernel: LandmarkKernel, raw: Float) -> float:
    """Mean normalised self kernel of samples with raw k(x, x) [sample]."""
    normalisation = kernel.kernel_map.normalisation
    if normalisation.mode in ("ccos", "cosine"):
        return 1.0
    return float(raw.mean() / normalisation.scale)


def _subspace(landmark_kernel: Float, rows: Float, self_kernel_mean: float) -> LandmarkSubspace:
    """Landmarks before kernel rows [sample, landmark] that were never rounded below float32."""
    return LandmarkSubspace(landmark_kernel, rows.T @ rows / len(rows), self_kernel_mean, "float32")
