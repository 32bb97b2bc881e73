"""Stage spectrum: eigenpairs of the landmark kernel and the start of the Newton step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc import blocks as cuts
from krepes_ooc.algebra import nystrom
from krepes_ooc.algebra.curvature import Moments
from krepes_ooc.algebra.subspace import leading_eigenpairs
from krepes_ooc.blocks import tile_slices
from krepes_ooc.engine.budget import Need
from krepes_ooc.engine.device import eigh_on
from krepes_ooc.errors import StageFailed
from krepes_ooc.settings import setting
from krepes_ooc.stages.base import Stage, StageContext
from krepes_ooc.stages.cost import Cost
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.stages.writing import write_whole
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.reader import StoreReader

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


def read_moments(context: StageContext) -> Moments:
    """The sealed moments; second moments of a single tile are mapped, not copied."""
    reader = context.reader("moments")
    return Moments(
        reader.array("mean"), reader.whole("second"), int(reader.attributes["n_samples"])
    )


def run(context: StageContext) -> None:
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
    found = leading_eigenpairs(K.product, m, min(asked, m), context.inputs.seed)
    if not found.converged:
        raise StageFailed(
            f"{found.products} products left a residual of {found.residual.max():.1e}",
            where="spectrum",
            expected="at most 1e-9",
            advice="take stages.spectrum.solver=dense, or fewer components",
        )
    return found.eigenvalues, found.U


@dataclass(frozen=True)
class TiledKernel:
    """K_mm as it lies on disk, multiplied tile by tile and never held whole.

    Args:
        context: a stage that reads the sealed kernel.
    """

    context: StageContext

    @property
    def n_landmarks(self) -> int:
        """Rows of K_mm."""
        return self._reader.info("landmark_kernel").shape[0]

    def product(self, V: Float) -> Float:
        """K_mm V [landmark, column], one task of the block graph for each row of tiles."""
        ranges = tile_slices(self.n_landmarks)

        def rows(row: int) -> Float:
            device = self.context.device
            total = device.to(np.zeros((ranges[row].stop - ranges[row].start, V.shape[1])))
            for column, there in enumerate(ranges):
                self.context.stop.check()
                tile = device.to(self._reader.tile("landmark_kernel", row, column))
                total += tile @ device.to(V[there])
            product: Float = device.back(total)
            return product

        return np.concatenate(list(self.context.executor().map(rows, range(len(ranges)))))

    def trace(self) -> float:
        """Trace of K_mm."""
        diagonal = range(len(tile_slices(self.n_landmarks)))
        tiles = (self._reader.tile("landmark_kernel", i, i) for i in diagonal)
        return float(np.concatenate([np.diagonal(tile) for tile in tiles]).sum())

    @property
    def _reader(self) -> StoreReader:
        return self.context.reader("kernel")


@dataclass(frozen=True)
class UncentredMoment:
    """The mean over views of C_aa + mu_a mu_a^T, multiplied tile by tile without being formed.

    Args:
        context: a stage that reads the sealed moments.
        mean: mu_a [view, landmark].
    """

    context: StageContext
    mean: Float

    def __matmul__(self, V: Float) -> Float:
        total, ranges = np.zeros(V.shape), tile_slices(len(V))
        for row, column in np.ndindex(len(ranges), len(ranges)):
            second = self._tile(row, column)
            for a in range(len(self.mean)):
                total[ranges[row]] += second[a, a] @ V[ranges[column]]
        for mu in self.mean:
            total += np.outer(mu, mu @ V)
        return total / len(self.mean)

    def trace(self) -> float:
        """The mean squared length of a kernel row."""
        diagonal = range(len(tile_slices(self.mean.shape[1])))
        tiles = [self._tile(i, i) for i in diagonal]
        own = sum(float(np.trace(tile[a, a])) for tile in tiles for a in range(len(self.mean)))
        return (own + float(np.sum(self.mean**2))) / len(self.mean)

    def _tile(self, row: int, column: int) -> Float:
        return np.asarray(self.context.reader("moments").tile("second", row, column))


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


def predict(shape: AuditShape, settings: SpectrumSettings) -> Cost:
    """A dense eigendecomposition of the landmark kernel, or about fifty products with it.

    Dense: the copy that becomes the eigenvectors, the workspace of LAPACK (twice), and the vectors
    in descending order; the kernel is mapped. Iterated: two Krylov spaces of four blocks, their
    products and the copies that join them; the tiles are mapped.
    """
    m, h = shape.n_landmarks, shape.n_components
    disk = 8 * m * (2 * h + 1)
    if settings.iterates(m):
        need = Need(8 * m * (h + 8) * 20, 8 * min(m, cuts.TILE) * (h + 8) * 2)
        return Cost(1, disk, need, 2.0 * 50 * m * m * h, double=True)
    return Cost(1, disk, Need(8 * m * m * 4), 9.0 * m**3, double=True)


STAGE = Stage(
    name="spectrum",
    version=3,
    reads=("features", "kernel", "moments"),
    store="spectrum",
    settings=SpectrumSettings,
    run=run,
    predict=predict,
    about="eigenpairs of the landmark kernel and the start of the step",
)
