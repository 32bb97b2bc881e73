"""Stage moments: mean and centred second moments of the kernel rows, one pass, a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from krepes_ooc.core import blocks
from krepes_ooc.core.blocks import Block, tile_slices
from krepes_ooc.core.files import Files, read_arrays, write_arrays
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import partial_path, pending_shards, seal_blocks
from krepes_ooc.stages.moments.sums import (
    CrossSums,
    MomentSums,
    block_shift,
    cross_sums,
    finish,
    finish_cross,
    merge,
    merge_cross,
    moment_sums,
    pair_index,
)
from krepes_ooc.stages.moments.sums import tiles as landmark_tiles
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.store_writer import StoreWriter

# Rows of one product: several blocks of a shard where they are short, because every product adds a
# whole matrix in float64.
GRAM_ROWS = 4096
# NumPy writes a file in pieces of 16 MiB, each of which is held twice.
SAVED_BYTES = 2**25


@dataclass(frozen=True)
class MomentsSettings:
    """Recipe key ``stages.moments``: nothing to set."""


def read_views(context: StageContext, block: Block) -> tuple[Any, ...]:
    """Kernel rows [sample, landmark] of one block on the device, for each view, as float32."""
    kernel, device = context.reader("kernel"), context.device
    views = range(kernel.info("values").shape[0])
    return tuple(device.to_float32(kernel.block("values", block, view)) for view in views)


@dataclass(frozen=True)
class MomentsInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    kernel: StoreReader


def run(inputs: MomentsInputs, context: StageContext) -> None:
    """Sum the missing shards tile by tile, fold each tile and write it, seal."""
    plan, record = context.plan, context.record
    views, n, m = context.reader("kernel").info("values").shape
    tiles = [MomentTile(context, left, right) for left, right in landmark_tiles(m)]
    shift = context.device.to_host(block_shift(read_views(context, plan.block(0))))
    pending = [tile.pending() for tile in tiles]
    total = plan.n_shards * len(tiles)
    context.progress.begin("moments", total, total - sum(map(len, pending)))
    for tile, shards in zip(tiles, pending, strict=True):
        tile.sum_shards(shards, shift)
    context.stop_after_shard()
    record.reset()  # the partial sums stay; what is written from them is written anew
    spec = StoreSpec(load_contract("moments"), {"view": views, "landmark": m})
    writer = context.workspace.writer(spec, context.digest)
    writer.create()
    mean = np.empty((views, m))
    files: Files = {}
    for tile in tiles:
        files |= tile.write(writer, mean)
    seal_blocks(context, writer, files, {"mean": mean}, {"n_samples": n})


@dataclass(frozen=True)
class MomentTile:
    """The moments between two landmark ranges, summed in one pass of their own.

    A single tile up to ``blocks.TILE`` landmarks. A worker holds the sums of one tile; the tiles
    are constants, because the width of a matrix product can change its rounding.

    Args:
        context: the stage.
        left: landmarks of the rows.
        right: landmarks of the columns; the same range on the diagonal.
    """

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
        """Sum the blocks of every shard and keep the sums on disk."""
        context, device = self.context, self.context.device

        def task(shard: int) -> None:
            sums, there = None, device.to_device(shift)
            for batch in batch_blocks(context.plan.shard(shard)):
                context.stop.check()
                sums = self._add(sums, batch, there)
            found = {name: device.to_host(value) for name, value in vars(sums).items()}
            arrays = {name: np.asarray(value) for name, value in found.items()}
            write_arrays(partial_path(context, self.prefix, shard), arrays, context.record.temp)
            context.progress.advance(1)

        context.executor().run(task, shards)

    def write(self, writer: StoreWriter, mean: Any) -> Files:
        """Fold the shards in their order, write the tile and its mirror, put its part of the mean.

        Returns:
            The files written.
        """
        sums = reduce(self._merge, map(self._partial, range(self.context.plan.n_shards)))
        row, column = self.left.start // blocks.TILE, self.right.start // blocks.TILE
        if self.left == self.right:
            mean[:, self.left], second = finish(sums)
            return writer.write_tile("second", row, column, second)
        second = finish_cross(sums)
        mirror = np.ascontiguousarray(second.transpose(1, 0, 3, 2))
        files = writer.write_tile("second", row, column, second)
        return files | writer.write_tile("second", column, row, mirror)

    def _add(self, sums: Any, blocks: Sequence[Block], shift: Any) -> MomentSums | CrossSums:
        left = self._rows(blocks, self.left)
        if self.left == self.right:
            return moment_sums(left, shift[self.left], GRAM_ROWS, sums)
        right = self._rows(blocks, self.right)
        return cross_sums(left, right, shift[self.left], shift[self.right], GRAM_ROWS, sums)

    def _rows(self, blocks: Sequence[Block], landmarks: slice) -> list[Any]:
        """Kernel rows [sample, landmark] of consecutive blocks, one array for each view."""
        kernel, device = self.context.reader("kernel"), self.context.device
        views = range(kernel.info("values").shape[0])
        stored = (
            [kernel.block("values", block, view)[:, landmarks] for block in blocks]
            for view in views
        )
        return [device.to_float32(*rows) for rows in stored]

    @property
    def _merge(self) -> Any:
        return merge if self.left == self.right else merge_cross

    def _partial(self, shard: int) -> Any:
        """The sums of one shard, read back from the disk.

        Raises:
            StageFailed: the file was damaged after it was written.
        """
        known: dict[str, Any] | None = read_arrays(partial_path(self.context, self.prefix, shard))
        if known is None:
            raise StageFailed(
                f"the partial sum of shard {shard} is damaged",
                where="moments",
                advice="run the same command again: it is computed anew",
            )
        kind = MomentSums if self.left == self.right else CrossSums
        return kind(**{**known, "rows": int(known["rows"])})


def batch_blocks(blocks: Sequence[Block]) -> list[Sequence[Block]]:
    """Consecutive blocks taken together, as many as make ``GRAM_ROWS`` rows."""
    count = max(1, GRAM_ROWS // blocks[0].rows)
    return [blocks[i : i + count] for i in range(0, len(blocks), count)]


def predict(shape: AuditSizes, settings: MomentsSettings) -> Cost:
    """A pass over the kernel for each tile; a product for every pair of views.

    A worker holds its rows in float32 and once more about the shift, one block as it was read, one
    product and its sums; then only the sums, the file that keeps them (it grows by an eighth) and
    the piece that is being written. At the end of a tile three sums are held: the one so far, a
    part and its file or the two added; then one, the moments and three matrices of one pair.
    """
    plan, m, views = shape.plan, shape.n_landmarks, shape.n_views
    pairs, tiles = len(pair_index(views)), len(landmark_tiles(m))
    width, held = min(m, blocks.TILE), pairs if tiles == 1 else views * views
    sums, second = 8 * held * width * width, 8 * views * views * width * width
    block = min(plan.block_rows, plan.n_samples)
    rows = max(block, min(GRAM_ROWS, plan.shard_blocks * block))
    ranges = 1 if tiles == 1 else 2
    summing = 4 * width * ranges * (views * (rows + min(rows, GRAM_ROWS)) + block)
    summing += sums + 4 * width * width
    per_worker = max(summing, 2 * sums + sums // 8 + min(sums, SAVED_BYTES))
    ending = max(3 * sums + min(sums, SAVED_BYTES // 2), sums + second + 24 * width * width)
    fixed = max(0, ending - per_worker)
    flops = 2.0 * plan.n_samples * m * m * pairs
    side = len(tile_slices(m)) * width
    disk, scratch = 8 * (side * side * views + m) * views, sums * plan.n_shards * tiles
    need, device = MemoryNeed(fixed, per_worker, plan.n_shards), MemoryNeed(0, summing)
    return plain_cost(plan.n_shards * tiles, disk, need, flops, scratch, device=device)


STAGE = Stage(
    name="moments",
    version=2,
    inputs=MomentsInputs,
    store="moments",
    settings=MomentsSettings,
    run=run,
    estimate_cost=predict,
    about="mean and second moments of the kernel rows",
    parallel="shards",
)
