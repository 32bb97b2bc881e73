"""One run per workspace: a lease that names its holder, and flock underneath it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from krepes_ooc.errors import WorkspaceError
from krepes_ooc.storage.files import boot_id, disk_errors

HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 120.0


class WorkspaceLock:
    """Exclusive hold on a workspace, released at exit or when the process dies.

    flock is local on some cluster file systems, so the lease file also carries host, pid, boot id
    and a heartbeat (its modification time). A lease is taken over when its holder is surely gone:
    same host and boot but flock is free, or no heartbeat for ``LEASE_SECONDS``.

    Args:
        path: the lease file.

    Raises:
        WorkspaceError: another process holds the workspace; says which.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._stop = threading.Event()

    def __enter__(self) -> WorkspaceLock:
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise self._held(self._holder()) from None
        holder = self._holder()
        if holder and not _is_gone(holder, self.path):
            raise self._held(holder)
        self._file.truncate(0)
        json.dump(_me(), self._file)
        self._file.flush()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _holder(self) -> dict[str, Any]:
        self._file.seek(0)
        try:
            return dict(json.loads(self._file.read() or "{}"))
        except (ValueError, TypeError):
            return {}

    def _held(self, holder: dict[str, Any]) -> WorkspaceError:
        self._file.close()
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        return WorkspaceError(
            f"the workspace is in use by {who}",
            where=str(self.path.parent.parent),
            expected="one run per workspace",
            advice="wait for it, stop it, or choose another --workspace",
        )


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot_id()}


def _is_gone(holder: dict[str, Any], path: Path) -> bool:
    """Whether a holder whose flock we could take is dead: flock is proof on its own host."""
    if holder.get("host") == socket.gethostname():
        return True
    return time.time() - path.stat().st_mtime > LEASE_SECONDS
