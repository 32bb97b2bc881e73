"""Workers and device of a run: how many processes fit, and the cluster that serves all stages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Workers that the block tasks of a run go to; all None for threads of this process.

    Args:
        pool: the processes.
        transfer: folder through which payloads and large results pass to them.
        memory: limit of one process in bytes; None: not known.
    """

    pool: WorkerPool | None = None
    transfer: TransferFolder | None = None
    memory: int | None = None


@contextlib.contextmanager
def open_workers(
    audit: Audit,
    options: Options,
    unsealed: Sequence[StageState],
    sizes: AuditSizes,
    budget: Budget,
    base: int,
    device: Device = HOST,
) -> Iterator[OpenWorkers]:
    """The workers of a run: a cluster if options name one and a stage can use it.

    Raises:
        PlanRefused: one worker does not fit the memory.
        UsageError: the cluster cannot be reached or started.
    """
    parallel = [state for state in unsealed if state.stage.parallel != "no"]
    if options.cluster is None or not parallel:
        yield OpenWorkers()
        return
    # As many as fit in every stage; on one machine at most one for each device.
    costs = audit.costs(unsealed, sizes)
    names = [state.stage.name for state in parallel]
    n_workers = min(
        workers_that_fit(options.cluster, name, costs[name], budget, base) for name in names
    )
    local = options.cluster.kind == "local" and device.count > 0
    if local:
        n_workers = min(n_workers, device.count)
    # Results of a worker with other libraries have other bits: refused unless allowed.
    private = audit.workspace.private
    numerics = "" if options.mixed_numerics else machine.numerics()
    with (
        open_cluster(options.cluster, n_workers, private / "jobs") as cluster,
        contextlib.closing(TransferFolder.open(private / "temp", numerics)) as transfer,
    ):
        if cluster.pages:
            audit.note(f"pages of the scheduler: {cluster.pages}")
        if local:
            cluster.share_devices(visible_devices(device.count))
        # Processes on this machine share what this one leaves; elsewhere each has its own.
        memory = options.cluster.memory
        if options.cluster.kind == "local":
            here = base + max(costs[name].need.fixed for name in names)
            memory = (budget.memory - here) // max(1, n_workers)
        yield OpenWorkers(cluster, transfer, memory)


def workers_that_fit(spec: ClusterSpec, stage: str, cost: Cost, budget: Budget, base: int) -> int:
    """Number of worker processes that fit; each needs the fixed part of a stage, as this one does.

    Args:
        spec: kind of cluster, and memory of a worker elsewhere.
        stage: its name, for the message.
        cost: of the stage.
        budget: memory and workers of this machine.
        base: anonymous memory of a process before any stage, in bytes.

    Raises:
        PlanRefused: not even one does.
    """
    # Workers on this machine share its memory with this process.
    if spec.kind == "local":
        this_process = base + cost.need.fixed
        need = cost.need.of_process(base)
        left = Budget(budget.memory - this_process, budget.workers)
        workers = left.workers_that_fit(need, 0)
        if not workers:
            # The run has been found to fit with threads.
            advice = ", or leave out --cluster: threads of this process fit"
            total = this_process + need.per_worker
            raise budget.refusal_error(
                stage, total, advice, needs="this process and one worker need"
            )
        return workers
    # Elsewhere each has its own: one must fit into that.
    if spec.memory is not None:
        Budget(spec.memory, 1).workers_for(stage, cost.need, base)
    return budget.workers


KINDS = ("auto", "cpu", "cuda")


# There where the kernel has a driver for NVIDIA devices.
NVIDIA = Path("/proc/driver/nvidia")


def open_device(device: str | Device, note: Callable[[str], None]) -> Device:
    """The device that computes blocks.

    Args:
        device: one of ``KINDS``, or a device, which is returned as it is.
        note: receives one line about the choice of ``auto``.

    Raises:
        UsageError: no such device, or cuda cannot be used.
    """
    if not isinstance(device, str):
        return device
    if device not in KINDS:
        raise UsageError(f"no device {device!r}", where="--device", expected=", ".join(KINDS))
    if device == "cpu":
        return HOST
    # auto falls back to the processor, and says why where a device is.
    try:
        gpu = open_gpu()
    except UsageError as error:
        if device == "cuda":
            raise
        # On a machine without a device there is nothing to say.
        if NVIDIA.exists():
            note(f"blocks are computed on the CPU: {error.what}")
        return HOST
    note(f"blocks are computed on {gpu.name}, {format_bytes(gpu.memory or 0)} free")
    return gpu
