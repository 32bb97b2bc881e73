"""Definition of a stage, and the context that it runs in."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.core.digests import canonical_digest
from krepes_ooc.core.files import Files
from krepes_ooc.core.settings import digest_mapping
from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import LARGE_BATCH, Budget, bound_allocator, release
from krepes_ooc.engine.cluster.cluster_executor import ClusterExecutor, TransferFolder, WorkerPool
from krepes_ooc.engine.cluster.worker import worker_state
from krepes_ooc.engine.device import HOST, Device, workers_on
from krepes_ooc.engine.executor import Executor
from krepes_ooc.engine.machine import ResourceMeter
from krepes_ooc.engine.memory_limit import MemoryLimit
from krepes_ooc.engine.run_control import Progress, StopFlag
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.workspace import Workspace

BINDS_PARTIALS = "binds_partials"


@dataclass(frozen=True)
class Stage:
    """One step of an audit.

    Args:
        name: the stage, and its key in a recipe.
        version: raised when its bytes or their meaning change.
        inputs: frozen dataclass of the stores and parts of the recipe that it reads.
        store: the store that it writes, or None.
        settings: frozen dataclass of its recipe keys.
        run: computes and seals, from its inputs and context; called only if it is not sealed.
        estimate_cost: expected cost from sizes and settings, for ``plan`` and the budget.
        about: one line for plan and documentation.
        parallel: whether its passes run on the workers of a cluster, and whether its shards can
            also be computed apart.
        uses_sklearn: whether it loads scikit-learn.
    """

    name: str
    version: int
    inputs: type[StageInputs]
    store: str | None
    settings: type[Any]
    run: Callable[[Any, StageContext], None]
    estimate_cost: Callable[[AuditSizes, Any], Cost]
    about: str
    parallel: Literal["no", "passes", "shards"] = "no"
    uses_sklearn: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """Stages and parts of the recipe whose digests its own digest holds."""
        return self.inputs.reads()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name of its module."""
        return _stage_of, (self.run.__module__,)


def _stage_of(module: str) -> Stage:
    stage: Stage = importlib.import_module(module).STAGE
    return stage


class ShardDone(Exception):
    """The shard of this process is on disk; a run without ``--shard`` seals the stage."""


@dataclass(frozen=True)
class StageContext:
    """Settings, workspace, resources and control of one running stage.

    Args:
        stage: the stage itself.
        settings: its frozen settings.
        workspace: where stores are written; it gives readers of declared inputs only.
        audit_inputs: source, network and views of the recipe, for ``inputs``.
        fingerprint: version, settings and input digests, whose sha256 is the digest.
        sizes: sizes of the audit.
        budget: memory and workers.
        stop: checked between units.
        progress: advanced after every unit.
        seal_facts: further entries of the seal.
        meter: time and memory of the stage in this process.
        recipe_text: the recipe as it was read, for the report.
        base: anonymous memory of the process before any stage, in bytes; 0: measured now.
        pool: the workers of a cluster, if one is used.
        transfer: folder through which payloads and large results pass to them.
        owner: names the writer among several of one workspace.
        peaks: largest anonymous memory of the workers, in bytes.
        shard: number of the part that this process computes, from 1, and of how many; None: all.
        stages_before: stages that ran earlier in this process, whose libraries stay loaded.
        device: where blocks are computed.
        planned_memory: anonymous memory that this process may take by the plan, in bytes.
        limit: compares the measured memory with that of the run.
    """

    stage: Stage
    settings: Any
    workspace: Workspace
    audit_inputs: AuditInputs
    fingerprint: Mapping[str, Any]
    sizes: AuditSizes | None
    budget: Budget
    stop: StopFlag
    progress: Progress
    seal_facts: dict[str, Any] = field(default_factory=dict)
    meter: ResourceMeter = field(default_factory=ResourceMeter)
    recipe_text: str = ""
    base: int = 0
    pool: WorkerPool | None = None
    transfer: TransferFolder | None = None
    owner: str = ""
    peaks: list[int] = field(default_factory=lambda: [0])
    shard: tuple[int, int] | None = None
    stages_before: tuple[Stage, ...] = ()
    device: Device = HOST
    planned_memory: int = 0
    limit: MemoryLimit | None = None

    @property
    def stage_name(self) -> str:
        """Name of the stage."""
        return self.stage.name

    @property
    def digest(self) -> str:
        """Digest of the fingerprint."""
        return digest_of(self.fingerprint)

    @property
    def numerics(self) -> str:
        """Libraries, processor and device, which decide the bits of this process."""
        return machine.numerics(self.device.name)

    @cached_property
    def record(self) -> StageRecord:
        """The stage's record in the workspace."""
        return self.workspace.record(self.stage.name, self.stage.store, self.owner)

    @cached_property
    def binds_partials(self) -> bool:
        """Whether partial results carry the stage's digest; those of earlier versions do not."""
        return bool((self.record.begun() or {}).get(BINDS_PARTIALS))

    @property
    def plan(self) -> BlockPlan:
        """The block plan of the features store, chosen once."""
        assert self.sizes is not None
        return self.sizes.plan

    @property
    def cost(self) -> Cost:
        """Expected cost of the stage."""
        if self.sizes is None:
            return Cost()
        return stage_cost(
            self.stage, self.sizes, self.settings, self.audit_inputs, self.stages_before
        )

    def bound_allocator(self) -> None:
        """Bound the C allocator as the plan of the stage counts it."""
        # Without the memory of the source, which would be opened for it.
        cost = Cost() if self.sizes is None else self.stage.estimate_cost(self.sizes, self.settings)
        bound_allocator(large_batch(self.stage, self.sizes, cost))

    @cached_property
    def inputs(self) -> StageInputs:
        """The declared inputs, opened."""
        return self.stage.inputs.open(self)

    def output(self) -> StoreReader:
        """The reader of the store that this stage writes."""
        assert self.stage.store is not None
        return self.workspace.reader(self.stage.store)

    def seal(self, files: Files) -> None:
        """Seal the stage with its files and the measurements of this process.

        Args:
            files: size and checksum of every file of the stage, by path.
        """
        facts = {
            **self.meter.facts(),
            "peak_bytes": machine.peak_bytes(),
            "workers": self.budget.workers,
            "memory": self.budget.memory,
            "planned_memory": self.planned_memory,
            "numerics": self.numerics,
            "bytes": sum(size for size, _ in files.values()),
        }
        # On a cluster the blocks ran in other processes: their number and peak replace the budget.
        if self.pool is not None:
            facts |= {"workers": self.pool.n_workers, "anonymous_worker": max(self.peaks)}
        self.record.seal_with(files, facts | self.seal_facts)

    def executor(self) -> Executor:
        """The executor of block tasks: the cluster, or as many threads as fit the budget.

        Raises:
            PlanRefused: not even one worker fits.
        """
        # A stage without passes over blocks would gain nothing from workers.
        if self.pool is None or self.transfer is None or self.stage.parallel == "no":
            return self._threads()
        return ClusterExecutor(
            self.pool.n_workers,
            self.stop,
            self.progress,
            self.pool,
            self.transfer,
            self.finish_task,
            self.peaks,
            limit=self.limit,
        )

    def _threads(self) -> Executor:
        # Two limits on the threads: host memory above the base, then memory of the device.
        base = self.base or machine.anonymous_bytes()
        cost = self.cost
        workers = self.budget.workers_for(self.stage.name, cost.need, base)
        fitting = workers_on(self.device, self.stage.name, cost.device, workers)
        trims = large_batch(self.stage, self.sizes, cost) > 0
        return Executor(fitting, self.stop, self.progress, limit=self.limit, trims=trims)

    def my_shards(self, shards: Iterable[int]) -> list[int]:
        """The shards that this process computes; consecutive ones stay together.

        Args:
            shards: all shards of the plan.
        """
        if self.shard is None:
            return list(shards)
        # Shard i of n goes to process floor(i count / n): contiguous ranges of almost equal size.
        number, count = self.shard
        return [i for i in shards if i * count // self.plan.n_shards == number - 1]

    def stop_after_shard(self) -> None:
        """End the stage before its seal if this process computes one shard of it.

        Raises:
            ShardDone: this process computes one shard.
        """
        if self.shard is not None:
            raise ShardDone

    def finish_task(self) -> None:
        """Close the journal after a task of a cluster, so that other processes can read it."""
        self.record.journal.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what a worker needs to reopen the context."""
        # Executors, meters and seal facts belong to the client; a worker measures its own.
        assert self.transfer is not None
        declared = (self.settings, self.workspace, self.audit_inputs)
        stored = (dict(self.fingerprint), self.sizes)
        resources = (self.budget, self.base, self.device)
        folder = str(self.transfer.folder)
        return _on_worker, (folder, self.stage, *declared, *stored, *resources)


def _on_worker(
    folder: str,
    stage: Stage,
    settings: Any,
    workspace: Workspace,
    audit_inputs: AuditInputs,
    fingerprint: Mapping[str, Any],
    sizes: AuditSizes | None,
    budget: Budget,
    base: int,
    device: Device,
) -> StageContext:
    """The context of a stage on a worker: one for all tasks, so that sources and stores stay open.

    Stop flag, progress and journal owner are those of the worker process.
    """
    state = worker_state()
    state.enter(folder)

    def make() -> StageContext:
        # What the stage before freed is not charged to this one.
        release(base)
        context = StageContext(
            stage,
            settings,
            workspace,
            audit_inputs,
            fingerprint,
            sizes,
            budget,
            state.stop,
            state.progress,
            base=base,
            owner=state.owner,
            device=device,
        )
        context.bound_allocator()
        return context

    # The digest is part of the key: a later run of other settings opens its inputs anew.
    context: StageContext = state.cached((stage.name, digest_of(fingerprint)), make)
    return context


def stage_cost(
    stage: Stage,
    sizes: AuditSizes,
    settings: Any,
    inputs: AuditInputs,
    before: Iterable[Stage] = (),
) -> Cost:
    """Expected cost of a stage with the memory of source, network and libraries.

    Args:
        stage: the stage.
        sizes: sizes of the audit.
        settings: settings of the stage.
        inputs: source, network and views of the recipe.
        before: stages that ran earlier in the same process; source, network and libraries stay in
            memory, so theirs count as well.
    """
    cost = stage.estimate_cost(sizes, settings)
    ran = list(before)
    # A stage that is skipped loads nothing itself.
    loaded = ran if cost.skipped else [*ran, stage]
    reads_before = {name for each in ran for name in each.reads}
    reads = {name for each in loaded for name in each.reads}
    # Rows that are not stored are computed again, by stages that otherwise read stores alone.
    if cost.network:
        reads |= {"source", "network"}
    # Memory that the stage frees before the network loads offsets it only at its first load.
    return cost.in_process(
        source=inputs.source.resident_bytes if "source" in reads else 0,
        network=max(8 * sizes.n_parameters, 4 * sizes.n_weights) if "network" in reads else None,
        network_loaded="network" in reads_before,
        sklearn=any(each.uses_sklearn for each in loaded),
        follows=bool(ran),
        batch=large_batch(stage, sizes, cost),
    )


def large_batch(stage: Stage, sizes: AuditSizes | None, cost: Cost) -> int:
    """Bytes of a batch of a stage that runs the network, if it is a large one; else 0.

    Args:
        stage: the stage.
        sizes: of the audit; None: not known.
        cost: of the stage.
    """
    if sizes is None or cost.skipped or not (cost.network or "network" in stage.reads):
        return 0
    return sizes.batch_bytes if sizes.batch_bytes >= LARGE_BATCH else 0


def is_enabled(settings: Any) -> bool:
    """Whether a stage with these settings is part of the audit: stages are, but for optional ones.

    Args:
        settings: of the stage; those of an optional stage have the key ``enabled``.
    """
    return bool(getattr(settings, "enabled", True))


def digest_of(fingerprint: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of a stage's fingerprint."""
    return canonical_digest(digest_mapping(fingerprint))
