"""Kernel rows for passes that come again and again: kept on the device, computed anew, or read.

On the host blocks are mapped, and the page cache keeps them. On a device every pass would bring the
whole kernel there once more, unless it stays, or its rows are cheaper to compute from the shorter
feature rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from krepes_ooc.blocks import Block
from krepes_ooc.engine.device import Device, Speed, is_host
from krepes_ooc.stages.base import StageContext
from krepes_ooc.stages.kernel import LandmarkKernel, read_landmark_kernel

Way = Literal["resident", "recomputed", "streamed"]
RESIDENT = 0.5  # of the memory of a device
STORED_BYTES = 2  # of a feature


@dataclass(frozen=True)
class KernelBlocks:
    """The stored kernel, block by block, on the device of its stage.

    Args:
        context: a stage that reads the sealed kernel.
    """

    context: StageContext

    def views(self, block: Block) -> tuple[Any, ...]:
        """Kernel rows [sample, landmark] of one block, one array for each view, as float32."""
        views = range(self.context.reader("kernel").info("values").shape[0])
        return tuple(self._rows(block, view) for view in views)

    @cached_property
    def way(self) -> Way:
        """How rows come to the device, decided once for a stage."""
        info = self.context.reader("kernel").info("values")
        size = info.dtype.itemsize
        assert self.context.shape is not None
        width = self.context.shape.n_features if self.context.shape.keeps_features else 0
        values, m = int(np.prod(info.shape)), info.shape[-1]
        return choose_way(self.context.device, values, m, size, width)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach a worker, which looks at its own device."""
        return KernelBlocks, (self.context,)

    def _rows(self, block: Block, view: int) -> Any:
        kernel, device = self.context.reader("kernel"), self.context.device
        if is_host(device) or self.way == "streamed":
            return device.widen(kernel.block("values", block, view))
        if self.way == "resident":
            key = ("kernel", block.index, view)
            held = device.keep(key, lambda: device.hold(kernel.block("values", block, view)))
            return device.widen(held)
        features, dtype = self.context.reader("features"), kernel.info("values").dtype.name
        stored = features.block("values", block, view)
        rows = self._map.rows_there(stored, features.block("self_kernel", block, view))
        return device.rounded(rows, dtype)

    @cached_property
    def _map(self) -> LandmarkKernel:
        """The map that the kernel was computed with."""
        facts, sub_rows = self.context.reader("kernel").attributes, self.context.plan.sub_rows
        landmarks, device = self.context.reader("landmarks"), self.context.device
        return read_landmark_kernel(landmarks, facts["normalise"], facts["scale"], sub_rows, device)


def choose_way(device: Device, values: int, landmarks: int, itemsize: int, width: int) -> Way:
    """How kernel rows come to a device.

    Args:
        device: where passes run.
        values: kernel values of all views and samples.
        landmarks: values of one row.
        itemsize: bytes of a stored value.
        width: stored features of a row; 0: none are stored.
    """
    if device.memory is None or device.speed is None:
        return "streamed"
    if itemsize * values <= RESIDENT * device.memory:
        return "resident"
    pays = width > 0 and recompute_pays(width, landmarks, itemsize, device.speed)
    return "recomputed" if pays else "streamed"


def recompute_pays(width: int, landmarks: int, itemsize: int, speed: Speed) -> bool:
    """Whether a kernel value is sooner computed from its feature row than read: 2 D / F < s / B.

    D features, F operations and B bytes a second, s bytes of a stored value. The feature row itself
    comes over the same wire, shared by the m landmarks: the slower of the two counts.
    """
    reading = itemsize / speed.bandwidth
    computing = 2.0 * width / speed.flops
    return max(computing, STORED_BYTES * width / (landmarks * speed.bandwidth)) < reading
