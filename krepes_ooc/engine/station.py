"""What a worker process keeps between tasks, and what passes between it and the client.

A worker reads work once, from a file; a task then carries a few numbers. Work and arrays travel in
the folder of the run, which lies in the workspace: nothing big goes through the scheduler. The
folder is also a licence: once it is gone, because the run ended or another one began, its workers
stop before their next block.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from krepes_ooc.engine.lending import Call, Work, borrow
from krepes_ooc.engine.stopping import StopFlag
from krepes_ooc.errors import WorkspaceError

LICENCE = "licence"


@dataclass(frozen=True)
class Part:
    """What a task gives back.

    Args:
        value: its result; large arrays are the files that hold them.
        told: what it told its progress, as (method, arguments).
        anonymous: peak of the worker's anonymous memory meanwhile, in bytes.
    """

    value: Any
    told: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    anonymous: int = 0


class Licence(StopFlag):
    """The stop flag of a worker: raised as soon as the folder of its run is gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / LICENCE

    @property
    def requested(self) -> bool:
        """Whether the run has ended; opening asks a network file system anew, stat may not."""
        try:
            os.close(os.open(self._path, os.O_RDONLY))
        except OSError:
            self.request("its run has ended")
        return super().requested


class Tally:
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
class Station:
    """What a worker process keeps between tasks: the work at hand, and what stages opened for it.

    Attributes:
        owner: names this process among all that write into a workspace.
        stop: the licence of the run.
        progress: what tasks tell.
    """

    owner: str = field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    )
    progress: Tally = field(default_factory=Tally)
    stop: StopFlag = field(default_factory=StopFlag)
    _folder: str = ""
    _key: str = ""
    _work: Work | None = None
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
            if not (Path(folder) / LICENCE).exists():
                raise WorkspaceError(
                    f"the worker on {socket.gethostname()} does not see this folder",
                    where=folder,
                    expected="a workspace on a file system that all workers share",
                    advice="choose another --workspace",
                )
            self._folder, self.stop = folder, Licence(Path(folder))
            self._key, self._work, self._kept = "", None, {}

    def work(self, call: Call) -> Work:
        """The work of a call, read once; that of the call before goes first.

        Raises:
            Stopped: the run has ended, or lends this work no more.
            WorkspaceError: the file of the work holds other bytes, or cannot be seen from here.
        """
        with self._lock:
            self.enter(call.folder)
            self.stop.check()
            if self._work is None or self._key != call.key:
                self._key, self._work = "", None
                self._key, self._work = call.key, borrow(call)
            return self._work

    def keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The one object of this key in this process, as long as the run lasts."""
        with self._lock:
            if key not in self._kept:
                # Stages follow each other: what the last one opened is not needed any more.
                self._kept = {key: make()}
            return self._kept[key]


@cache
def station() -> Station:
    """The station of this process."""
    return Station()
