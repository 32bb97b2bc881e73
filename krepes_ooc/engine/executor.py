"""Run block tasks through a Dask graph, in waves, with one fused task per block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from krepes_ooc.engine.progress import Progress, Silent
from krepes_ooc.engine.stopping import StopFlag

T = TypeVar("T")
R = TypeVar("R")
WAVE_TASKS = 4096


@dataclass(frozen=True)
class Executor:
    """Where tasks run: a Dask graph on threads.

    The results come back in task order whatever the number of workers, so every reduction over them
    is a fixed-order sum.

    Args:
        workers: threads, one BLAS thread each.
        stop: asked before every task.
        progress: told after every task.
    """

    workers: int = 1
    stop: StopFlag = field(default_factory=StopFlag)
    progress: Progress = field(default_factory=Silent)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Results of ``function`` over ``items`` in their order, computed in waves.

        Raises:
            Stopped: the run was asked to stop; finished tasks keep what they wrote.
        """
        for start in range(0, len(items), WAVE_TASKS):
            yield from self._wave(function, items[start : start + WAVE_TASKS])

    def run(self, function: Callable[[T], Any], items: Sequence[T]) -> None:
        """Call ``function`` for every item, for what it writes."""
        for _ in self.map(function, items):
            pass

    def fold(
        self, function: Callable[[T], R], items: Sequence[T], add: Callable[[R, R], R]
    ) -> R:
        """Sum ``function(item)`` over items, pairwise in fixed order."""
        parts = list(self.map(function, items))
        return tree_fold(len(parts), parts.__getitem__, add)

    def _wave(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        from dask.threaded import get

        def task(index: int) -> R:
            self.stop.check()
            return function(items[index])

        graph = {f"task-{index}": (task, index) for index in range(len(items))}
        with ThreadPoolExecutor(self.workers, thread_name_prefix="krepes") as pool:
            return list(get(graph, list(graph), pool=pool, num_workers=self.workers))


def tree_fold(count: int, part: Callable[[int], R], add: Callable[[R, R], R]) -> R:
    """Add parts in a balanced tree whose shape depends on their number alone.

    Parts are asked for one by one, so that only about log2(count) of them are held at a time.

    Raises:
        ValueError: there is nothing to add.
    """
    if count < 1:
        raise ValueError("nothing to fold")

    def fold(start: int, stop: int) -> R:
        if stop - start == 1:
            return part(start)
        middle = start + (1 << ((stop - start - 1).bit_length() - 1))
        return add(fold(start, middle), fold(middle, stop))

    return fold(0, count)
