"""The context of a stage as it arrives on a worker of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.engine.budget import LARGE_BATCH, Budget
from krepes_ooc.engine.cluster.worker import RUN_TOKEN, WorkerState
from krepes_ooc.engine.device import HOST
from krepes_ooc.stages.base import stage as module
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.registry import BY_NAME
from krepes_ooc.storage.workspace import Workspace


class Closed:
    """Inputs that must not be opened."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is opened")


@pytest.mark.parametrize("batch", [LARGE_BATCH, 0])
def test_arriving_opens_nothing_and_bounds_the_allocator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Once for all tasks of a stage; a slow source would hold up the worker's heartbeat."""
    bounds: list[int] = []
    released: list[int] = []
    monkeypatch.setattr(module, "bound_allocator", bounds.append)
    monkeypatch.setattr(module, "release", released.append)
    # The process of these tests is no worker: what it holds is put back.
    monkeypatch.setattr(module, "worker_state", lambda: state)
    state = WorkerState()
    (tmp_path / RUN_TOKEN).touch()
    plan = BlockPlan(1000, 256, 256, 64, 1)
    counts = (2, 1280, 32768, 64, 37_000, True, 898, 16, 1347, 449, 10, 2)
    sizes = AuditSizes(*counts, plan, sample_bytes=batch // 256)
    stage = BY_NAME["features"]

    def arrive(key: str) -> Any:
        resources = (Budget(2**30, 1), 5, HOST)
        declared = (str(tmp_path), stage, stage.settings(), Workspace(tmp_path), Closed())
        return module._on_worker(*declared, {"digest": key}, sizes, *resources)

    first = arrive("a")
    assert arrive("a") is first
    assert arrive("b") is not first
    assert arrive("a") is not first, "the next stage takes the place of the one before"
    assert released == [5, 5, 5]
    assert bounds == [batch] * 3
