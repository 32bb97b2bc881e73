"""State of a worker process between tasks, and the messages between it and the client.

A payload is installed on a worker once; a task then carries a few numbers. Arrays are passed as
files of plain numbers in the folder of the run, which lies in the workspace: nothing big goes
through the scheduler. The folder also holds the run token: once it is gone, because the run ended
or another one began, its workers stop before their next block.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from krepes_ooc.core import resources
from krepes_ooc.engine import machine
from krepes_ooc.engine.cluster.array_transfer import run_ended, spill_arrays
from krepes_ooc.engine.executor import tree_reduce
from krepes_ooc.engine.machine import ResourceMeter
from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import UsageError, WorkspaceError

RUN_TOKEN = "run-token"
ARRIVAL_SECONDS = 10.0


@dataclass(frozen=True)
class TaskRef:
    """Reference to an installed payload, and what a worker must be to compute it.

    Args:
        folder: of the run, in the workspace.
        key: of the payload.
        package: digest of the client's krepes_ooc.
        numerics: libraries and processor of the client; empty: any are allowed.
    """

    folder: str
    key: str
    package: str
    numerics: str = ""


@dataclass(frozen=True)
class TaskPayload:
    """Function and items of one call of an executor.

    Args:
        function: of one item.
        items: all of them.
        add: adds two results of a reduction.
        finish: called after every task, when its results are on disk.
    """

    function: Callable[[Any], Any]
    items: Sequence[Any]
    add: Callable[[Any, Any], Any] | None = None
    finish: Callable[[], None] | None = None


@dataclass(frozen=True)
class TaskResult:
    """Result of a task.

    Args:
        value: the result itself; large arrays are replaced by their files.
        events: calls of its progress, as (method, arguments).
        anonymous: peak of the worker's anonymous memory meanwhile, in bytes.
    """

    value: Any
    events: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    anonymous: int = 0


class WorkerStopFlag(StopFlag):
    """Stop flag of a worker: set as soon as the token of its run is gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / RUN_TOKEN

    @property
    def requested(self) -> bool:
        """Whether the run has ended: its token cannot be opened any more."""
        # stat may be answered from a cache of the network file system.
        try:
            os.close(os.open(self._path, os.O_RDONLY))
        except OSError:
            self.request("its run has ended")
        return super().requested


class ProgressRecorder:
    """Progress of a worker: records the calls of each thread, to send them with the results."""

    def __init__(self) -> None:
        self._local = threading.local()

    def begin(self, stage: str, total: int, done: int) -> None:
        """Said by the client alone."""

    def end(self, stage: str, seconds: float, memory: str = "") -> None:
        """Said by the client alone."""

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        """Units finished and bytes written."""
        self._events.append(("advance", (units, n_bytes)))

    def note(self, text: str) -> None:
        """One line that the user should read."""
        self._events.append(("note", (text,)))

    def collect(self) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        """Calls of this thread since the last collection; advances are summed."""
        events = self._events
        self._local.events = []
        notes = [event for event in events if event[0] != "advance"]
        steps = [arguments for method, arguments in events if method == "advance"]
        sums = tuple(map(sum, zip(*steps, strict=True)))
        return (*notes, ("advance", sums)) if steps else tuple(notes)

    @property
    def _events(self) -> list[tuple[str, tuple[Any, ...]]]:
        # Threads of Distributed come and go: each gets its list when it first needs one.
        if not hasattr(self._local, "events"):
            self._local.events = []
        events: list[tuple[str, tuple[Any, ...]]] = self._local.events
        return events


@dataclass
class WorkerState:
    """State of a worker process between tasks: installed payloads, and objects that stages opened.

    Attributes:
        owner: name of this process among all that write into a workspace.
        stop: set when the run has ended.
        progress: recorder of what tasks report.
    """

    owner: str = field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    )
    progress: ProgressRecorder = field(default_factory=ProgressRecorder)
    stop: StopFlag = field(default_factory=StopFlag)
    _folder: str = ""
    _payloads: dict[str, TaskPayload] = field(default_factory=dict)
    _cache: dict[Hashable, Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def enter(self, folder: str) -> None:
        """Join the run of this folder; state of another run is dropped.

        Raises:
            WorkspaceError: this machine does not see the folder.
        """
        with self._lock:
            if folder == self._folder:
                return
            # The token shows that both machines see the same file system.
            if not (Path(folder) / RUN_TOKEN).exists():
                raise WorkspaceError(
                    f"the worker on {socket.gethostname()} does not see this folder",
                    where=folder,
                    expected="a workspace on a file system that all workers share",
                    advice="choose another --workspace",
                )
            self._folder = folder
            self.stop = WorkerStopFlag(Path(folder))
            self._payloads = {}
            self._cache = {}

    def install(self, key: str, payload: TaskPayload) -> None:
        """Store a payload until its tasks are done."""
        with self._lock:
            self._payloads[key] = payload

    def remove(self, key: str) -> None:
        """Drop a payload: the client has all results."""
        with self._lock:
            self._payloads.pop(key, None)

    def payload(self, task: TaskRef) -> TaskPayload:
        """The payload of a task.

        Raises:
            Stopped: the run has ended, or the payload was removed.
        """
        # The payload comes by another connection than the task, and may be a moment behind it.
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while True:
            self.stop.check()
            with self._lock:
                if task.key in self._payloads:
                    return self._payloads[task.key]
            if time.monotonic() > deadline:
                raise run_ended()
            time.sleep(0.02)

    def cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The one object of this key in this process; ``make`` is called where there is none."""
        with self._lock:
            if key not in self._cache:
                # Stages follow each other: what the last one opened is not needed any more.
                self._cache = {}
                self._cache[key] = make()
            return self._cache[key]


@cache
def worker_state() -> WorkerState:
    """The state of this process."""
    return WorkerState()


def run_range(task: TaskRef, start: int, stop: int) -> TaskResult:
    """The results of a range of items, as a list."""

    def compute(payload: TaskPayload) -> list[Any]:
        return [payload.function(item) for item in payload.items[start:stop]]

    return _result(task, compute)


def reduce_range(task: TaskRef, start: int, stop: int) -> TaskResult:
    """The sum of a range of items that is a whole branch of the reduction tree."""

    def compute(payload: TaskPayload) -> Any:
        assert payload.add is not None
        items = payload.items[start:stop]
        return tree_reduce(len(items), lambda i: payload.function(items[i]), payload.add)

    return _result(task, compute, in_memory=True)


def add_results(task: TaskRef, left: TaskResult, right: TaskResult) -> TaskResult:
    """The sum of two sums, which other workers may have computed."""

    def compute(payload: TaskPayload) -> Any:
        assert payload.add is not None
        return payload.add(left.value, right.value)

    result = _result(task, compute, in_memory=True)
    # The sum carries the events and the peak of both branches to the client.
    peak = max(left.anonymous, right.anonymous, result.anonymous)
    return TaskResult(result.value, left.events + right.events + result.events, peak)


def spill_result(task: TaskRef, result: TaskResult) -> TaskResult:
    """The whole sum for the client: its large arrays as files."""
    value = spill_arrays(result.value, Path(task.folder))
    return TaskResult(value, result.events, result.anonymous)


def _result(
    task: TaskRef, compute: Callable[[TaskPayload], Any], *, in_memory: bool = False
) -> TaskResult:
    """Compute on this worker with one thread, and measure its memory.

    Args:
        task: which payload.
        compute: result of the payload.
        in_memory: whether the result stays in this worker's memory, for another task to add.
    """
    from krepes_ooc.network.torch_device import one_torch_thread

    check_worker(task)
    state = worker_state()
    # Events of a task that failed on this thread belong to no result.
    state.progress.collect()
    with machine.one_blas_thread(), one_torch_thread(), ResourceMeter() as meter:
        payload = state.payload(task)
        try:
            value = compute(payload)
        finally:
            if payload.finish is not None:
                payload.finish()
    if not in_memory:
        value = spill_arrays(value, Path(task.folder))
    return TaskResult(value, state.progress.collect(), int(meter.facts()["anonymous_peak"]))


def check_worker(task: TaskRef) -> None:
    """Refuse to work with other code, or with libraries that give other bits.

    Raises:
        UsageError: this worker's krepes_ooc is not the client's.
        WorkspaceError: its libraries or processor are not those of the client.
    """
    if package_sha256() != task.package:
        raise UsageError(
            f"krepes_ooc of the worker on {socket.gethostname()} has digest "
            f"{package_sha256()[:12]}",
            where="--cluster",
            expected=f"{task.package[:12]}, as here",
            advice="install the same version where the workers start",
        )
    if task.numerics and machine.numerics() != task.numerics:
        raise WorkspaceError(
            f"the worker on {socket.gethostname()} computes with {machine.numerics()!r}",
            where="--cluster",
            expected=f"{task.numerics!r}",
            advice="start krepes on the same kind of machine, or accept other bits with "
            "--allow-mixed-numerics",
        )


@cache
def package_sha256() -> str:
    """Digest of the package's code and of the declarations it ships."""
    root = Path(str(files("krepes_ooc")))
    digest = hashlib.sha256()
    # Names and bytes; contracts may lie beside the package, so their names begin at their folder.
    stores = resources.folder("stores")
    for path in (*sorted(root.rglob("*.py")), *sorted(stores.glob("*.yaml"))):
        name = path.relative_to(stores if path.parent == stores else root)
        with contextlib.suppress(OSError):
            digest.update(str(name).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
