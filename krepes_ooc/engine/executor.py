"""Block tasks as a Dask graph on threads, in waves, one fused task a block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from krepes_ooc.engine import machine
from krepes_ooc.engine.memory_limit import MemoryLimit
from krepes_ooc.engine.run_control import Progress, Silent, StopFlag

T = TypeVar("T")
R = TypeVar("R")
Graph = dict[str, tuple[Any, ...]]
WAVE_TASKS = 4096  # a power of two, so that waves are whole branches of a reduction tree


@dataclass(frozen=True)
class Executor:
    """Executor of block tasks: a Dask graph on threads.

    The results come back in task order whatever the number of workers, so every reduction over them
    is a fixed-order sum.

    Args:
        workers: threads, one BLAS thread each.
        stop: checked before every task.
        progress: on which tasks report what they have put on disk; the executor reports nothing.
        limit: may lower the number of tasks at a time; None: never.
        trims: whether what the tasks freed is given back when all of them are done: the next ones
            may run in threads that cannot use it again.
    """

    workers: int = 1
    stop: StopFlag = field(default_factory=StopFlag)
    progress: Progress = field(default_factory=Silent)
    limit: MemoryLimit | None = field(default=None, kw_only=True)
    trims: bool = field(default=False, kw_only=True)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Results of ``function`` over ``items`` in their order, computed in waves.

        Raises:
            Stopped: the run was asked to stop; finished tasks keep what they wrote.
        """
        # A wave bounds the tasks in flight and the results that wait to be read.
        for start in range(0, len(items), WAVE_TASKS):
            graph = self._tasks(function, items[start : start + WAVE_TASKS])
            yield from self._compute(graph, list(graph))

    def run(self, function: Callable[[T], Any], items: Sequence[T]) -> None:
        """Call ``function`` for every item, for what it writes.

        Raises:
            Stopped: the run was asked to stop; finished tasks keep what they wrote.
        """

        # The results are dropped in the task: nothing is collected.
        def task(item: T) -> None:
            function(item)

        for _ in self.map(task, items):
            pass

    def reduce(self, function: Callable[[T], R], items: Sequence[T], add: Callable[[R, R], R]) -> R:
        """Sum of ``function(item)`` over items, added in the tree of ``tree_reduce``.

        Two neighbours are added as soon as both are computed, so that only a few are in memory.

        Raises:
            Stopped: the run was asked to stop.
            ValueError: there is nothing to add.
        """
        # Each wave is a whole branch: the tree over the sums of waves is the tree over all items.
        sums: list[R] = []
        for start in range(0, len(items), WAVE_TASKS):
            graph = self._tasks(function, items[start : start + WAVE_TASKS])
            sums += self._compute(graph, [add_tree(graph, list(graph), add)])
        return tree_reduce(len(sums), sums.__getitem__, add)

    def _tasks(self, function: Callable[[T], R], items: Sequence[T]) -> Graph:
        def task(index: int) -> R:
            with self.limit.task() if self.limit else contextlib.nullcontext():
                self.stop.check()
                return function(items[index])

        # Dask starts independent tasks with the last name: these names begin at the first block.
        return {f"task-{len(items) - index:06d}": (task, index) for index in range(len(items))}

    def _compute(self, graph: Graph, names: list[str]) -> list[Any]:
        from dask.threaded import get

        # Whatever the user's Dask configuration says, a failed task is not computed again here.
        with ThreadPoolExecutor(self.workers, thread_name_prefix="krepes") as pool:
            results = get(
                graph, names, pool=pool, num_workers=self.workers, rerun_exceptions_locally=False
            )
        if self.trims:
            machine.trim()
        return list(results)


def add_tree(graph: Graph, names: list[str], *add: Any, prefix: str = "") -> str:
    """Add the sums of neighbours, level by level, to a graph of parts; returns the root's name.

    Args:
        graph: of the parts; grows.
        names: of the parts in their order.
        add: the function, and the arguments that come before the two sums.
        prefix: of the new names.
    """
    # As ``tree_reduce``: pairs of neighbours, an odd one out goes up a level as it is.
    level = 0
    while len(names) > 1:
        pairs = {
            f"{prefix}sum-{level:02d}-{len(names) - i:06d}": (*add, names[i], names[i + 1])
            for i in range(0, len(names) - 1, 2)
        }
        graph |= pairs
        names = [*pairs, *names[len(names) // 2 * 2 :]]
        level += 1
    return names[0]


def tree_reduce(count: int, part: Callable[[int], R], add: Callable[[R, R], R]) -> R:
    """Add parts in a balanced tree whose shape depends on their number alone.

    Parts are made one by one, so that only about log2(count) of them are in memory.

    Raises:
        ValueError: there is nothing to add.
    """
    if count < 1:
        raise ValueError("nothing to reduce")

    def branch(start: int, stop: int) -> R:
        if stop - start == 1:
            return part(start)
        # The left branch is the largest power of two below the count: waves and tasks of that
        # size are whole branches.
        middle = start + (1 << ((stop - start - 1).bit_length() - 1))
        return add(branch(start, middle), branch(middle, stop))

    return branch(0, count)
