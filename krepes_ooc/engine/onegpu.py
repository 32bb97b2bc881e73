"""One device for each worker process of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from distributed import WorkerPlugin

from krepes_ooc.engine.gpu import VISIBLE


class OneGpu(WorkerPlugin):  # type: ignore[misc,unused-ignore]
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
