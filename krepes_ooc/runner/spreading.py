"""Workers for a run: how many processes fit, and the cluster that stays over its stages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import Budget
from krepes_ooc.engine.device import HOST, Device
from krepes_ooc.engine.gpu import visible_devices
from krepes_ooc.engine.spread import Crowd, Desk
from krepes_ooc.engine.wish import Wish, open_cluster
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.stages.cost import Cost
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.stages.tickets import StageState


@dataclass(frozen=True)
class Workers:
    """Where the block tasks of a run go; both parts are None for threads of this process."""

    crowd: Crowd | None = None
    desk: Desk | None = None


@contextlib.contextmanager
def open_workers(
    audit: Audit,
    options: Options,
    todo: Sequence[StageState],
    shape: AuditShape,
    budget: Budget,
    base: int,
    device: Device = HOST,
) -> Iterator[Workers]:
    """The workers of a run: a cluster if one was asked for and a stage has use for it.

    Raises:
        PlanRefused: one worker does not fit the memory.
        UsageError: the cluster cannot be reached or started.
    """
    spread = [state for state in todo if state.stage.spreads != "no"]
    if options.cluster is None or not spread:
        yield Workers()
        return
    costs = audit.costs(todo, shape)
    names = [state.stage.name for state in spread]
    n_workers = min(fitting(options.cluster, name, costs[name], budget, base) for name in names)
    local = options.cluster.kind == "local" and device.count > 0
    n_workers = min(n_workers, device.count) if local else n_workers  # one for each device
    private = audit.workspace.private
    numerics = "" if options.mixed_numerics else machine.numerics()
    with (
        open_cluster(options.cluster, n_workers, private / "jobs") as cluster,
        contextlib.closing(Desk.open(private / "temp", numerics)) as desk,
    ):
        if local:
            cluster.share_devices(visible_devices(device.count))
        yield Workers(cluster, desk)


def fitting(wish: Wish, stage: str, cost: Cost, budget: Budget, base: int) -> int:
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
