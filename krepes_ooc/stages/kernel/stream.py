"""The stored kernel as a stream of blocks, and a memory for what passes over it have found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import read_arrays, write_arrays
from krepes_ooc.engine.device import Device, Speed, is_host, to_device
from krepes_ooc.errors import Stopped
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel, read_landmark_kernel

BlockFunction = Callable[[tuple[Any, ...], Block], tuple[Any, ...]]
Sums = tuple[Any, ...]
Arrays = Mapping[str, npt.NDArray[Any]]
PASSES = "passes"
KEEP_SECONDS = 30.0


@dataclass
class KernelStream:
    """Kernel blocks of all views, summed in a fixed order: shard by shard, then a balanced tree.

    Args:
        context: a stage that reads the sealed kernel.

    Attributes:
        passes: how often the kernel was read for this result, in this process or before it.
    """

    context: StageContext
    passes: int = field(default=0, init=False)
    _noted_passes: int = field(default=0, init=False, repr=False)
    _noted: float = field(default_factory=time.monotonic, init=False, repr=False)

    @property
    def n_samples(self) -> int:
        """Rows of the kernel."""
        return self.context.plan.n_samples

    @property
    def n_views(self) -> int:
        """Number of views."""
        return int(self.context.reader("kernel").info("values").shape[0])

    @cached_property
    def blocks(self) -> KernelBlocks:
        """Its blocks, on the device of the stage."""
        return KernelBlocks(self.context)

    def reduce(self, function: BlockFunction) -> Sums:
        """Sum ``function(kernel blocks of all views, block)`` over all blocks; one pass.

        The function and what it carries go to the device with the blocks; the sums of a shard come
        back.
        """
        device, kernel = self.context.device, self.blocks

        def shard_sums(shard: int) -> Sums:
            there = to_device(device, function)
            total: Sums = ()
            for block in self.context.plan.shard(shard):
                self.context.stop.check()
                part = there(kernel.views(block), block)
                total = add(total, part) if total else part
            return tuple(device.to_host(value) for value in total)

        total = self.context.executor().reduce(shard_sums, range(self.context.plan.n_shards), add)
        self.passes += 1
        return total

    def cached(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """What ``compute`` returns, from the disk if it was computed before.

        It is written if it took passes or long, or if the run is asked to stop.
        """
        known = self.load_checkpoint(name)
        if known is not None:
            return known
        before, begun = self.passes, time.monotonic()
        found = compute()
        if self.passes > before or self._is_due(begun):
            self.save_checkpoint(name, found)
        return found

    def checkpoint(self, name: str, arrays: Callable[[], Arrays]) -> None:
        """Note how far a computation came, if the way there was long; the place to stop at.

        Raises:
            Stopped: the run was asked to stop; it goes on from here.
        """
        try:
            self.context.stop.check()
        except Stopped:
            self.save_checkpoint(name, arrays())
            raise
        if self.passes > self._noted_passes or self._is_due(self._noted):
            self.save_checkpoint(name, arrays())

    def load_checkpoint(self, name: str) -> Arrays | None:
        """What was noted under this name, if anything; ``passes`` goes on from there."""
        known = read_arrays(self.context.record.partials / f"{name}.npz")
        if known is not None:
            self.passes = max(self.passes, int(known.pop(PASSES)))
        return known

    def save_checkpoint(self, name: str, arrays: Arrays) -> None:
        """Keep arrays, and how many passes it took to get there, until the stage is sealed."""
        path = self.context.record.partials / f"{name}.npz"
        write_arrays(path, {**arrays, PASSES: np.array(self.passes)}, self.context.record.temp)
        self._noted_passes, self._noted = self.passes, time.monotonic()

    def _is_due(self, since: float) -> bool:
        return self.context.stop.requested or time.monotonic() - since > KEEP_SECONDS


def add(left: Sums, right: Sums) -> Sums:
    """Two tuples of sums, added entry by entry."""
    return tuple(a + b for a, b in zip(left, right, strict=True))


Placement = Literal["resident", "recomputed", "streamed"]
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
    def placement(self) -> Placement:
        """How rows come to the device, decided once for a stage."""
        info = self.context.reader("kernel").info("values")
        size = info.dtype.itemsize
        assert self.context.sizes is not None
        width = self.context.sizes.n_features if self.context.sizes.keeps_features else 0
        values, m = int(np.prod(info.shape)), info.shape[-1]
        return choose_placement(self.context.device, values, m, size, width)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach a worker, which looks at its own device."""
        return KernelBlocks, (self.context,)

    def _rows(self, block: Block, view: int) -> Any:
        kernel, device = self.context.reader("kernel"), self.context.device
        if is_host(device) or self.placement == "streamed":
            return device.to_float32(kernel.block("values", block, view))
        if self.placement == "resident":
            key = ("kernel", block.index, view)
            held = device.cached(key, lambda: device.upload(kernel.block("values", block, view)))
            return device.to_float32(held)
        features, dtype = self.context.reader("features"), kernel.info("values").dtype.name
        stored = features.block("values", block, view)
        rows = self._map.rows_on_device(stored, features.block("self_kernel", block, view))
        return device.round_trip(rows, dtype)

    @cached_property
    def _map(self) -> LandmarkKernel:
        """The map that the kernel was computed with."""
        facts, sub_rows = self.context.reader("kernel").attributes, self.context.plan.sub_rows
        landmarks, device = self.context.reader("landmarks"), self.context.device
        return read_landmark_kernel(landmarks, facts["normalise"], facts["scale"], sub_rows, device)


def choose_placement(
    device: Device, values: int, landmarks: int, itemsize: int, width: int
) -> Placement:
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
