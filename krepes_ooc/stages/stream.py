"""The stored kernel as a stream of blocks, and a memory for what passes over it have found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.blocks import Block
from krepes_ooc.engine.device import carried
from krepes_ooc.errors import Stopped
from krepes_ooc.stages.base import StageContext
from krepes_ooc.stages.kernelblocks import KernelBlocks
from krepes_ooc.storage.files import read_arrays, write_arrays

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
            there = carried(device, function)
            total: Sums = ()
            for block in self.context.plan.shard(shard):
                self.context.stop.check()
                part = there(kernel.views(block), block)
                total = add(total, part) if total else part
            return tuple(device.back(value) for value in total)

        total = self.context.executor().fold(shard_sums, range(self.context.plan.n_shards), add)
        self.passes += 1
        return total

    def keep(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """What ``compute`` returns, from the disk if it was computed before.

        It is written if it took passes or long, or if the run is asked to stop.
        """
        known = self.recall(name)
        if known is not None:
            return known
        before, begun = self.passes, time.monotonic()
        found = compute()
        if self.passes > before or self._is_due(begun):
            self.note(name, found)
        return found

    def checkpoint(self, name: str, arrays: Callable[[], Arrays]) -> None:
        """Note how far a computation came, if the way there was long; the place to stop at.

        Raises:
            Stopped: the run was asked to stop; it goes on from here.
        """
        try:
            self.context.stop.check()
        except Stopped:
            self.note(name, arrays())
            raise
        if self.passes > self._noted_passes or self._is_due(self._noted):
            self.note(name, arrays())

    def recall(self, name: str) -> Arrays | None:
        """What was noted under this name, if anything; ``passes`` goes on from there."""
        known = read_arrays(self.context.record.partials / f"{name}.npz")
        if known is not None:
            self.passes = max(self.passes, int(known.pop(PASSES)))
        return known

    def note(self, name: str, arrays: Arrays) -> None:
        """Keep arrays, and how many passes it took to get there, until the stage is sealed."""
        path = self.context.record.partials / f"{name}.npz"
        write_arrays(path, {**arrays, PASSES: np.array(self.passes)}, self.context.record.temp)
        self._noted_passes, self._noted = self.passes, time.monotonic()

    def _is_due(self, since: float) -> bool:
        return self.context.stop.requested or time.monotonic() - since > KEEP_SECONDS


def add(left: Sums, right: Sums) -> Sums:
    """Two tuples of sums, added entry by entry."""
    return tuple(a + b for a, b in zip(left, right, strict=True))
