"""Stage spectrum: eigenpairs of the landmark kernel and the start of the Newton step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.algebra import nystrom
from krepes_ooc.algebra.curvature import Moments
from krepes_ooc.algebra.subspace import leading_eigenpairs
from krepes_ooc.engine.budget import Need
from krepes_ooc.errors import StageFailed
from krepes_ooc.settings import setting
from krepes_ooc.stages.base import Cost, Stage, StageContext, write_whole
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.storage.contracts import StoreSpec, load_contract

AUTO_COMPONENTS = 64
DENSE_LANDMARKS = 8192
ROWS = 1024  # of one product with K_mm
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SpectrumSettings:
    """Recipe key ``stages.spectrum``."""

    components: int | Literal["auto"] = setting(
        "auto",
        about="components h; auto: the network's outputs, at most 64 and the usable rank",
        minimum=1,
    )
    solver: Literal["auto", "dense", "subspace"] = setting(
        "auto", about=f"how; auto: dense up to {DENSE_LANDMARKS} landmarks, else iterated"
    )

    def iterates(self, n_landmarks: int) -> bool:
        """Whether only the leading eigenpairs are computed; never decided by the budget."""
        if self.solver != "auto":
            return self.solver == "subspace"
        return n_landmarks > DENSE_LANDMARKS


def read_moments(context: StageContext) -> Moments:
    """The sealed moments."""
    reader = context.reader("moments")
    return Moments(
        reader.array("mean"), reader.array("second"), int(reader.attributes["n_samples"])
    )


def run(context: StageContext) -> None:
    """Decompose the landmark kernel, check the rank, seal."""
    context.progress.begin("spectrum", 1, 0)
    kernel, reader = context.reader("kernel"), context.reader("moments")
    mean, second = reader.array("mean"), reader.whole("second")
    K = kernel.whole("landmark_kernel")
    values, vectors = decompose(context, K)
    rms = float(np.sqrt(_trace(mean, second) / len(K)))
    dtype = kernel.info("values").dtype.name
    rank = nystrom.usable_rank(values, rms, len(K), dtype)
    components = _components(context, rank)
    nystrom.check_rank(components, rank)
    start = nystrom.start(values, vectors, components)
    arrays = {
        "eigenvalues": values,
        "eigenvectors": np.ascontiguousarray(vectors[:, :components]),
        "start": start,
        "offset": nystrom.offset(start, mean.mean(axis=0)),
    }
    own = float(kernel.attributes["self_kernel_mean"])
    attributes = {
        "usable_rank": rank,
        "nystrom_error": nystrom.nystrom_error(own, Uncentred(mean, second), values, vectors, rank),
        "effective_dimension": nystrom.effective_dimension(
            _with_rest(values, K), float(np.trace(K)) / len(K)
        ),
    }
    sizes = {"landmark": len(K), "component": components, "eigenvalue": len(values)}
    write_whole(context, StoreSpec(load_contract("spectrum"), sizes), arrays, attributes)


def decompose(context: StageContext, K: Float) -> tuple[Float, Float]:
    """Eigenvalues of K_mm, descending, and eigenvectors [landmark, eigenvalue].

    All of them from a dense decomposition, or the leading ones by subspace iteration.

    Raises:
        StageFailed: the iteration did not converge.
    """
    settings: SpectrumSettings = context.settings
    if not settings.iterates(len(K)):
        return nystrom.eigenpairs(np.array(K))
    asked = AUTO_COMPONENTS if settings.components == "auto" else settings.components
    rows = [slice(i, i + ROWS) for i in range(0, len(K), ROWS)]
    executor = context.executor()

    def product(V: Float) -> Float:
        return np.concatenate(list(executor.map(lambda part: K[part] @ V, rows)))

    found = leading_eigenpairs(product, len(K), min(asked, len(K)), context.inputs.seed)
    if not found.converged:
        raise StageFailed(
            f"{found.products} products left a residual of {found.residual.max():.1e}",
            where="spectrum",
            expected="at most 1e-9",
            advice="take stages.spectrum.solver=dense, or fewer components",
        )
    return found.eigenvalues, found.U


@dataclass(frozen=True)
class Uncentred:
    """The mean over views of C_aa + mu_a mu_a^T, multiplied without being formed.

    Args:
        mean: mu_a [view, landmark].
        second: C_ab [view, view_, landmark, landmark_].
    """

    mean: Float
    second: Float

    def __matmul__(self, V: Float) -> Float:
        parts = (self.second[a, a] @ V + np.outer(mu, mu @ V) for a, mu in enumerate(self.mean))
        return np.asarray(sum(parts)) / len(self.mean)


def _trace(mean: Float, second: Float) -> float:
    """Trace of the mean un-centred moment: the mean squared length of a kernel row."""
    own = sum(float(np.trace(second[a, a]) + mu @ mu) for a, mu in enumerate(mean))
    return own / len(mean)


def _with_rest(values: Float, K: Float) -> Float:
    """The eigenvalues, those not found as equal shares of the rest of the trace."""
    left = len(K) - len(values)
    if not left:
        return values
    share = max(0.0, float(np.trace(K)) - float(values.sum())) / left
    return np.append(values, np.full(left, share))


def _components(context: StageContext, rank: int) -> int:
    asked = context.settings.components
    if asked != "auto":
        return int(asked)
    features = context.reader("features").attributes["network"]
    outputs = len(features["outputs"]) if "outputs" in features else AUTO_COMPONENTS
    return max(1, min(AUTO_COMPONENTS, outputs, rank))


def predict(shape: AuditShape, settings: SpectrumSettings) -> Cost:
    """A dense eigendecomposition of the landmark kernel, or about fifty products with it."""
    m, h = shape.n_landmarks, shape.n_components
    disk = 8 * m * (2 * h + 1)
    if settings.iterates(m):
        # Two Krylov spaces of four blocks, their products and the copies that join them.
        return Cost(
            1, disk, Need(8 * m * (h + 8) * 20, 8 * ROWS * h), 2.0 * 50 * m * m * h, double=True
        )
    return Cost(1, disk, Need(8 * m * m * 6), 9.0 * m**3, double=True)


STAGE = Stage(
    name="spectrum",
    version=1,
    reads=("features", "kernel", "moments"),
    store="spectrum",
    settings=SpectrumSettings,
    run=run,
    predict=predict,
    about="eigenpairs of the landmark kernel and the start of the step",
)
