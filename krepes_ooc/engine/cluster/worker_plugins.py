"""Plugins of Distributed that install payloads on workers and give each worker one device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from distributed import Worker, WorkerPlugin

from krepes_ooc.engine.cluster.worker import TaskPayload, worker_state
from krepes_ooc.engine.cuda_device import VISIBLE


class PayloadPlugin(WorkerPlugin):
    """Worker plugin that installs a payload on current and future workers.

    Args:
        folder: of the run.
        key: of the payload; also the plugin's name, by which it is unregistered.
        payload: function and items.
    """

    def __init__(self, folder: str, key: str, payload: TaskPayload) -> None:
        self.name = key
        self.folder = folder
        self.payload = payload

    def setup(self, worker: Worker) -> None:
        """Install the payload; called in the worker."""
        worker_state().enter(self.folder)
        worker_state().install(self.name, self.payload)

    def teardown(self, worker: Worker) -> None:
        """Remove the payload; called in the worker."""
        worker_state().remove(self.name)


class OneGpuPerWorker(WorkerPlugin):  # type: ignore[misc,unused-ignore]
    """Worker plugin that shows a worker one device, by its number, before it has used any.

    Args:
        visible: devices as ``CUDA_VISIBLE_DEVICES`` names them.
    """

    name = "krepes-one-gpu"

    def __init__(self, visible: Sequence[str]) -> None:
        self.visible = tuple(visible)

    def setup(self, worker: Any) -> None:
        """Called in the worker when it starts, and again in the one that replaces it."""
        os.environ[VISIBLE] = self.visible[int(worker.name) % len(self.visible)]
