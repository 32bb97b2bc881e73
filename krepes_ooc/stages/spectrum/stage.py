"""Stage spectrum: eigenpairs of the landmark kernel and the start of the Newton step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import blocks
from krepes_ooc.core.settings import setting
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.engine.device import eigh_on
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.spectrum import nystrom
from krepes_ooc.stages.spectrum.subspace_iteration import leading_eigenpairs
from krepes_ooc.stages.spectrum.tiled import TiledKernel, UncentredMoment
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

# Measured on digits and Adult: docs/results.md.
AUTO_COMPONENTS = 32
DENSE_LANDMARKS = 4096
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SpectrumSettings:
    """Recipe key ``stages.spectrum``."""

    components: int | Literal["auto"] = setting(
        "auto",
        about="components h; auto: the network's outputs, at most 32 and the usable rank",
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


@dataclass(frozen=True)
class SpectrumInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    kernel: StoreReader
    moments: StoreReader


def run(inputs: SpectrumInputs, context: StageContext) -> None:
    """Decompose the landmark kernel, check the rank, seal."""
    context.progress.begin("spectrum", 1, 0)
    kernel, mean = context.reader("kernel"), context.reader("moments").array("mean")
    K, second = TiledKernel(context), UncentredMoment(context, mean)
    m = K.n_landmarks
    values, vectors = decompose(context, K)
    rms = float(np.sqrt(second.trace() / m))
    dtype = kernel.info("values").dtype.name
    rank = nystrom.usable_rank(values, rms, m, dtype)
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
        "nystrom_error": nystrom.nystrom_error(own, second, values, vectors, rank),
        "effective_dimension": nystrom.effective_dimension(
            _with_rest(values, m, K.trace()), K.trace() / m
        ),
    }
    sizes = {"landmark": m, "component": components, "eigenvalue": len(values)}
    write_whole(context, StoreSpec(load_contract("spectrum"), sizes), arrays, attributes)


def decompose(context: StageContext, K: TiledKernel) -> tuple[Float, Float]:
    """Eigenvalues of K_mm, descending, and eigenvectors [landmark, eigenvalue].

    All of them from a dense decomposition, or the leading ones by subspace iteration.

    Raises:
        StageFailed: the iteration did not converge.
    """
    settings: SpectrumSettings = context.settings
    m = K.n_landmarks
    if not settings.iterates(m):
        whole = context.reader("kernel").whole("landmark_kernel")
        return nystrom.eigenpairs(whole, eigh_on(context.device))
    asked = AUTO_COMPONENTS if settings.components == "auto" else settings.components
    found = leading_eigenpairs(K.product, m, min(asked, m), context.recipe.seed)
    if not found.converged:
        raise StageFailed(
            f"{found.products} products left a residual of {found.residual.max():.1e}",
            where="spectrum",
            expected="at most 1e-9",
            advice="take stages.spectrum.solver=dense, or fewer components",
        )
    return found.eigenvalues, found.U


def _with_rest(values: Float, n_landmarks: int, trace: float) -> Float:
    """The eigenvalues, those not found as equal shares of the rest of the trace."""
    left = n_landmarks - len(values)
    if not left:
        return values
    share = max(0.0, trace - float(values.sum())) / left
    return np.append(values, np.full(left, share))


def _components(context: StageContext, rank: int) -> int:
    asked = context.settings.components
    if asked != "auto":
        return int(asked)
    features = context.reader("features").attributes["network"]
    outputs = len(features["outputs"]) if "outputs" in features else AUTO_COMPONENTS
    return max(1, min(AUTO_COMPONENTS, outputs, rank))


def predict(shape: AuditSizes, settings: SpectrumSettings) -> Cost:
    """A dense eigendecomposition of the landmark kernel, or about fifty products with it.

    Dense: the copy that becomes the eigenvectors, the workspace of LAPACK (twice), and the vectors
    in descending order; the kernel is mapped. Iterated: two Krylov spaces of four blocks, their
    products and the copies that join them; the tiles are mapped.
    """
    m, h = shape.n_landmarks, shape.n_components
    disk = 8 * m * (2 * h + 1)
    if settings.iterates(m):
        need = MemoryNeed(8 * m * (h + 8) * 20, 8 * min(m, blocks.TILE) * (h + 8) * 2)
        device = MemoryNeed(0, 8 * min(m, blocks.TILE) * (blocks.TILE + 2 * (h + 8)))
        return plain_cost(1, disk, need, 2.0 * 50 * m * m * h, float64=True, device=device)
    need = MemoryNeed(8 * m * m * 4)
    return plain_cost(1, disk, need, 9.0 * m**3, float64=True, device=need)


STAGE = Stage(
    name="spectrum",
    version=3,
    inputs=SpectrumInputs,
    store="spectrum",
    settings=SpectrumSettings,
    run=run,
    estimate_cost=predict,
    about="eigenpairs of the landmark kernel and the start of the step",
)
