"""Stage group_moments: moments of the kernel rows of every group, in float64.

The rows of a group are gathered block by block, a few blocks at a time, so that the kernel is read
in its order; groups are summed in waves, as many as fit ``WAVE_BYTES`` of a worker, and every wave
is one pass. A long kernel is cut into spans of whole shards, a number that no budget changes: a
group's sums over a span are one partial result, its sums over all spans are added in their order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block, BlockPlan
from krepes_ooc.core.files import Files, remove_leftover
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import partial_path, read_partial, seal_blocks, write_partial
from krepes_ooc.stages.group_moments.group_sums import GroupMoments, GroupSums, finish, union
from krepes_ooc.stages.group_moments.stored_groups import StoredGroups
from krepes_ooc.stages.moments.sums import pair_index
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.journal import Unit
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.store_writer import StoreWriter

# Constants that decide the order of the sums: no budget and no setting changes them.
SPANS, LONG_ROWS = 4, 2**23
BATCH_ROWS = 65_536
PRODUCT_ROWS = 2048
# Sums of the groups of one wave in one worker.
WAVE_BYTES = 256 * 2**20
CHECKPOINT_SECONDS = 30.0
# Seconds between two savings over the seconds that one takes: sums of many groups are large.
SAVING_RATIO = 40.0
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupMomentsSettings:
    """Recipe key ``stages.group_moments``: nothing to set."""


@dataclass(frozen=True)
class GroupMomentsInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    kernel: StoreReader
    moments: StoreReader
    groups: StoreReader


def run(inputs: GroupMomentsInputs, context: StageContext) -> None:
    """Sum the missing spans of every group wave by wave, write the groups, then the total, seal."""
    views, n, m = inputs.kernel.info("values").shape
    pass_ = GroupPass(inputs, context)
    sizes = {"group": pass_.n_groups, "view": views, "pair": len(pair_index(views)), "landmark": m}
    spec = StoreSpec(load_contract("group_moments"), sizes, block_rows=1)
    writer = context.workspace.writer(spec, context.digest)
    writer.create()
    done = {name: dict(unit.files) for name, unit in context.record.done().items()}
    units = pass_.n_summed * pass_.n_spans
    missing = [g for g in range(pass_.n_summed) if group_name(g) not in done]
    context.progress.begin("group_moments", units, units - len(missing) * pass_.n_spans)
    for wave in waves(missing, task_groups(views, m) * pass_.parts):
        pass_.sum_wave(wave)
        if context.shard is None:
            done |= pass_.write_wave([g for g in wave if g < pass_.n_groups], writer)
    context.stop_after_shard()
    files = {key: value for unit in done.values() for key, value in unit.items()}
    total = pass_.total()
    arrays = {
        "count": pass_.groups.count,
        "total_mean": total.mean,
        "total_second": total.second,
    }
    attributes = {"n_samples": n, "pairs": [list(pair) for pair in pair_index(views)]}
    seal_blocks(context, writer, files, arrays, attributes)


@dataclass(frozen=True)
class GroupPass:
    """Passes over the kernel that sum the rows of groups.

    Where no partition holds every sample, the samples outside the first partition are summed as
    one more group, so that the total is a sum of groups too.

    Args:
        inputs: of the stage.
        context: the stage.
    """

    inputs: GroupMomentsInputs
    context: StageContext

    @cached_property
    def groups(self) -> StoredGroups:
        """Membership of samples."""
        return StoredGroups(self.inputs.groups)

    @property
    def n_groups(self) -> int:
        """Groups that are declared."""
        return len(self.groups.names)

    @cached_property
    def whole_partition(self) -> int | None:
        """The partition whose groups hold every sample."""
        return self.groups.whole_partition(self.context.plan.n_samples)

    @property
    def n_summed(self) -> int:
        """Groups that are summed: the samples outside the first partition may be one of them."""
        return self.n_groups + (self.whole_partition is None)

    @property
    def n_spans(self) -> int:
        """Spans of shards."""
        return count_spans(self.context.plan)

    @property
    def parts(self) -> int:
        """Tasks that share the groups of a wave in every span, so that each worker has one."""
        return -(-self.context.executor().workers // self.n_spans)

    @cached_property
    def shift(self) -> Float:
        """mu_a [view, landmark]."""
        return self.inputs.moments.array("mean")

    def sum_wave(self, wave: Sequence[int]) -> None:
        """Sum every span of the groups of a wave and keep the sums on disk.

        Groups are dealt to several tasks of one span where there are more workers than spans.
        """
        parts, total = self.parts, self.n_summed * self.n_spans
        mine = [
            (span, [g for g in wave if self._is_mine(span * self.n_summed + g, total)])
            for span in range(self.n_spans)
        ]
        tasks = [
            (span, groups[part::parts])
            for span, groups in mine
            for part in range(parts)
            if groups[part::parts]
        ]
        self.context.executor().run(lambda task: self.sum_span(*task), tasks)

    def sum_span(self, span: int, groups: Sequence[int]) -> None:
        """Sum the rows of some groups over the shards of one span; kept now and then on the way.

        Raises:
            Stopped: the run was asked to stop; it goes on from here.
        """
        shards, context = span_shards(self.context.plan, span, self.n_spans), self.context
        running = {group: self._load(group, span) for group in groups}
        saved = time.monotonic()
        spent = 0.0
        for shard in shards:
            # A group whose kept sums go further than this shard waits for the others.
            behind = {g: sums for g, (following, sums) in running.items() if following <= shard}
            for batch in batches(context.plan.shard(shard), BATCH_ROWS) if behind else ():
                context.stop.check()
                self._add_batch(batch, behind)
            running |= {group: (shard + 1, sums) for group, sums in behind.items()}
            if shard + 1 == shards.stop or self._is_due(saved, spent):
                began = time.monotonic()
                self._save(span, running)
                saved = time.monotonic()
                spent = saved - began
        context.progress.advance(len(groups))

    def write_wave(self, wave: Sequence[int], writer: StoreWriter) -> dict[str, Files]:
        """Add the spans of every group of a wave, write its chunks, then its journal line."""
        context = self.context

        def task(group: int) -> tuple[str, Files]:
            moments = self.summed(group)
            block = Block(group, group, group + 1)
            files = writer.write_block("mean", block, moments.mean[None])
            files |= writer.write_block("second", block, moments.second[None])
            unit = Unit(group_name(group), files, numerics=context.numerics, content="")
            context.record.journal.append(unit)
            for span in range(self.n_spans):
                remove_leftover(partial_path(context, f"sums-{span}", group))
            return unit.name, files

        return dict(context.executor().map(task, wave))

    def summed(self, group: int) -> GroupMoments:
        """Moments of one group from its partial sums.

        Raises:
            StageFailed: a file was damaged after it was written.
        """
        total: GroupSums | None = None
        for span in range(self.n_spans):
            following, sums = self._load(group, span)
            if following < span_shards(self.context.plan, span, self.n_spans).stop:
                raise StageFailed(
                    f"the partial sum of {group_name(group)} is damaged",
                    where="group_moments",
                    advice="run the same command again: it is computed anew",
                )
            if total is None:
                total = sums
            else:
                total.add(sums)
        assert total is not None
        return finish(total, self.shift)

    def total(self) -> GroupMoments:
        """Moments of all samples: of the groups of one partition, in their order."""
        partition = 0 if self.whole_partition is None else self.whole_partition
        chosen = np.flatnonzero(self.groups.partition == partition)
        return union(self._parts(chosen), self.shift)

    def _parts(self, groups: npt.NDArray[np.intp]) -> Iterable[GroupMoments]:
        output = self.context.output()
        for group in groups.tolist():
            block = Block(group, group, group + 1)
            mean, second = (output.block(name, block)[0] for name in ("mean", "second"))
            yield GroupMoments(int(self.groups.count[group]), np.array(mean), second)
        if self.whole_partition is None:
            yield self.summed(self.n_groups)

    def _add_batch(self, batch: Sequence[Block], sums: dict[int, GroupSums]) -> None:
        """Add the rows of consecutive blocks to the sums of every group."""
        kernel, views = self.inputs.kernel, range(len(self.shift))
        stored = [[kernel.block("values", block, view) for block in batch] for view in views]
        for group, total in sums.items():
            members = [self._rows(block, group) for block in batch]
            where = np.repeat(np.arange(len(batch)), [len(rows) for rows in members])
            rows = np.concatenate(members)
            for start in range(0, len(rows), PRODUCT_ROWS):
                cut = slice(start, start + PRODUCT_ROWS)
                deviations = [_gather(stored[view], where[cut], rows[cut]) for view in views]
                # In place: a new array of this size costs more than the subtraction.
                for view, K in enumerate(deviations):
                    K -= self.shift[view]
                total.add_rows(deviations)

    def _rows(self, block: Block, group: int) -> npt.NDArray[np.intp]:
        if group < self.n_groups:
            return self.groups.rows(block, group)
        return np.flatnonzero(self.inputs.groups.block("level", block)[:, 0] < 0)

    def _load(self, group: int, span: int) -> tuple[int, GroupSums]:
        """The next shard, and the sums up to it: as kept on the disk, or none."""
        known = read_partial(self.context, partial_path(self.context, f"sums-{span}", group))
        if known is None:
            first = span_shards(self.context.plan, span, self.n_spans).start
            return first, GroupSums.zeros(*self.shift.shape)
        sums = GroupSums(int(known["rows"]), known["sums"], known["products"])
        return int(known["following"]), sums

    def _save(self, span: int, running: dict[int, tuple[int, GroupSums]]) -> None:
        for group, (following, sums) in running.items():
            path = partial_path(self.context, f"sums-{span}", group)
            arrays = {name: np.asarray(value) for name, value in vars(sums).items()}
            arrays["following"] = np.array(following)
            write_partial(self.context, path, arrays)

    def _is_due(self, saved: float, spent: float) -> bool:
        """Whether sums are to be kept that were kept at ``saved``, which took ``spent`` seconds."""
        wait = max(CHECKPOINT_SECONDS, SAVING_RATIO * spent)
        return self.context.stop.requested or time.monotonic() - saved > wait

    def _is_mine(self, index: int, total: int) -> bool:
        """Whether a unit of work falls to this process."""
        if self.context.shard is None:
            return True
        number, count = self.context.shard
        return index * count // total == number - 1


def _gather(
    blocks: Sequence[npt.NDArray[np.generic]],
    where: npt.NDArray[np.intp],
    rows: npt.NDArray[np.intp],
) -> Float:
    """Rows [sample, landmark] of several blocks as float64.

    Args:
        blocks: rows of one view.
        where: block of every row, ascending [sample].
        rows: row inside its block [sample].
    """
    out = np.empty((len(rows), blocks[0].shape[1]))
    for index in np.unique(where).tolist():
        here = where == index
        out[here] = to_float32(blocks[index][rows[here]])
    return out


def count_spans(plan: BlockPlan) -> int:
    """Spans of a kernel: the partial sums of several are paid for by ``LONG_ROWS`` rows."""
    return min(SPANS, plan.n_shards) if plan.n_samples >= LONG_ROWS else 1


def span_shards(plan: BlockPlan, span: int, n_spans: int) -> range:
    """The consecutive shards of a span."""
    return range(span * plan.n_shards // n_spans, (span + 1) * plan.n_shards // n_spans)


def batches(blocks: Sequence[Block], rows: int) -> list[Sequence[Block]]:
    """Consecutive blocks taken together, as many as hold ``rows`` rows."""
    count = max(1, rows // blocks[0].rows)
    return [blocks[i : i + count] for i in range(0, len(blocks), count)]


def task_groups(n_views: int, n_landmarks: int) -> int:
    """Groups of one task: their sums fit ``WAVE_BYTES``."""
    return max(1, WAVE_BYTES // sums_bytes(n_views, n_landmarks))


def sums_bytes(n_views: int, n_landmarks: int) -> int:
    """Bytes of the sums of one group."""
    return f64(len(pair_index(n_views)), n_landmarks, n_landmarks)


def waves(groups: Sequence[int], count: int) -> list[Sequence[int]]:
    """Groups in waves of at most ``count``."""
    return [groups[i : i + count] for i in range(0, len(groups), count)]


def group_name(group: int) -> str:
    """Name of a group in the journal."""
    return f"group {group}"


def estimate_cost(sizes: AuditSizes, settings: GroupMomentsSettings) -> Cost:
    """One product for every pair of views and every partition; one read of the kernel a wave."""
    n, m, views = sizes.plan.n_samples, sizes.n_landmarks, sizes.n_views
    one, pairs = sums_bytes(views, m), len(pair_index(views))
    groups = max(1, sizes.n_groups)
    together = min(groups, task_groups(views, m))
    spans = count_spans(sizes.plan)
    rows = min(PRODUCT_ROWS, max(BATCH_ROWS, sizes.plan.block_rows), n)
    worker = Quantity(
        {
            "summing": (
                Term("sums of the groups of a wave", one, together),
                Term("rows of one product, and about the shift", f64(rows, m), views),
                Term("rows as they are read", f32(rows, m), 1),
            ),
            "keeping": (
                Term("sums of the groups of a wave", one, together),
                Term("file of one group, and the bytes of it", one, 1.5),
            ),
            "adding": (
                Term("sums of two spans, and the file of one", one, 3.25),
                Term("indices of a triangle", f64(m, m), 1.5),
            ),
        }
    )
    count = -(-groups // together)
    return Cost(
        units=groups * spans,
        disk=Quantity.of(
            Term("moments of the groups", one, groups + 1),
            Term("means", f64(views, m), groups + 1),
        ),
        memory=Quantity({"": (), "total": (Term("total and one group", one, 3),)}),
        worker_memory=worker,
        parallel_tasks=None,
        flops=Quantity.of(
            Term("products by partition", 2.0 * n * m * m * pairs, max(1, sizes.n_partitions))
        ),
        scratch=Quantity.of(Term("sums by span", one, groups * spans)),
        bytes_read=Quantity.of(
            Term("kernel, once a wave", float(n) * views * m * sizes.kernel_itemsize, count)
        ),
        float64=True,
    )


STAGE = Stage(
    name="group_moments",
    version=2,
    inputs=GroupMomentsInputs,
    store="group_moments",
    settings=GroupMomentsSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="moments of the kernel rows of every group",
    parallel="shards",
)
