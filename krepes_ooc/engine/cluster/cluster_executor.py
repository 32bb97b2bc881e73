"""Run block tasks on the workers of a cluster: the graph of ``executor``, in ranges of items."""

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

    def publish(self, folder: Path, key: str, work: TaskPayload) -> AbstractContextManager[None]:
        """Work at every worker, for as long as its tasks run."""

    def compute(
        self,
        graph: Graph,
        names: Sequence[str],
        check: Callable[[], None],
        tell: Callable[[str], None],
    ) -> Iterator[tuple[str, TaskResult]]:
        """Names and results, as they come; ``check`` is called several times a second.

        What the user should know of workers goes to ``tell``, a line at a time.

        Raises:
            Stopped: ``check`` says so, or the scheduler is lost.
        """


@dataclass(frozen=True)
class TransferFolder:
    """The folder of one run in its workspace, through which arrays pass.

    Args:
        folder: new; its licence file lets the workers go on.
        package: digest of this krepes_ooc.
        numerics: libraries and processor that workers must have too; empty: any.
    """

    folder: Path
    package: str
    numerics: str

    @classmethod
    def open(cls, temp: Path, numerics: str) -> TransferFolder:
        """A new folder under ``temp``, which is swept when the next run begins."""
        folder = temp / f"tasks-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        (folder / RUN_TOKEN).touch()
        return cls(folder, worker.package_sha256(), numerics)

    def close(self) -> None:
        """Take the licence away first: workers stop before their next block."""
        (self.folder / RUN_TOKEN).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self) -> TaskRef:
        """A new call."""
        return TaskRef(str(self.folder), uuid.uuid4().hex, self.package, self.numerics)

    def forget(self) -> None:
        """Remove the files of a call that is over; one call is made at a time."""
        for path in self.folder.glob("*.values"):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ClusterExecutor(Executor):
    """Where tasks run: a Dask graph on the workers of a cluster.

    A task is a range of items and loops inside, since a task of a cluster costs a millisecond. In a
    fold a range is a whole branch of the reduction tree: the sums have the bits of threads.

    Args:
        pool: the workers.
        transfer: where work and large results pass.
        finish: called on the worker after every task.
        peak: told the anonymous memory of workers.
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
        with self._lent(TaskPayload(function, items, finish=self.finish)) as call:
            for ranges in self._waves(len(items)):
                prefix = f"krepes-{uuid.uuid4().hex}-"
                names = [f"{prefix}{start:09d}" for start, _ in ranges]
                graph: Graph = {
                    name: (worker.run_range, call, start, stop)
                    for name, (start, stop) in zip(names, ranges, strict=True)
                }
                found = self._collect(graph, names)
                for name in names:
                    yield from found.pop(name)

    def reduce(self, function: Callable[[T], R], items: Sequence[T], add: Callable[[R, R], R]) -> R:
        """As ``Executor.fold``."""
        self.stop.check()
        sums: list[R] = []
        with self._lent(TaskPayload(function, items, add, self.finish)) as call:
            for ranges in self._waves(len(items)):
                prefix = f"krepes-{uuid.uuid4().hex}-"
                names = [f"{prefix}part-{start:09d}" for start, _ in ranges]
                graph: Graph = {
                    name: (worker.reduce_range, call, start, stop)
                    for name, (start, stop) in zip(names, ranges, strict=True)
                }
                root = add_tree(graph, names, worker.add_results, call, prefix=prefix)
                graph[f"{prefix}whole"] = (worker.spill_result, call, root)
                sums.append(self._collect(graph, [f"{prefix}whole"]).popitem()[1])
        return tree_reduce(len(sums), sums.__getitem__, add)

    @contextlib.contextmanager
    def _lent(self, work: TaskPayload) -> Iterator[TaskRef]:
        assert self.pool is not None
        assert self.transfer is not None
        call = self.transfer.call()
        try:
            with self.pool.publish(self.transfer.folder, call.key, work):
                yield call
        finally:
            self.transfer.forget()

    def _waves(self, count: int) -> Iterator[list[tuple[int, int]]]:
        """Ranges of items, a bounded number at a time; of a power of two each, but the last."""
        workers = self.pool.n_workers if self.pool is not None else 1
        size = task_items(count, workers)
        wave = WAVE_TASKS * size
        for begin in range(0, count, wave):
            end = min(count, begin + wave)
            yield [(start, min(start + size, end)) for start in range(begin, end, size)]

    def _collect(self, graph: Graph, names: list[str]) -> dict[str, Any]:
        """Results by name; what tasks told is passed on as they come."""
        assert self.pool is not None
        found = {}
        for name, part in self.pool.compute(graph, names, self.stop.check, self.progress.note):
            pass_on(part, self.progress)
            self.peaks[0] = max(self.peaks[0], part.anonymous)
            found[name] = load_arrays(part.value)
        return found


def task_items(count: int, workers: int) -> int:
    """Items of one task: several tasks for every worker, and no more than a task may lose."""
    return min(MAX_TASK_ITEMS, floor_power_of_two(count // (TASKS_PER_WORKER * max(1, workers))))


def pass_on(part: TaskResult, progress: Progress) -> None:
    """Tell the client's progress what a task told."""
    for method, arguments in part.events:
        getattr(progress, method)(*arguments)
