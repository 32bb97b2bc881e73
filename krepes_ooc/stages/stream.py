"""The stored kernel as a stream of blocks: what sample objectives read once for every product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from krepes_ooc.blocks import Block
from krepes_ooc.stages.base import StageContext
from krepes_ooc.stages.moments import read_views

BlockFunction = Callable[[tuple[Any, ...], Block], tuple[Any, ...]]
Sums = tuple[Any, ...]


@dataclass(frozen=True)
class KernelStream:
    """Kernel blocks of all views, summed in a fixed order: shard by shard, then a balanced tree.

    Args:
        context: a stage that reads the sealed kernel.
    """

    context: StageContext

    @property
    def n_samples(self) -> int:
        """Rows of the kernel."""
        return self.context.plan.n_samples

    @property
    def n_views(self) -> int:
        """Number of views."""
        return int(self.context.reader("kernel").info("values").shape[0])

    def reduce(self, function: BlockFunction) -> Sums:
        """Sum ``function(kernel blocks of all views, block)`` over all blocks; one pass."""

        def shard_sums(shard: int) -> Sums:
            total: Sums = ()
            for block in self.context.plan.shard(shard):
                self.context.stop.check()
                part = function(read_views(self.context, block), block)
                total = add(total, part) if total else part
            return total

        return self.context.executor().fold(shard_sums, range(self.context.plan.n_shards), add)


def add(left: Sums, right: Sums) -> Sums:
    """Two tuples of sums, added entry by entry."""
    return tuple(a + b for a, b in zip(left, right, strict=True))
