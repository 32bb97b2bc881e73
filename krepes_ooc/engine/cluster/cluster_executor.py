"""Block tasks on the workers of a cluster: the graph of ``executor``, in ranges of items."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from krepes_ooc.core.blocks import floor_power_of_two
from krepes_ooc.core.files import remove_leftover
from krepes_ooc.engine.cluster import worker
from krepes_ooc.engine.cluster.array_transfer import load_arrays
from krepes_ooc.engine.cluster.worker import RUN_TOKEN, TaskPayload, TaskRef, TaskResult
from krepes_ooc.engine.executor import WAVE_TASKS, Executor, Graph, add_tree, tree_reduce
from krepes_ooc.engine.run_control import Progress

T = TypeVar("T")
R = TypeVar("R")
TASKS_PER_WORKER = 8
MAX_TASK_ITEMS = 64


class WorkerPool(Protocol):
    """Workers that compute a graph of tasks; see ``cluster.Cluster``."""

    @property
    def n_workers(self) -> int:
        """Worker processes wanted."""

    def publish(self, folder: Path, key: str, payload: TaskPayload) -> AbstractContextManager[None]:
        """Install a payload on every worker while its tasks run."""

    def compute(
        self,
        graph: Graph,
        names: Sequence[str],
        check: Callable[[], None],
        notify: Callable[[str], None],
    ) -> Iterator[tuple[str, TaskResult]]:
        """Names and results, as they come; ``check`` is called several times a second.

        ``notify`` gets lines for the user about workers.

        Raises:
            Stopped: ``check`` raises it, or the scheduler is lost.
        """


@dataclass(frozen=True)
class TransferFolder:
    """The folder of one run in its workspace, through which arrays pass.

    Args:
        folder: new; workers go on as long as its run token exists.
        package: digest of this krepes_ooc.
        numerics: libraries and processor that workers must have too; empty: any.
    """

    folder: Path
    package: str
    numerics: str

    @classmethod
    def open(cls, temp: Path, numerics: str) -> TransferFolder:
        """A new folder under ``temp``, which is emptied when the next run begins."""
        folder = temp / f"tasks-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        (folder / RUN_TOKEN).touch()
        return cls(folder, worker.package_sha256(), numerics)

    def close(self) -> None:
        """Remove the run token first, so that workers stop before their next block."""
        remove_leftover(self.folder / RUN_TOKEN)
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_task(self) -> TaskRef:
        """A reference to a new payload."""
        return TaskRef(str(self.folder), uuid.uuid4().hex, self.package, self.numerics)

    def clear(self) -> None:
        """Remove the files of a call that is over; an executor makes one call at a time."""
        for path in self.folder.glob("*.values"):
            remove_leftover(path)


@dataclass(frozen=True)
class ClusterExecutor(Executor):
    """Executor of block tasks: a Dask graph on the workers of a cluster.

    A task is a range of items and loops inside, since a task of a cluster costs a millisecond. In a
    reduction a range is a whole branch of the tree: the sums have the bits of threads.

    Args:
        pool: the workers.
        transfer: folder through which payloads and large results pass.
        finish: called on the worker after every task.
        peaks: [largest anonymous memory of a worker so far, in bytes].
    """

    pool: WorkerPool | None = None
    transfer: TransferFolder | None = None
    finish: Callable[[], None] | None = None
    peaks: list[int] = field(default_factory=lambda: [0])

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """As ``Executor.map``."""
        self.stop.check()
        if not len(items):
            return
        with self._published(TaskPayload(function, items, finish=self.finish)) as task:
            for ranges in self._waves(len(items)):
                prefix = f"krepes-{uuid.uuid4().hex}-"
                names = [f"{prefix}{start:09d}" for start, _ in ranges]
                graph: Graph = {
                    name: (worker.run_range, task, start, stop)
                    for name, (start, stop) in zip(names, ranges, strict=True)
                }
                # They come in any order and are passed on in that of the items.
                results = self._collect(graph, names)
                for name in names:
                    yield from results.pop(name)

    def reduce(self, function: Callable[[T], R], items: Sequence[T], add: Callable[[R, R], R]) -> R:
        """As ``Executor.reduce``."""
        self.stop.check()
        sums: list[R] = []
        with self._published(TaskPayload(function, items, add, self.finish)) as task:
            for ranges in self._waves(len(items)):
                prefix = f"krepes-{uuid.uuid4().hex}-"
                names = [f"{prefix}part-{start:09d}" for start, _ in ranges]
                graph: Graph = {
                    name: (worker.reduce_range, task, start, stop)
                    for name, (start, stop) in zip(names, ranges, strict=True)
                }
                # Partial sums stay on the workers; the sum of a wave alone comes to the client.
                root = add_tree(graph, names, worker.add_results, task, prefix=prefix)
                graph[f"{prefix}whole"] = (worker.spill_result, task, root)
                sums.append(self._collect(graph, [f"{prefix}whole"]).popitem()[1])
        return tree_reduce(len(sums), sums.__getitem__, add)

    @contextlib.contextmanager
    def _published(self, payload: TaskPayload) -> Iterator[TaskRef]:
        """A reference to a payload that is installed on the workers."""
        assert self.pool is not None
        assert self.transfer is not None
        task = self.transfer.new_task()
        try:
            with self.pool.publish(self.transfer.folder, task.key, payload):
                yield task
        finally:
            # Files of results that nobody read, and those of the payload.
            self.transfer.clear()

    def _waves(self, count: int) -> Iterator[list[tuple[int, int]]]:
        """Ranges of items, a bounded number at a time; of a power of two each, but the last."""
        # As on threads a wave is a whole branch of the reduction tree.
        workers = self.pool.n_workers if self.pool is not None else 1
        size = task_items(count, workers)
        wave = WAVE_TASKS * size
        for begin in range(0, count, wave):
            end = min(count, begin + wave)
            yield [(start, min(start + size, end)) for start in range(begin, end, size)]

    def _collect(self, graph: Graph, names: list[str]) -> dict[str, Any]:
        """Results by name; events are replayed as the results come."""
        assert self.pool is not None
        results = {}
        for name, result in self.pool.compute(graph, names, self.stop.check, self.progress.note):
            replay_events(result, self.progress)
            self.peaks[0] = max(self.peaks[0], result.anonymous)
            if self.limit is not None:
                self.limit.observe_worker(result.anonymous)
            results[name] = load_arrays(result.value)
        return results


def task_items(count: int, workers: int) -> int:
    """Items of one task: several tasks for every worker, and few enough to be repeated."""
    # A power of two, so that a task is a whole branch of the reduction tree.
    return min(MAX_TASK_ITEMS, floor_power_of_two(count // (TASKS_PER_WORKER * max(1, workers))))


def replay_events(result: TaskResult, progress: Progress) -> None:
    """Repeat on the client's progress the calls that a task recorded."""
    for method, arguments in result.events:
        getattr(progress, method)(*arguments)
