"""How work reaches workers: a file in the folder of the run, which a task names with its digest."""

from __future__ import annotations

import hashlib
import pickle
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krepes_ooc.engine.arrayfiles import arrays_as_files
from krepes_ooc.errors import Stopped, WorkspaceError
from krepes_ooc.storage.files import disk_errors


@dataclass(frozen=True)
class Call:
    """What a task names.

    Args:
        folder: of the run, in the workspace.
        key: of the work that was lent.
        sha256: of its file; a worker runs nothing that this client did not write.
        package: digest of the client's krepes_ooc.
        numerics: libraries and processor of the client; empty: any are welcome.
    """

    folder: str
    key: str
    sha256: str
    package: str
    numerics: str = ""

    @property
    def path(self) -> Path:
        """The file of the work."""
        return Path(self.folder) / f"{self.key}.work"


@dataclass(frozen=True)
class Work:
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


def lend(folder: Path, work: Work, package: str, numerics: str) -> Call:
    """Write work for the workers; its large arrays are files beside it.

    Raises:
        Stopped: the folder is gone, because the run has ended.
        StageFailed: the disk is full.
    """
    import cloudpickle

    with arrays_as_files(folder):
        data: bytes = cloudpickle.dumps(work)
    call = Call(str(folder), uuid.uuid4().hex, hashlib.sha256(data).hexdigest(), package, numerics)
    with disk_errors(call.path, len(data)):
        try:
            with call.path.open("xb") as file:
                file.write(data)
        except FileNotFoundError:
            raise _ended() from None
    return call


def borrow(call: Call) -> Work:
    """Read the work of a call.

    Raises:
        Stopped: the run has ended, or lends this work no more.
        WorkspaceError: the file holds other bytes.
    """
    try:
        data = call.path.read_bytes()
    except FileNotFoundError:
        raise _ended() from None
    if hashlib.sha256(data).hexdigest() != call.sha256:
        raise WorkspaceError(
            "the file is not what was written",
            where=str(call.path),
            expected=f"sha256 {call.sha256[:12]}",
            advice="the file system must show one machine what another wrote; run again",
        )
    work: Work = pickle.loads(data)
    return work


def _ended() -> Stopped:
    return Stopped("stopped, because its run has ended")
