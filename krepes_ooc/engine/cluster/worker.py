"""What a worker process keeps between tasks, and what passes between it and the client.

Work is lent to a worker once; a task then carries a few numbers. Arrays travel as files of plain
numbers in the folder of the run, which lies in the workspace: nothing big goes through the
scheduler. The folder is also a licence: once it is gone, because the run ended or another one
began, its workers stop before their next block.
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
from krepes_ooc.engine.cluster.array_transfer import spill_arrays
from krepes_ooc.engine.executor import tree_reduce
from krepes_ooc.engine.machine import ResourceMeter
from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import Stopped, UsageError, WorkspaceError

RUN_TOKEN = "licence"
ARRIVAL_SECONDS = 10.0


@dataclass(frozen=True)
class TaskRef:
    """What a task names.

    Args:
        folder: of the run, in the workspace.
        key: of the work that was lent.
        package: digest of the client's krepes_ooc.
        numerics: libraries and processor of the client; empty: any are welcome.
    """

    folder: str
    key: str
    package: str
    numerics: str = ""


@dataclass(frozen=True)
class TaskPayload:
    """One call of an executor.

    Args:
        function: of one item.
        items: all of them.
        add: adds two results of a fold.
        finish: called after every task, when its results are on disk.
    """

    function: Callable[[Any], Any]
    items: Sequence[Any]
    add: Callable[[Any, Any], Any] | None = None
    finish: Callable[[], None] | None = None


@dataclass(frozen=True)
class TaskResult:
    """What a task gives back.

    Args:
        value: its result; large arrays are the files that hold them.
        events: what it told its progress, as (method, arguments).
        anonymous: peak of the worker's anonymous memory meanwhile, in bytes.
    """

    value: Any
    events: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    anonymous: int = 0


class WorkerStopFlag(StopFlag):
    """The stop flag of a worker: raised as soon as the folder of its run is gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / RUN_TOKEN

    @property
    def requested(self) -> bool:
        """Whether the run has ended; opening asks a network file system anew, stat may not."""
        try:
            os.close(os.open(self._path, os.O_RDONLY))
        except OSError:
            self.request("its run has ended")
        return super().requested


class ProgressRecorder:
    """A progress that keeps what tasks tell, so that the client can be told with their results."""

    def __init__(self) -> None:
        self._own = threading.local()

    def begin(self, stage: str, total: int, done: int) -> None:
        """Said by the client alone."""

    def end(self, stage: str, seconds: float) -> None:
        """Said by the client alone."""

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        """Units finished and bytes written."""
        self._told.append(("advance", (units, n_bytes)))

    def note(self, text: str) -> None:
        """One line that the user should read."""
        self._told.append(("note", (text,)))

    def collect(self) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        """What this thread has told since it was last asked; advances are summed."""
        told, self._own.told = self._told, []
        notes = [entry for entry in told if entry[0] != "advance"]
        steps = [arguments for method, arguments in told if method == "advance"]
        sums = tuple(map(sum, zip(*steps, strict=True)))
        return (*notes, ("advance", sums)) if steps else tuple(notes)

    @property
    def _told(self) -> list[tuple[str, tuple[Any, ...]]]:
        if not hasattr(self._own, "told"):
            self._own.told = []
        told: list[tuple[str, tuple[Any, ...]]] = self._own.told
        return told


@dataclass
class WorkerState:
    """What a worker process keeps between tasks: the work at hand, and what stages opened for it.

    Attributes:
        owner: names this process among all that write into a workspace.
        stop: the licence of the run.
        progress: what tasks tell.
    """

    owner: str = field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    )
    progress: ProgressRecorder = field(default_factory=ProgressRecorder)
    stop: StopFlag = field(default_factory=StopFlag)
    _folder: str = ""
    _lent: dict[str, TaskPayload] = field(default_factory=dict)
    _kept: dict[Hashable, Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def enter(self, folder: str) -> None:
        """Work for the run of this folder; what was kept for another one goes.

        Raises:
            WorkspaceError: this machine does not see the folder.
        """
        with self._lock:
            if folder == self._folder:
                return
            if not (Path(folder) / RUN_TOKEN).exists():
                raise WorkspaceError(
                    f"the worker on {socket.gethostname()} does not see this folder",
                    where=folder,
                    expected="a workspace on a file system that all workers share",
                    advice="choose another --workspace",
                )
            self._folder, self.stop = folder, WorkerStopFlag(Path(folder))
            self._lent, self._kept = {}, {}

    def install(self, key: str, work: TaskPayload) -> None:
        """Take work that a client lends."""
        with self._lock:
            self._lent[key] = work

    def remove(self, key: str) -> None:
        """The client has all results."""
        with self._lock:
            self._lent.pop(key, None)

    def work(self, call: TaskRef) -> TaskPayload:
        """The work of a call.

        Raises:
            Stopped: the run has ended, or lends this work no more.
        """
        # The work comes by another connection than the task, and may be a moment behind it.
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while True:
            self.stop.check()
            with self._lock:
                if call.key in self._lent:
                    return self._lent[call.key]
            if time.monotonic() > deadline:
                raise Stopped("stopped, because its run has ended")
            time.sleep(0.02)

    def cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The one object of this key in this process, as long as the run lasts."""
        with self._lock:
            if key not in self._kept:
                # Stages follow each other: what the last one opened is not needed any more.
                self._kept = {key: make()}
            return self._kept[key]


@cache
def worker_state() -> WorkerState:
    """The station of this process."""
    return WorkerState()


def run_range(call: TaskRef, start: int, stop: int) -> TaskResult:
    """The results of a range of items, as a list; none for work that is done for its effect."""
    return _result(call, lambda work: [work.function(item) for item in work.items[start:stop]])


def reduce_range(call: TaskRef, start: int, stop: int) -> TaskResult:
    """The sum of a range of items that is a whole branch of the reduction tree."""

    def fold(work: TaskPayload) -> Any:
        assert work.add is not None
        return tree_reduce(stop - start, lambda i: work.function(work.items[start + i]), work.add)

    return _result(call, fold, keep=True)


def add_results(call: TaskRef, left: TaskResult, right: TaskResult) -> TaskResult:
    """The sum of two sums, which other workers may have computed."""

    def add(work: TaskPayload) -> Any:
        assert work.add is not None
        return work.add(left.value, right.value)

    done = _result(call, add, keep=True)
    peak = max(left.anonymous, right.anonymous, done.anonymous)
    return TaskResult(done.value, left.events + right.events + done.events, peak)


def spill_result(call: TaskRef, part: TaskResult) -> TaskResult:
    """A sum on its way to the client: a file if it is large."""
    return TaskResult(spill_arrays(part.value, Path(call.folder)), part.events, part.anonymous)


def _result(
    call: TaskRef, compute: Callable[[TaskPayload], Any], *, keep: bool = False
) -> TaskResult:
    from krepes_ooc.network.torch_device import one_torch_thread

    check_worker(call)
    here = worker_state()
    here.progress.collect()
    with machine.one_blas_thread(), one_torch_thread(), ResourceMeter() as meter:
        work = here.work(call)
        try:
            value = compute(work)
        finally:
            if work.finish is not None:
                work.finish()
    value = value if keep else spill_arrays(value, Path(call.folder))
    return TaskResult(value, here.progress.collect(), int(meter.facts()["anonymous_peak"]))


def check_worker(call: TaskRef) -> None:
    """Refuse to work with other code, or with libraries that give other bits.

    Raises:
        UsageError: this worker's krepes_ooc is not the client's.
        WorkspaceError: its libraries or processor are not those of the client.
    """
    if package_sha256() != call.package:
        raise UsageError(
            f"krepes_ooc of the worker on {socket.gethostname()} has digest "
            f"{package_sha256()[:12]}",
            where="--cluster",
            expected=f"{call.package[:12]}, as here",
            advice="install the same version where the workers start",
        )
    if call.numerics and machine.numerics() != call.numerics:
        raise WorkspaceError(
            f"the worker on {socket.gethostname()} computes with {machine.numerics()!r}",
            where="--cluster",
            expected=f"{call.numerics!r}",
            advice="start krepes on the same kind of machine, or accept other bits with "
            "--allow-mixed-numerics",
        )


@cache
def package_sha256() -> str:
    """Digest of the package's code and of the declarations it ships."""
    root, digest = Path(str(files("krepes_ooc"))), hashlib.sha256()
    stores = resources.folder("stores")
    for path in (*sorted(root.rglob("*.py")), *sorted(stores.glob("*.yaml"))):
        name = path.relative_to(stores if path.parent == stores else root)
        with contextlib.suppress(OSError):
            digest.update(str(name).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
