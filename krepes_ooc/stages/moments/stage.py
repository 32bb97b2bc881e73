"""Stage moments: mean and centred second moments of the kernel rows, one pass, a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from krepes_ooc.core import blocks
from krepes_ooc.core.blocks import Block, tile_slices
from krepes_ooc.core.files import Files
from krepes_ooc.engine.device import Device
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import (
    partial_path,
    pending_shards,
    read_partial,
    seal_blocks,
    write_partial,
)
from krepes_ooc.stages.moments.sums import (
    CrossSums,
    MomentSums,
    block_shift,
    cross_sums,
    finish,
    finish_cross,
    landmark_tiles,
    merge,
    merge_cross,
    moment_sums,
    pair_index,
)
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.store_writer import StoreWriter

# Rows of one product: several blocks of a shard where they are short, because every product adds a
# whole matrix in float64.
GRAM_ROWS = 4096
# NumPy writes a file in pieces of 16 MiB, two copies of each.
SAVED_BYTES = 2**25


@dataclass(frozen=True)
class MomentsSettings:
    """Recipe key ``stages.moments``: nothing to set."""


@dataclass(frozen=True)
class MomentsInputs(StageInputs):
    """Stores that the stage reads."""

    kernel: StoreReader


def run(inputs: MomentsInputs, context: StageContext) -> None:
    """Sum the missing shards tile by tile, reduce and write each tile, seal."""
    plan = context.plan
    views, n, m = inputs.kernel.info("values").shape
    tiles = [MomentTile(inputs.kernel, context, left, right) for left, right in landmark_tiles(m)]
    # One fixed shift for all blocks, so that sums of any two blocks can be added.
    # The rows it is taken from have no name: they would stay in memory through all passes.
    shift = context.device.to_host(
        block_shift(block_views(inputs.kernel, context.device, plan.block(0)))
    )
    # Partial sums of earlier runs stay; the others are computed.
    pending = [tile.pending() for tile in tiles]
    total = plan.n_shards * len(tiles)
    context.progress.begin("moments", total, total - sum(map(len, pending)))
    for tile, shards in zip(tiles, pending, strict=True):
        tile.sum_shards(shards, shift)
    context.stop_after_shard()
    # The partial sums stay; everything written from them is written anew.
    context.record.reset()
    spec = StoreSpec(load_contract("moments"), {"view": views, "landmark": m})
    writer = context.workspace.writer(spec, context.digest)
    writer.create()
    mean = np.empty((views, m))
    files: Files = {}
    for tile in tiles:
        files |= tile.write(writer, mean)
    seal_blocks(context, writer, files, {"mean": mean}, {"n_samples": n})


def block_views(kernel: StoreReader, device: Device, block: Block) -> tuple[Any, ...]:
    """Kernel rows [sample, landmark] of one block on the device, for each view, as float32."""
    views = range(kernel.info("values").shape[0])
    return tuple(device.to_float32(kernel.block("values", block, view)) for view in views)


@dataclass(frozen=True)
class MomentTile:
    """The moments between two landmark ranges, summed in a pass over the kernel.

    A single tile up to ``blocks.TILE`` landmarks. A worker's memory is that of the sums of one
    tile; the ranges are constants, because the width of a matrix product can change its rounding.

    Args:
        kernel: reader of the kernel.
        context: the stage.
        left: landmarks of the rows.
        right: landmarks of the columns; the same range on the diagonal.
    """

    kernel: StoreReader
    context: StageContext
    left: slice
    right: slice

    @property
    def prefix(self) -> str:
        """Name of the tile's partial sums."""
        return f"sums-{self.left.start}-{self.right.start}"

    def pending(self) -> list[int]:
        """Shards that are not summed yet."""
        return pending_shards(self.context, self.prefix)

    def sum_shards(self, shards: list[int], shift: Any) -> None:
        """Sum the blocks of every shard and write the sums to the disk.

        Args:
            shards: indices of the shards.
            shift: subtracted from every row [landmark]; on the host.
        """
        context = self.context
        device = context.device

        def task(shard: int) -> None:
            sums = None
            device_shift = device.to_device(shift)
            # One accumulator for the whole shard, in the order of its blocks.
            for batch in batch_blocks(context.plan.shard(shard)):
                context.stop.check()
                sums = self._add(sums, batch, device_shift)
            # Back to the host and to the disk: a kill costs the shards under way.
            on_host = {name: device.to_host(value) for name, value in vars(sums).items()}
            arrays = {name: np.asarray(value) for name, value in on_host.items()}
            write_partial(context, partial_path(context, self.prefix, shard), arrays)
            context.progress.advance(1)

        context.executor().run(task, shards)

    def write(self, writer: StoreWriter, mean: Any) -> Files:
        """Add the shards in their order, write the tile and its mirror, fill its part of the mean.

        Args:
            writer: of the store.
            mean: mu_a [view, landmark]; a tile on the diagonal fills its landmarks.

        Returns:
            The files written.
        """
        sums = self._total()
        row = self.left.start // blocks.TILE
        column = self.right.start // blocks.TILE
        if self.left == self.right:
            mean[:, self.left], second = finish(sums)
            return writer.write_tile("second", row, column, second)
        # C_ba of the mirrored landmark ranges is C_ab transposed: it costs no pass.
        second = finish_cross(sums)
        mirror = np.ascontiguousarray(second.transpose(1, 0, 3, 2))
        files = writer.write_tile("second", row, column, second)
        return files | writer.write_tile("second", column, row, mirror)

    def _total(self) -> Any:
        """The sums of all shards, added in their order."""
        total = self._partial(0)
        for shard in range(1, self.context.plan.n_shards):
            # ``functools.reduce`` would hold the two last parts while the next is read.
            total = self._merge(total, self._partial(shard))
        return total

    def _add(self, sums: Any, blocks: Sequence[Block], shift: Any) -> MomentSums | CrossSums:
        left = self._rows(blocks, self.left)
        if self.left == self.right:
            return moment_sums(left, shift[self.left], GRAM_ROWS, sums)
        right = self._rows(blocks, self.right)
        return cross_sums(left, right, shift[self.left], shift[self.right], GRAM_ROWS, sums)

    def _rows(self, blocks: Sequence[Block], landmarks: slice) -> list[Any]:
        """Kernel rows [sample, landmark] of consecutive blocks, one array for each view."""
        views = range(self.kernel.info("values").shape[0])
        stored = (
            [self.kernel.block("values", block, view)[:, landmarks] for block in blocks]
            for view in views
        )
        return [self.context.device.to_float32(*rows) for rows in stored]

    @property
    def _merge(self) -> Any:
        return merge if self.left == self.right else merge_cross

    def _partial(self, shard: int) -> Any:
        """The sums of one shard, read back from the disk.

        Raises:
            StageFailed: the file was damaged after it was written.
        """
        path = partial_path(self.context, self.prefix, shard)
        arrays: dict[str, Any] | None = read_partial(self.context, path)
        if arrays is None:
            raise StageFailed(
                f"the partial sum of shard {shard} is damaged",
                where="moments",
                advice="run the same command again: it is computed anew",
            )
        kind = MomentSums if self.left == self.right else CrossSums
        return kind(**{**arrays, "rows": int(arrays["rows"])})


def batch_blocks(blocks: Sequence[Block]) -> list[Sequence[Block]]:
    """Consecutive blocks of one matrix product: as many as make ``GRAM_ROWS`` rows."""
    count = max(1, GRAM_ROWS // blocks[0].rows)
    return [blocks[i : i + count] for i in range(0, len(blocks), count)]


def estimate_cost(sizes: AuditSizes, settings: MomentsSettings) -> Cost:
    """A pass over the kernel for each tile; a product for every pair of views."""
    plan = sizes.plan
    m = sizes.n_landmarks
    views = sizes.n_views
    pairs = len(pair_index(views))
    tiles = len(landmark_tiles(m))
    width = min(m, blocks.TILE)
    # A tile off the diagonal sums all ordered pairs of views.
    sums = f64(pairs if tiles == 1 else views * views, width, width)
    summing = _summing(sizes, sums)
    saving = (
        Term("sums of products G", sums),
        Term("their file in memory", sums),
        Term("growth of that file", sums // 8),
        Term("piece under way to the disk", min(sums, SAVED_BYTES)),
    )
    worker = Quantity({"summing a shard": summing, "saving its sums": saving})
    # The workers are idle while the main process adds and finishes the shards.
    idle = Term("worker memory, free by then", worker.bytes, -1)
    adding = (
        Term("sums so far, next shard, their total or file", sums, 3),
        Term("piece on the way from the disk", min(sums, SAVED_BYTES // 2)),
        idle,
    )
    finishing = (
        Term("sums of products G", sums),
        Term("centred moments C", f64(views, views, width, width)),
        Term("matrices of one pair of views", f64(width, width), 3),
        idle,
    )
    side = len(tile_slices(m)) * width
    return Cost(
        units=plan.n_shards * tiles,
        disk=Quantity.of(
            Term("second moments C", f64(views, views, side, side)),
            Term("means mu", f64(views, m)),
        ),
        memory=Quantity({"adding shards": adding, "finishing a tile": finishing}),
        worker_memory=worker,
        parallel_tasks=plan.n_shards,
        flops=Quantity.of(Term("products B^T B", 2.0 * plan.n_samples * m * m, pairs)),
        scratch=Quantity.of(Term("partial sums of a shard", sums, plan.n_shards * tiles)),
        device_task_memory=Quantity.of(*summing),
    )


def _summing(sizes: AuditSizes, sums: int) -> tuple[Term, ...]:
    """Memory of a worker that sums a shard of one tile, whose sums take so many bytes."""
    plan = sizes.plan
    views = sizes.n_views
    width = min(sizes.n_landmarks, blocks.TILE)
    # Two landmark ranges off the diagonal.
    ranges = 1 if len(landmark_tiles(sizes.n_landmarks)) == 1 else 2
    block = min(plan.block_rows, plan.n_samples)
    rows = max(block, min(GRAM_ROWS, plan.shard_blocks * block))
    return (
        Term("kernel rows of a product", f32(rows, width), views * ranges),
        Term("their deviations from the shift", f32(min(rows, GRAM_ROWS), width), views * ranges),
        Term("a block as stored", f32(block, width), ranges),
        Term("sums of products G", sums),
        Term("one product B^T B", f32(width, width)),
    )


STAGE = Stage(
    name="moments",
    version=2,
    inputs=MomentsInputs,
    store="moments",
    settings=MomentsSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="mean and second moments of the kernel rows",
    parallel="shards",
)
