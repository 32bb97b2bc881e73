"""Plugins of Distributed: they install payloads on workers and give each worker one device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from distributed import Worker, WorkerPlugin

from krepes_ooc.engine.cluster.worker import TaskPayload, worker_state
from krepes_ooc.engine.cuda_device import VISIBLE


class PayloadPlugin(WorkerPlugin):
    """Work at the station of a worker, for as long as the client needs it.

    Args:
        folder: of the run.
        key: of the work.
        work: function and items.
    """

    def __init__(self, folder: str, key: str, work: TaskPayload) -> None:
        self.name, self.folder, self.work = key, folder, work

    def setup(self, worker: Worker) -> None:
        """Borrow the work."""
        worker_state().enter(self.folder)
        worker_state().install(self.name, self.work)

    def teardown(self, worker: Worker) -> None:
        """Give it back."""
        worker_state().remove(self.name)


class OneGpuPerWorker(WorkerPlugin):  # type: ignore[misc,unused-ignore]
    """Lets a worker see one device, by its number among the workers, before it has used any.

    Args:
        visible: devices as ``CUDA_VISIBLE_DEVICES`` names them.
    """

    name = "krepes-one-gpu"

    def __init__(self, visible: Sequence[str]) -> None:
        self.visible = tuple(visible)

    def setup(self, worker: Any) -> None:
        """Called in the worker when it starts, and again in the one that replaces it."""
        os.environ[VISIBLE] = self.visible[int(worker.name) % len(self.visible)]
