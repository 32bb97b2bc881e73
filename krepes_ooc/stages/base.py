"""What a stage is, what it is given, and the two ways in which stages write stores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from krepes_ooc.blocks import Block, BlockPlan
from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import Budget, Need
from krepes_ooc.engine.executor import Executor
from krepes_ooc.engine.meter import Meter
from krepes_ooc.engine.progress import Progress
from krepes_ooc.engine.stopping import StopFlag
from krepes_ooc.settings import to_mapping
from krepes_ooc.stages.inputs import AuditInputs
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.storage.contracts import StoreSpec
from krepes_ooc.storage.files import read_arrays, to_json
from krepes_ooc.storage.journal import Unit
from krepes_ooc.storage.reader import StoreReader
from krepes_ooc.storage.records import Files, StageRecord
from krepes_ooc.storage.workspace import Workspace
from krepes_ooc.storage.writer import StoreWriter

# Thread stacks, journals and what the allocator keeps; measured in a fresh process per stage.
SLACK_BYTES = 24 * 2**20
# The part of torch that differentiates: it loads with the first network.
NETWORK_BYTES = 96 * 2**20
BlockValues = Iterable[tuple[str, int, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Stage:
    """One step of an audit.

    Args:
        name: the stage, and its key in a recipe.
        version: raised when its bytes or their meaning change.
        reads: stages whose results it reads, and ``source``, ``network`` or ``views``.
        store: the store that it writes, or None.
        settings: frozen dataclass of its recipe keys.
        run: computes and seals; called only if the stage is not sealed.
        predict: expected cost from sizes and settings, for ``plan`` and the budget.
        about: one line for people.
    """

    name: str
    version: int
    reads: tuple[str, ...]
    store: str | None
    settings: type[Any]
    run: Callable[[StageContext], None]
    predict: Callable[[AuditShape, Any], Cost]
    about: str


@dataclass(frozen=True)
class Cost:
    """Expected cost of a stage.

    Args:
        units: blocks, shards, rounds or epochs.
        disk: bytes that the stage leaves on the disk.
        need: anonymous memory.
        flops: floating-point operations.
        scratch: bytes of partial results, removed when the stage is sealed.
        double: whether the operations are in float64.
    """

    units: int = 1
    disk: int = 0
    need: Need = field(default_factory=Need)
    flops: float = 0.0
    scratch: int = 0
    double: bool = False


@dataclass(frozen=True)
class StageContext:
    """Everything that one stage is given.

    Args:
        stage: the stage itself.
        settings: its frozen settings.
        workspace: where stores are read and written.
        inputs: source, network and views of the recipe.
        ticket: what the digest is made of.
        shape: sizes of the audit.
        budget: memory and workers.
        stop: asked between units.
        progress: told after every unit.
        facts: what the seal records besides.
        meter: what the stage costs this process.
        recipe_text: the recipe as it was read, for the report.
        base: anonymous memory of the process before any stage, in bytes; 0: what it holds now.
    """

    stage: Stage
    settings: Any
    workspace: Workspace
    inputs: AuditInputs
    ticket: Mapping[str, Any]
    shape: AuditShape | None
    budget: Budget
    stop: StopFlag
    progress: Progress
    facts: dict[str, Any] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    recipe_text: str = ""
    base: int = 0

    @property
    def digest(self) -> str:
        """Digest of the ticket."""
        return digest_of(self.ticket)

    @cached_property
    def record(self) -> StageRecord:
        """The stage's record in the workspace."""
        return self.workspace.record(self.stage.name, self.stage.store)

    @property
    def plan(self) -> BlockPlan:
        """The block plan of the features store, chosen once."""
        assert self.shape is not None
        return self.shape.plan

    @property
    def cost(self) -> Cost:
        """Expected cost of the stage."""
        if self.shape is None:
            return Cost()
        return cost_of(self.stage, self.shape, self.settings, self.inputs)

    def reader(self, store: str) -> StoreReader:
        """The reader of a sealed store."""
        return self.workspace.reader(store)

    def seal(self, files: Files) -> None:
        """Seal the stage with its files and what this process measured."""
        facts = {
            **self.meter.facts(),
            "peak_bytes": machine.peak_bytes(),
            "workers": self.budget.workers,
            "memory": self.budget.memory,
            "numerics": machine.numerics(),
            "bytes": sum(size for size, _ in files.values()),
        }
        self.record.seal_with(files, facts | self.facts)

    def executor(self) -> Executor:
        """Threads that fit the budget.

        Raises:
            PlanRefused: not even one worker fits.
        """
        base = self.base or machine.anonymous_bytes()
        workers = self.budget.workers_for(self.stage.name, self.cost.need, base)
        return Executor(workers, self.stop, self.progress)


def cost_of(stage: Stage, shape: AuditShape, settings: Any, inputs: AuditInputs) -> Cost:
    """Expected cost of a stage; what reads source or network holds their memory too."""
    cost = stage.predict(shape, settings)
    held = cost.need.fixed + SLACK_BYTES
    held += inputs.source.resident_bytes if "source" in stage.reads else 0
    held += NETWORK_BYTES + 8 * shape.n_parameters if "network" in stage.reads else 0
    return replace(cost, need=replace(cost.need, fixed=held))


def digest_of(ticket: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of a ticket."""
    return hashlib.sha256(to_json(to_mapping(ticket)).encode()).hexdigest()


def write_blocks(
    context: StageContext,
    writer: StoreWriter,
    compute: Callable[[Block], tuple[BlockValues, str]],
    plan: BlockPlan | None = None,
) -> Files:
    """Compute and write the blocks that are not yet on disk, one task each.

    Args:
        context: the stage.
        writer: writer of its store, already created.
        compute: values of one block as (array, view, rows), and the hash of the source rows.
        plan: how the rows are cut (default: the plan of the features).

    Returns:
        Files of all blocks, for the seal.
    """
    plan, record = plan or context.plan, context.record
    done = {name: dict(unit.files) for name, unit in record.done().items()}
    missing = [block for block in plan.blocks() if block_name(block) not in done]
    context.progress.begin(context.stage.name, plan.n_blocks, plan.n_blocks - len(missing))

    def task(block: Block) -> tuple[str, Files]:
        values, content = compute(block)
        return write_unit(context, writer, block, values, content)

    done.update(context.executor().map(task, missing))
    return {key: value for files in done.values() for key, value in files.items()}


def write_unit(
    context: StageContext, writer: StoreWriter, block: Block, values: BlockValues, content: str
) -> tuple[str, Files]:
    """Write the chunks of one block, then its journal line."""
    files: Files = {}
    for name, view, rows in values:
        files |= writer.write_block(name, block, rows, view)
    name = block_name(block)
    context.record.journal.append(Unit(name, files, numerics=machine.numerics(), content=content))
    context.progress.advance(1, sum(size for size, _ in files.values()))
    return name, files


def block_name(block: Block) -> str:
    """Name of a block in the journal."""
    return f"block {block.index}"


def seal_blocks(
    context: StageContext,
    writer: StoreWriter,
    files: Files,
    arrays: Mapping[str, npt.NDArray[Any]],
    attributes: Mapping[str, Any],
) -> None:
    """Write the arrays that come last and the attributes, then seal."""
    for name, values in arrays.items():
        files |= writer.write_array(name, values)
    writer.set_attributes(attributes)
    context.seal(files | writer.metadata_files())
    context.workspace.forget(writer.spec.contract.store)


def write_whole(
    context: StageContext,
    spec: StoreSpec,
    arrays: Mapping[str, npt.NDArray[Any]],
    attributes: Mapping[str, Any],
) -> None:
    """Write a store whose size does not grow with n in one go, and seal it."""
    context.stop.check()
    context.record.reset()
    writer = context.workspace.writer(spec, context.digest)
    writer.create()
    seal_blocks(context, writer, {}, arrays, attributes)
    context.progress.advance(1)


def pending_shards(context: StageContext, prefix: str) -> list[int]:
    """Shards whose partial result is missing or damaged."""
    shards = range(context.plan.n_shards)
    return [i for i in shards if read_arrays(partial_path(context, prefix, i)) is None]


def partial_path(context: StageContext, prefix: str, shard: int) -> Path:
    """File of one shard's partial result; removed when the stage is sealed."""
    return context.record.partials / f"{prefix}-{shard:06d}.npz"
