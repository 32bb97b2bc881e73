"""Sizes of audits, and the total of every quantity of a cost, for tests of the stages' costs."""

from __future__ import annotations

from typing import Any

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.sizes import AuditSizes

SIZES = {
    "digits": AuditSizes(
        2, 1152, 98880, 32, 98880, True, 256, 32, 1300, 300, 10, 2,
        BlockPlan(1797, 512, 256, 128, 1),
    ),
    "unlabelled": AuditSizes(
        2, 4096, 2000, 512, 400000, False, 1000, 64, 11000, 1000, 0, 2,
        BlockPlan(1000000, 4096, 256, 256, 4),
    ),
    "wide": AuditSizes(
        3, 65536, 7, 3, 10**8, True, 4000, 8, 5000, 200, 2, 4,
        BlockPlan(20000, 1024, 64, 512, 2),
    ),
    "few": AuditSizes(1, 8, 8, 2, 10, True, 3, 1, 5, 4, 2, 4, BlockPlan(9, 8, 8, 8, 1)),
}  # fmt: skip


def totals(cost: Cost) -> dict[str, Any]:
    """What plan and budget are computed from; what is 0 or false is left out."""
    values = {
        "units": cost.units,
        "disk": cost.disk.total,
        "memory": cost.memory.bytes,
        "worker_memory": cost.worker_memory.bytes,
        "parallel_tasks": cost.parallel_tasks,
        "flops": cost.flops.total,
        "bytes_read": cost.bytes_read.total,
        "float64": cost.float64,
        "skipped": cost.skipped,
        "device_memory": cost.device_memory.bytes,
        "device_task_memory": cost.device_task_memory.bytes,
    }
    return {name: value for name, value in values.items() if value}


def labels(cost: Cost) -> set[str]:
    """Labels of all terms."""
    quantities = (cost.memory, cost.worker_memory, cost.disk, cost.flops, cost.bytes_read)
    return {
        term.label
        for quantity in quantities
        for terms in quantity.phases.values()
        for term in terms
    }
