"""Stage kernel: the normalised kernel between every view of every sample and every landmark."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import blocks
from krepes_ooc.core.blocks import Block, tile_slices
from krepes_ooc.core.files import Files
from krepes_ooc.core.float16 import to_dtype
from krepes_ooc.core.settings import setting
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.engine.device import to_device
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import BlockValues, seal_blocks, write_blocks
from krepes_ooc.stages.features.featurizer import (
    computing_bytes,
    computing_flops,
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

COLLAPSED_SHARE = 1e-3
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


def run(inputs: KernelInputs, context: StageContext) -> None:
    """Write the missing blocks and the landmark kernel, seal."""
    settings, features = context.settings, context.reader("features")
    own_map = open_landmark_kernel(context, settings.normalise)
    writer = context.workspace.writer(_spec(context, own_map), context.digest)
    writer.create()
    views, dtype = features.info("self_kernel").shape[0], np.dtype(settings.stored_dtype)
    supply = open_row_source(context)

    def compute(block: Block) -> tuple[BlockValues, str]:
        values: list[tuple[str, int, npt.NDArray[Any]]] = []
        for view in range(views):
            stored = supply.rows(block, view)
            rows = own_map.rows(stored, features.block("self_kernel", block, view))
            values.append(("values", view, to_dtype(rows, dtype)))
        return [*values, ("sample_id", 0, np.array(features.block("sample_id", block)))], ""

    files = write_blocks(context, writer, compute)
    mapped = own_map.kernel_map
    exact = kernel_map(
        mapped.landmarks.astype(np.float64), own_map.layout, mapped.centre, mapped.normalisation
    )
    files |= _write_landmark_kernel(context, writer, exact)
    attributes = {
        "normalise": settings.normalise,
        "scale": mapped.normalisation.scale,
        "self_kernel_mean": _normalised_mean(context, mapped),
        "collapsed_share": _collapsed_share(exact),
        "block_plan": context.plan.to_attributes(),
    }
    seal_blocks(context, writer, files, {}, attributes)


def _write_landmark_kernel(context: StageContext, writer: StoreWriter, exact: KernelMap) -> Files:
    """Compute and write K_mm tile by tile; only the tiles in work are held."""
    ranges, device = tile_slices(len(exact.landmarks)), context.device

    def write(at: tuple[int, int]) -> Files:
        row, column = at
        there = device.cached("exact landmarks", lambda: to_device(device, exact))
        K = device.to_host(landmark_tile(there, ranges[row], ranges[column]))
        files = writer.write_tile("landmark_kernel", row, column, K)
        if row != column:
            files |= writer.write_tile("landmark_kernel", column, row, np.ascontiguousarray(K.T))
        return files

    pairs = [(row, column) for row in range(len(ranges)) for column in range(row, len(ranges))]
    written: Files = {}
    for files in context.executor().map(write, pairs):
        written |= files
    return written


def _normalised_mean(context: StageContext, mapped: KernelMap) -> float:
    if mapped.normalisation.mode in ("ccos", "cosine"):
        return 1.0
    return mean_self_kernel(context) / mapped.normalisation.scale


def _collapsed_share(mapped: KernelMap) -> float:
    """Share of landmarks whose centred self kernel is under a thousandth of the raw one."""
    if mapped.normalisation.mode != "ccos":
        return 0.0
    raw = mapped.landmark_self
    centred = centred_self(mapped.landmark_centre, raw, mapped.normalisation)
    return float(np.mean(np.asarray(centred) < COLLAPSED_SHARE * np.asarray(raw)))


def _spec(context: StageContext, own_map: LandmarkKernel) -> StoreSpec:
    info = context.reader("features").info("self_kernel")
    sizes = {
        "view": info.shape[0],
        "sample": info.shape[1],
        "landmark": len(own_map.kernel_map.landmarks),
    }
    dtypes = {"values": context.settings.stored_dtype}
    return StoreSpec(load_contract("kernel"), sizes, dtypes, context.plan.block_rows)


def predict(shape: AuditSizes, settings: KernelSettings) -> Cost:
    """Products of all rows with all landmarks; a worker holds its rows in float32 and as stored.

    At the end the landmarks are there in float32 and float64 (twice while they are prepared), and a
    worker holds a tile of the landmark kernel three times and, where there are several, its mirror.
    """
    plan, m, width = shape.plan, shape.n_landmarks, shape.n_features
    size = shape.kernel_itemsize
    block = plan.block_rows * m * (4 + size * (1 + shape.n_views))
    sub = plan.sub_rows * (8 * width + 16 * m)
    disk = shape.stored_rows * (shape.n_views * m * size + 8) + 8 * m * m
    side = min(m, blocks.TILE)
    centre = shape.n_moments if settings.normalise == "ccos" else 0
    tile = 8 * side * side * (3 if side == m else 4)
    per_worker = block + sub if side == m else max(block + sub, tile)
    passing, ending = 4 * m * width + 24 * shape.n_moments, 12 * m * width + tile - per_worker
    fixed = max(passing, ending, 20 * m * width - per_worker)
    need = MemoryNeed(fixed, per_worker, max(plan.n_blocks, (-(-m // side)) ** 2))
    flops = 2.0 * plan.n_samples * shape.n_views * (m * width + centre)
    # There lie the landmarks in float32, then in float64, and what a product or a tile takes.
    device = MemoryNeed(8 * m * width + 16 * shape.n_moments, max(sub, 4 * tile))
    if shape.keeps_features:
        return plain_cost(plan.n_blocks, disk, need, flops, device=device)
    rows = replace(need, per_worker=per_worker + computing_bytes(shape))
    # Rows that torch makes there stay there, twice while their batches are joined.
    device = replace(device, per_worker=device.per_worker + 4 * plan.block_rows * width)
    flops += computing_flops(shape)
    return plain_cost(plan.n_blocks, disk, rows, flops, network=True, device=device)


STAGE = Stage(
    name="kernel",
    version=2,
    inputs=KernelInputs,
    store="kernel",
    settings=KernelSettings,
    run=run,
    estimate_cost=predict,
    about="kernel rows between every view of every sample and every landmark",
    parallel="shards",
)
