"""Stage spectrum: eigenpairs of the landmark kernel and the start of the Newton step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import blocks
from krepes_ooc.core.settings import setting
from krepes_ooc.engine.device import eigh_on
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.moments.moments import TiledUncentredMoment
from krepes_ooc.stages.spectrum import nystrom
from krepes_ooc.stages.spectrum.subspace_iteration import leading_eigenpairs
from krepes_ooc.stages.spectrum.tiled import TiledKernel
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
    """Stores that the stage reads, and the seed of the recipe."""

    features: StoreReader
    kernel: StoreReader
    moments: StoreReader
    recipe: RecipeInputs = recipe_parts()


def run(inputs: SpectrumInputs, context: StageContext) -> None:
    """Decompose the landmark kernel, check the rank, seal."""
    context.progress.begin("spectrum", 1, 0)
    mean = inputs.moments.array("mean")
    K = TiledKernel(inputs.kernel, context)
    S = TiledUncentredMoment(
        mean, lambda row, column: np.asarray(inputs.moments.tile("second", row, column))
    )
    m = K.n_landmarks
    # K_mm = U diag(Lambda) U^T.
    values, vectors = decompose(inputs, context, K)
    # Usable rank: rms(K) = (tr S / m)^(1/2) sets the rounding noise of a stored value.
    rms = float(np.sqrt(S.trace() / m))
    dtype = inputs.kernel.info("values").dtype.name
    rank = nystrom.usable_rank(values, rms, m, dtype)
    components = _components(
        context.settings.components, inputs.features.attributes["network"], rank
    )
    nystrom.check_rank(components, rank)
    # Start A0 = U_h Lambda_h^(-1/2), offset gamma = -A0^T kbar.
    start = nystrom.start(values, vectors, components)
    arrays = {
        "eigenvalues": values,
        "eigenvectors": np.ascontiguousarray(vectors[:, :components]),
        "start": start,
        "offset": nystrom.offset(start, mean.mean(axis=0)),
    }
    self_kernel_mean = float(inputs.kernel.attributes["self_kernel_mean"])
    attributes = {
        "usable_rank": rank,
        "nystrom_error": nystrom.nystrom_error(self_kernel_mean, S, values, vectors, rank),
        "effective_dimension": nystrom.effective_dimension(
            _complete(values, m, K.trace()), K.trace() / m
        ),
    }
    sizes = {"landmark": m, "component": components, "eigenvalue": len(values)}
    write_whole(context, StoreSpec(load_contract("spectrum"), sizes), arrays, attributes)


def decompose(inputs: SpectrumInputs, context: StageContext, K: TiledKernel) -> tuple[Float, Float]:
    """Eigenvalues of K_mm, descending, and eigenvectors [landmark, eigenvalue].

    All of them from a dense decomposition, or the leading ones by subspace iteration.

    Raises:
        StageFailed: the iteration did not converge.
    """
    settings: SpectrumSettings = context.settings
    m = K.n_landmarks
    if not settings.iterates(m):
        whole = inputs.kernel.whole("landmark_kernel")
        return nystrom.eigenpairs(whole, eigh_on(context.device))
    wanted = AUTO_COMPONENTS if settings.components == "auto" else settings.components
    pairs = leading_eigenpairs(K.product, m, min(wanted, m), inputs.recipe.seed)
    if not pairs.converged:
        raise StageFailed(
            f"{pairs.products} products left a residual of {pairs.residual.max():.1e}",
            where="spectrum",
            expected="at most 1e-9",
            advice="take stages.spectrum.solver=dense, or fewer components",
        )
    return pairs.eigenvalues, pairs.U


def _complete(values: Float, n_landmarks: int, trace: float) -> Float:
    """All m eigenvalues: those that were not computed share the rest of the trace equally."""
    missing = n_landmarks - len(values)
    if not missing:
        return values
    share = max(0.0, trace - float(values.sum())) / missing
    return np.append(values, np.full(missing, share))


def _components(setting: int | Literal["auto"], network: Mapping[str, Any], rank: int) -> int:
    """Components h: as set, or one for each output of the network within limits."""
    if setting != "auto":
        return int(setting)
    outputs = len(network["outputs"]) if "outputs" in network else AUTO_COMPONENTS
    return max(1, min(AUTO_COMPONENTS, outputs, rank))


def estimate_cost(sizes: AuditSizes, settings: SpectrumSettings) -> Cost:
    """A dense eigendecomposition of the landmark kernel, or about fifty products with it.

    The kernel itself is mapped in both cases.
    """
    m = sizes.n_landmarks
    h = sizes.n_components
    disk = Quantity.of(
        Term("eigenvectors U_h and start A0", f64(m, h), 2),
        Term("eigenvalues of K_mm", f64(m)),
    )
    if settings.iterates(m):
        tile = min(m, blocks.TILE)
        width = h + 8
        krylov = Term("two Krylov bases of 4 blocks, products, copies", f64(m, width), 20)
        rows = Term("rows of a product and of its block", f64(tile, width), 2)
        return Cost(
            disk=disk,
            memory=Quantity.of(krylov),
            worker_memory=Quantity.of(rows),
            flops=Quantity.of(Term("50 products with K_mm", 2.0 * 50 * m * m * h)),
            float64=True,
            device_task_memory=Quantity.of(
                Term("tile of K_mm", f64(tile, blocks.TILE)),
                Term("rows of a product and of its block", f64(tile, width), 2),
            ),
        )
    dense = Quantity.of(
        Term("eigenvectors of K_mm, overwriting its copy", f64(m, m)),
        Term("workspace of LAPACK", f64(m, m), 2),
        Term("eigenvectors in descending order", f64(m, m)),
    )
    return Cost(
        disk=disk,
        memory=dense,
        flops=Quantity.of(Term("eigendecomposition of K_mm", 9.0 * m**3)),
        float64=True,
        device_memory=dense,
    )


STAGE = Stage(
    name="spectrum",
    version=3,
    inputs=SpectrumInputs,
    store="spectrum",
    settings=SpectrumSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="eigenpairs of the landmark kernel and the start of the step",
)
