"""Stage kernel: the normalised kernel between every view of every sample and every landmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import blocks
from krepes_ooc.core.blocks import Block, tile_slices
from krepes_ooc.core.files import Files
from krepes_ooc.core.float16 import to_dtype
from krepes_ooc.core.settings import setting
from krepes_ooc.engine.device import to_device
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import BlockValues, seal_blocks, write_blocks
from krepes_ooc.stages.features.featurizer import (
    computing_flops,
    computing_terms,
    open_row_source,
)
from krepes_ooc.stages.kernel.kernel_map import KernelMap, kernel_map, landmark_tile
from krepes_ooc.stages.kernel.landmark_kernel import (
    LandmarkKernel,
    mean_self_kernel,
    open_landmark_kernel,
)
from krepes_ooc.stages.kernel.normalisation import Mode, centred_self
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.store_writer import StoreWriter

COLLAPSED_SHARE = 1e-3  # of k(l, l): below it a landmark is reported as collapsed
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KernelSettings:
    """Recipe key ``stages.kernel``."""

    normalise: Mode = setting("ccos", about="how kernel values are centred and scaled")
    dtype: Literal["auto", "float16", "float32"] = setting(
        "auto", about="float16 for values within [-1, 1], else float32"
    )

    @property
    def stored_dtype(self) -> str:
        """The dtype of the store."""
        if self.dtype != "auto":
            return self.dtype
        return "float16" if self.normalise in ("ccos", "cosine") else "float32"


@dataclass(frozen=True)
class KernelInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    # Rows that are not stored are computed again: the digest of the features holds these parts.
    recipe: RecipeInputs = recipe_parts("source", "network", "views", covered_by="features")


def run(inputs: KernelInputs, context: StageContext) -> None:
    """Write the missing blocks and the landmark kernel, seal."""
    settings = context.settings
    features = inputs.features
    landmark_kernel = open_landmark_kernel(features, inputs.landmarks, settings.normalise, context)
    writer = context.workspace.writer(_spec(features, landmark_kernel, context), context.digest)
    writer.create()
    n_views = features.info("self_kernel").shape[0]
    dtype = np.dtype(settings.stored_dtype)
    row_source = open_row_source(features, inputs.recipe, context)

    def compute(block: Block) -> tuple[BlockValues, str]:
        values: list[tuple[str, int, npt.NDArray[Any]]] = []
        for view in range(n_views):
            stored = row_source.rows(block, view)
            rows = landmark_kernel.rows(stored, features.block("self_kernel", block, view))
            values.append(("values", view, to_dtype(rows, dtype)))
        return [*values, ("sample_id", 0, np.array(features.block("sample_id", block)))], ""

    # K_nm block by block, from float32 landmarks.
    files = write_blocks(context, writer, compute)
    # K_mm tile by tile, from the same landmarks in float64: it is factorised later.
    rounded = landmark_kernel.kernel_map
    exact = kernel_map(
        rounded.landmarks.astype(np.float64),
        landmark_kernel.layout,
        rounded.centre,
        rounded.normalisation,
    )
    files |= _write_landmark_kernel(context, writer, exact)
    attributes = {
        "normalise": settings.normalise,
        "scale": rounded.normalisation.scale,
        "self_kernel_mean": _normalised_mean(features, context, rounded),
        "collapsed_share": _collapsed_share(exact),
        "block_plan": context.plan.to_attributes(),
    }
    seal_blocks(context, writer, files, {}, attributes)


def _write_landmark_kernel(context: StageContext, writer: StoreWriter, exact: KernelMap) -> Files:
    """Compute and write K_mm tile by tile; a worker holds one tile at a time."""
    ranges = tile_slices(len(exact.landmarks))
    device = context.device

    def write(at: tuple[int, int]) -> Files:
        row, column = at
        on_device = device.cached("exact landmarks", lambda: to_device(device, exact))
        K = device.to_host(landmark_tile(on_device, ranges[row], ranges[column]))
        files = writer.write_tile("landmark_kernel", row, column, K)
        # The mirrored tile is its transpose, so that K_mm is exactly symmetric.
        if row != column:
            files |= writer.write_tile("landmark_kernel", column, row, np.ascontiguousarray(K.T))
        return files

    pairs = [(row, column) for row in range(len(ranges)) for column in range(row, len(ranges))]
    written: Files = {}
    for files in context.executor().map(write, pairs):
        written |= files
    return written


def _normalised_mean(features: StoreReader, context: StageContext, rounded: KernelMap) -> float:
    """Mean of the normalised k(x, x) over all views and samples."""
    if rounded.normalisation.mode in ("ccos", "cosine"):
        return 1.0
    return mean_self_kernel(features, context) / rounded.normalisation.scale


def _collapsed_share(exact: KernelMap) -> float:
    """Share of landmarks with kc(l, l) below ``COLLAPSED_SHARE`` of k(l, l)."""
    if exact.normalisation.mode != "ccos":
        return 0.0
    raw = exact.landmark_self
    centred = centred_self(exact.landmark_centre, raw, exact.normalisation)
    return float(np.mean(np.asarray(centred) < COLLAPSED_SHARE * np.asarray(raw)))


def _spec(
    features: StoreReader, landmark_kernel: LandmarkKernel, context: StageContext
) -> StoreSpec:
    """Sizes and dtype of the kernel store."""
    n_views, n_samples = features.info("self_kernel").shape
    sizes = {
        "view": n_views,
        "sample": n_samples,
        "landmark": len(landmark_kernel.kernel_map.landmarks),
    }
    dtypes = {"values": context.settings.stored_dtype}
    return StoreSpec(load_contract("kernel"), sizes, dtypes, context.plan.block_rows)


def estimate_cost(sizes: AuditSizes, settings: KernelSettings) -> Cost:
    """Products of all rows with all landmarks, then the tiles of the landmark kernel."""
    plan = sizes.plan
    m = sizes.n_landmarks
    side = min(m, blocks.TILE)
    # Feature rows that are not stored are computed again by the workers.
    recomputed = () if sizes.keeps_features else computing_terms(sizes)
    worker = _worker_memory(sizes, recomputed)
    centre = sizes.n_moments if settings.normalise == "ccos" else 0
    flops = [
        Term(
            "kernel rows and their centre",
            2.0 * plan.n_samples * sizes.n_views * (m * sizes.n_features + centre),
        )
    ]
    if recomputed:
        flops.append(Term(ROW_PASSES, computing_flops(sizes)))
    return Cost(
        units=plan.n_blocks,
        disk=Quantity.of(
            Term("kernel values", sizes.stored_rows * sizes.n_views * m * sizes.kernel_itemsize),
            Term("sample ids", f64(sizes.stored_rows)),
            Term("landmark kernel", f64(m, m)),
        ),
        memory=_process_memory(sizes),
        worker_memory=worker,
        parallel_tasks=max(plan.n_blocks, (-(-m // side)) ** 2),
        flops=Quantity.of(*flops),
        network=bool(recomputed),
        device_memory=Quantity.of(
            Term("landmarks in float32, later in float64", f64(m, sizes.n_features)),
            Term("centre and c_l", f64(sizes.n_moments), 2),
        ),
        device_task_memory=_device_memory(sizes, recomputed),
    )


def _worker_memory(sizes: AuditSizes, recomputed: tuple[Term, ...]) -> Quantity:
    """Memory of a worker: kernel rows of a block, later a tile of the landmark kernel.

    Args:
        sizes: sizes of the audit.
        recomputed: terms of rows that are computed again; none if they are stored.
    """
    plan = sizes.plan
    m = sizes.n_landmarks
    values = plan.block_rows * m
    rows = (
        Term("kernel rows of a view in float32", 4 * values),
        Term("kernel rows as stored", sizes.kernel_itemsize * values, 1 + sizes.n_views),
        *_product_terms(sizes),
    )
    phases = {"kernel rows": (*rows, *recomputed)}
    # A single tile is smaller than the kernel rows of a block, or counted in the process.
    if m > blocks.TILE:
        phases["landmark kernel"] = (*_tile_terms(sizes), *recomputed)
    return Quantity(phases)


def _process_memory(sizes: AuditSizes) -> Quantity:
    """Memory of the process: the landmarks in float32, in float64, and while both are prepared."""
    m = sizes.n_landmarks
    landmarks = f32(m, sizes.n_features)
    # Freed by then: the memory that is counted for one worker.
    worker = Term("memory of one worker", _worker_memory(sizes, ()).bytes, -1)
    return Quantity(
        {
            "kernel rows": (
                Term("landmarks", landmarks),
                Term("centre, in both types", f64(sizes.n_moments), 3),
            ),
            "landmark kernel": (
                Term("landmarks in float32 and float64", landmarks, 3),
                *_tile_terms(sizes),
                worker,
            ),
            "landmarks in float64": (
                Term("landmarks in float32, twice in float64", landmarks, 5),
                worker,
            ),
        }
    )


def _device_memory(sizes: AuditSizes, recomputed: tuple[Term, ...]) -> Quantity:
    """Device memory of a task: a product of kernel rows, or a tile of the landmark kernel."""
    joined: tuple[Term, ...] = ()
    if recomputed:
        # Rows that torch computed on the device stay there, twice while batches are joined.
        block = f16(sizes.plan.block_rows, sizes.n_features)
        joined = (Term("feature rows of a block, as batches and joined", block, 2),)
    tiles = [Term(term.label, term.size, 4 * term.times) for term in _tile_terms(sizes)]
    return Quantity(
        {
            "kernel rows": (*_product_terms(sizes), *joined),
            "landmark kernel": (*tiles, *joined),
        }
    )


def _product_terms(sizes: AuditSizes) -> tuple[Term, ...]:
    """Rows of one matrix product and their kernel values."""
    rows = sizes.plan.sub_rows
    return (
        Term("feature rows of a product in float32", f32(rows, sizes.n_features), 2),
        Term("kernel values of a product in float32", f32(rows, sizes.n_landmarks), 4),
    )


def _tile_terms(sizes: AuditSizes) -> tuple[Term, ...]:
    """A tile of the landmark kernel, its product and its symmetric part; its mirror if several."""
    side = min(sizes.n_landmarks, blocks.TILE)
    copies = 3 if side == sizes.n_landmarks else 4
    return (Term("tile of the landmark kernel", f64(side, side), copies),)


STAGE = Stage(
    name="kernel",
    version=2,
    inputs=KernelInputs,
    store="kernel",
    settings=KernelSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="kernel rows between every view of every sample and every landmark",
    parallel="shards",
)
