"""Stage moments: mean and centred second moments of the kernel rows, one pass, a fixed tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from krepes_ooc.algebra.moments import (
    MomentSums,
    block_shift,
    finish,
    merge,
    moment_sums,
    pair_index,
)
from krepes_ooc.blocks import Block
from krepes_ooc.engine.budget import Need
from krepes_ooc.engine.executor import tree_fold
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base import (
    Cost,
    Stage,
    StageContext,
    partial_path,
    pending_shards,
    write_whole,
)
from krepes_ooc.stages.inputs import Rows
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.files import read_arrays, write_arrays
from krepes_ooc.widen import to_float32


@dataclass(frozen=True)
class MomentsSettings:
    """Recipe key ``stages.moments``: nothing to set."""


def read_views(context: StageContext, block: Block) -> tuple[Rows, ...]:
    """Kernel rows [sample, landmark] of one block, one array for each view, as float32."""
    kernel = context.reader("kernel")
    views = range(kernel.info("values").shape[0])
    return tuple(to_float32(kernel.block("values", block, view)) for view in views)


def run(context: StageContext) -> None:
    """Sum the missing shards, fold all of them, seal."""
    plan = context.plan
    views, n, m = context.reader("kernel").info("values").shape
    shift = block_shift(read_views(context, plan.block(0)))
    pending = pending_shards(context, "sums")
    context.progress.begin("moments", plan.n_shards, plan.n_shards - len(pending))

    def task(shard: int) -> None:
        sums = None
        for block in plan.shard(shard):
            context.stop.check()
            part = moment_sums(read_views(context, block), shift, plan.sub_rows)
            sums = part if sums is None else merge(sums, part)
        assert sums is not None
        arrays = {"rows": np.array(sums.rows), "sums": sums.sums, "products": sums.products}
        write_arrays(partial_path(context, "sums", shard), arrays, context.record.temp)
        context.progress.advance(1)

    context.executor().run(task, pending)
    mean, second = finish(tree_fold(plan.n_shards, lambda i: _partial(context, i, shift), merge))
    spec = StoreSpec(load_contract("moments"), {"view": views, "landmark": m})
    write_whole(context, spec, {"mean": mean, "second": second}, {"n_samples": n})


def _partial(context: StageContext, shard: int, shift: Any) -> MomentSums:
    """The sums of one shard, read back from the disk.

    Raises:
        StageFailed: the file was damaged after it was written.
    """
    known = read_arrays(partial_path(context, "sums", shard))
    if known is None:
        raise StageFailed(
            f"the partial sum of shard {shard} is damaged",
            where="moments",
            advice="run the same command again: it is computed anew",
        )
    return MomentSums(int(known["rows"]), shift, known["sums"], known["products"])


def predict(shape: AuditShape, settings: MomentsSettings) -> Cost:
    """One pass over the kernel, one product for every pair of views."""
    plan, m, views = shape.plan, shape.n_landmarks, shape.n_views
    pairs = len(pair_index(views))
    per_worker = m * views * (4 * plan.block_rows + 8 * plan.sub_rows) + 16 * pairs * m * m
    fixed = 8 * m * m * (views * views + pairs * (2 + plan.n_shards.bit_length()))
    disk, scratch = 8 * m * m * views * views, 8 * m * m * pairs * plan.n_shards
    flops = 2.0 * plan.n_samples * m * m * pairs
    return Cost(plan.n_shards, disk, Need(fixed, per_worker), flops, scratch)


STAGE = Stage(
    name="moments",
    version=1,
    reads=("kernel",),
    store="moments",
    settings=MomentsSettings,
    run=run,
    predict=predict,
    about="mean and second moments of the kernel rows",
)
