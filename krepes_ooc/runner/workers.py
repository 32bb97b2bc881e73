"""Workers for a run: how many processes fit, and the cluster that stays over its stages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import Budget
from krepes_ooc.engine.cluster.cluster_executor import TransferFolder, WorkerPool
from krepes_ooc.engine.cluster.connect import ClusterSpec, open_cluster
from krepes_ooc.engine.cuda_device import open_gpu, visible_devices
from krepes_ooc.engine.device import HOST, Device
from krepes_ooc.errors import UsageError
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.staleness import StageState
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.sizes import AuditSizes


@dataclass(frozen=True)
class OpenWorkers:
    """Where the block tasks of a run go; both parts are None for threads of this process."""

    pool: WorkerPool | None = None
    transfer: TransferFolder | None = None


@contextlib.contextmanager
def open_workers(
    audit: Audit,
    options: Options,
    todo: Sequence[StageState],
    shape: AuditSizes,
    budget: Budget,
    base: int,
    device: Device = HOST,
) -> Iterator[OpenWorkers]:
    """The workers of a run: a cluster if one was asked for and a stage has use for it.

    Raises:
        PlanRefused: one worker does not fit the memory.
        UsageError: the cluster cannot be reached or started.
    """
    spread = [state for state in todo if state.stage.parallel != "no"]
    if options.cluster is None or not spread:
        yield OpenWorkers()
        return
    costs = audit.costs(todo, shape)
    names = [state.stage.name for state in spread]
    n_workers = min(
        workers_that_fit(options.cluster, name, costs[name], budget, base) for name in names
    )
    local = options.cluster.kind == "local" and device.count > 0
    n_workers = min(n_workers, device.count) if local else n_workers  # one for each device
    private = audit.workspace.private
    numerics = "" if options.mixed_numerics else machine.numerics()
    with (
        open_cluster(options.cluster, n_workers, private / "jobs") as cluster,
        contextlib.closing(TransferFolder.open(private / "temp", numerics)) as desk,
    ):
        if local:
            cluster.share_devices(visible_devices(device.count))
        yield OpenWorkers(cluster, desk)


def workers_that_fit(wish: ClusterSpec, stage: str, cost: Cost, budget: Budget, base: int) -> int:
    """Worker processes that fit; each holds what a stage holds once, and so does this process.

    Raises:
        PlanRefused: not even one does.
    """
    if wish.kind == "local":
        own = base + cost.need.fixed
        return Budget(budget.memory - own, budget.workers).workers_for(
            stage, cost.need.of_process(base), 0
        )
    if wish.memory is not None:
        Budget(wish.memory, 1).workers_for(stage, cost.need, base)
    return budget.workers


KINDS = ("auto", "cpu", "cuda")


def open_device(asked: str | Device, tell: Callable[[str], None]) -> Device:
    """Where blocks are computed.

    Args:
        asked: one of ``KINDS``, or a device, which is taken as it is.
        tell: is told in one line what ``auto`` has found.

    Raises:
        UsageError: no such device, or cuda was asked for and cannot be used.
    """
    if not isinstance(asked, str):
        return asked
    if asked not in KINDS:
        raise UsageError(f"no device {asked!r}", where="--device", expected=", ".join(KINDS))
    if asked == "cpu":
        return HOST
    try:
        found = open_gpu()
    except UsageError as error:
        if asked == "cuda":
            raise
        tell(f"blocks are computed on the CPU: {error.what}")
        return HOST
    tell(f"blocks are computed on {found.name}, {format_bytes(found.memory or 0)} free")
    return found
