"""Stage kernel: the normalised kernel between every view of every sample and every landmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from krepes_ooc import blocks as cuts
from krepes_ooc.algebra.kernel import KernelMap, kernel_map, landmark_tile
from krepes_ooc.algebra.normalisation import Mode, Normalisation, centred_self
from krepes_ooc.blocks import Block, tile_slices
from krepes_ooc.engine.budget import Need
from krepes_ooc.engine.device import HOST, Array, Device, carried, is_host
from krepes_ooc.layout import FeatureLayout
from krepes_ooc.settings import setting
from krepes_ooc.stages.base import Stage, StageContext
from krepes_ooc.stages.cost import Cost
from krepes_ooc.stages.featurizer import unscaled
from krepes_ooc.stages.inputs import Rows
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.stages.supply import computing_bytes, computing_flops, open_supply
from krepes_ooc.stages.writing import BlockValues, seal_blocks, write_blocks
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.reader import StoreReader
from krepes_ooc.storage.records import Files
from krepes_ooc.storage.writer import StoreWriter
from krepes_ooc.widen import to_dtype

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
class LandmarkKernel:
    """Kernel rows against the sealed landmarks, one definition for store, audit and new samples.

    Args:
        mapped: landmarks, centre and normalisation.
        layout: layout of the feature rows.
        sub_rows: rows of one matrix product.
        device: where rows are computed.
    """

    mapped: KernelMap
    layout: FeatureLayout
    sub_rows: int
    device: Device = HOST

    def rows(self, stored: Array, own: Float) -> Rows:
        """Normalised kernel rows [sample, landmark] of stored feature rows [sample, feature].

        Args:
            stored: float16 rows, of the host or left on the device.
            own: their k(x, x) [sample].
        """
        out = np.empty((stored.shape[0], len(self.mapped.landmarks)), dtype=np.float32)
        for part, rows in self._parts(stored, own):
            out[part] = self.device.back(rows)
        return out

    def rows_there(self, stored: Array, own: Float) -> Any:
        """The same rows, left on the device."""
        if is_host(self.device):
            return self.rows(stored, own)
        parts = [rows for _, rows in self._parts(stored, own)]
        return parts[0] if len(parts) == 1 else array_namespace(*parts).concat(parts)

    def _parts(self, stored: Array, own: Float) -> Iterator[tuple[slice, Any]]:
        row_bytes = 12 * self._there.landmarks.shape[0] + 8 * self.layout.n_features
        count = stored.shape[0]
        step = self.device.rows(self.sub_rows, count, row_bytes)
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            rows = unscaled(stored[part, ...], self.layout, self.device)
            yield part, self._there.rows(rows, self.device.to(own[part]))

    @cached_property
    def _there(self) -> KernelMap:
        return carried(self.device, self.mapped)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach another process without what lies on the device of this one."""
        return LandmarkKernel, (self.mapped, self.layout, self.sub_rows, self.device)


def open_landmark_kernel(context: StageContext, normalise: Mode) -> LandmarkKernel:
    """The kernel against the sealed landmarks."""
    scale = _mean_self_kernel(context) if normalise == "mean-diagonal" else 1.0
    landmarks, sub_rows = context.reader("landmarks"), context.plan.sub_rows
    return read_landmark_kernel(landmarks, normalise, scale, sub_rows, context.device)


def read_landmark_kernel(
    reader: StoreReader, normalise: Mode, scale: float, sub_rows: int, device: Device = HOST
) -> LandmarkKernel:
    """The kernel against the landmarks of one store, with nothing read besides.

    Args:
        reader: the store landmarks.
        normalise: how values are normalised.
        scale: the mean self kernel for ``mean-diagonal``, else 1.
        sub_rows: rows of one matrix product.
        device: where rows are computed.
    """
    layout = FeatureLayout.from_attributes(reader.attributes["layout"])
    centre = reader.array("centre")
    normalisation = Normalisation(normalise, float(reader.attributes["centre_self"]), scale)
    rows = unscaled(reader.array("features"), layout)
    mapped = kernel_map(rows, layout, centre, normalisation)
    return LandmarkKernel(mapped, layout, sub_rows, device)


def run(context: StageContext) -> None:
    """Write the missing blocks and the landmark kernel, seal."""
    settings, features = context.settings, context.reader("features")
    own_map = open_landmark_kernel(context, settings.normalise)
    writer = context.workspace.writer(_spec(context, own_map), context.digest)
    writer.create()
    views, dtype = features.info("self_kernel").shape[0], np.dtype(settings.stored_dtype)
    supply = open_supply(context)

    def compute(block: Block) -> tuple[BlockValues, str]:
        values: list[tuple[str, int, npt.NDArray[Any]]] = []
        for view in range(views):
            stored = supply.rows(block, view)
            rows = own_map.rows(stored, features.block("self_kernel", block, view))
            values.append(("values", view, to_dtype(rows, dtype)))
        return [*values, ("sample_id", 0, np.array(features.block("sample_id", block)))], ""

    files = write_blocks(context, writer, compute)
    mapped = own_map.mapped
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
        there = device.keep("exact landmarks", lambda: carried(device, exact))
        K = device.back(landmark_tile(there, ranges[row], ranges[column]))
        files = writer.write_tile("landmark_kernel", row, column, K)
        if row != column:
            files |= writer.write_tile("landmark_kernel", column, row, np.ascontiguousarray(K.T))
        return files

    pairs = [(row, column) for row in range(len(ranges)) for column in range(row, len(ranges))]
    written: Files = {}
    for files in context.executor().map(write, pairs):
        written |= files
    return written


def _mean_self_kernel(context: StageContext) -> float:
    """Mean k(x, x) over all views and samples, block sums in fixed order."""
    features = context.reader("features")
    views = range(features.info("self_kernel").shape[0])
    total = sum(
        float(features.block("self_kernel", block, view).sum())
        for block in context.plan.blocks()
        for view in views
    )
    return total / (context.plan.n_samples * len(views))


def _normalised_mean(context: StageContext, mapped: KernelMap) -> float:
    if mapped.normalisation.mode in ("ccos", "cosine"):
        return 1.0
    return _mean_self_kernel(context) / mapped.normalisation.scale


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
        "landmark": len(own_map.mapped.landmarks),
    }
    dtypes = {"values": context.settings.stored_dtype}
    return StoreSpec(load_contract("kernel"), sizes, dtypes, context.plan.block_rows)


def predict(shape: AuditShape, settings: KernelSettings) -> Cost:
    """Products of all rows with all landmarks; a worker holds its rows in float32 and as stored.

    At the end the landmarks are there in float32 and float64 (twice while they are prepared), and a
    worker holds a tile of the landmark kernel three times and, where there are several, its mirror.
    """
    plan, m, width = shape.plan, shape.n_landmarks, shape.n_features
    size = shape.kernel_itemsize
    block = plan.block_rows * m * (4 + size * (1 + shape.n_views))
    sub = plan.sub_rows * (8 * width + 16 * m)
    disk = shape.stored_rows * (shape.n_views * m * size + 8) + 8 * m * m
    side = min(m, cuts.TILE)
    centre = shape.n_moments if settings.normalise == "ccos" else 0
    tile = 8 * side * side * (3 if side == m else 4)
    per_worker = block + sub if side == m else max(block + sub, tile)
    passing, ending = 4 * m * width + 24 * shape.n_moments, 12 * m * width + tile - per_worker
    fixed = max(passing, ending, 20 * m * width - per_worker)
    need = Need(fixed, per_worker, max(plan.n_blocks, (-(-m // side)) ** 2))
    flops = 2.0 * plan.n_samples * shape.n_views * (m * width + centre)
    # There lie the landmarks in float32, then in float64, and what a product or a tile takes.
    device = Need(8 * m * width + 16 * shape.n_moments, max(sub, 4 * tile))
    if shape.keeps_features:
        return Cost(plan.n_blocks, disk, need, flops, device=device)
    rows = replace(need, per_worker=per_worker + computing_bytes(shape))
    # Rows that torch makes there stay there, twice while their batches are joined.
    device = replace(device, per_worker=device.per_worker + 4 * plan.block_rows * width)
    flops += computing_flops(shape)
    return Cost(plan.n_blocks, disk, rows, flops, network=True, device=device)


STAGE = Stage(
    name="kernel",
    version=2,
    reads=("features", "landmarks"),
    store="kernel",
    settings=KernelSettings,
    run=run,
    predict=predict,
    about="kernel rows between every view of every sample and every landmark",
    spreads="shards",
)
