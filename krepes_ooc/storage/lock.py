"""One run per workspace: a lease that names its holder, and flock beside it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.storage.files import boot_id, disk_errors

HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 120.0
PATIENCE_SECONDS = 0.5
# What a file system without locks says to flock: there the lease decides alone.
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
Lease = dict[str, Any]


class WorkspaceLock:
    """Exclusive hold on a workspace, released at exit or when the process dies.

    flock tells at once whether another process of this machine holds the workspace, but it is local
    on some cluster file systems. So there is also a lease, a file created exclusively, with host,
    pid, boot id and a heartbeat (its modification time). A lease is taken over when its holder is
    surely gone: it ran on this host and flock is free, or it gave no heartbeat for
    ``LEASE_SECONDS``.

    Args:
        path: the file for flock; the lease lies beside it.
        lost: called once if another host takes the lease while this process seems dead.

    Raises:
        WorkspaceError: another process holds the workspace; says which.
    """

    def __init__(self, path: Path, lost: Callable[[], None] = lambda: None) -> None:
        self.path, self.lease, self._lost = path, path.with_name("lease"), lost
        self._token = uuid.uuid4().hex
        self._file: Any = None
        self._stop = threading.Event()

    def __enter__(self) -> WorkspaceLock:
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.fdopen(os.open(self.path, flags, 0o644), "r+b")
        try:
            self._claim(flocked=self._flock())
        except BaseException:
            self._file.close()
            raise
        threading.Thread(target=self._beat, name="krepes-lease", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A lease that a failing disk keeps is taken over at once: flock says that nobody runs.
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.lease.unlink(missing_ok=True)
        self._file.close()

    def _flock(self) -> bool:
        """Whether flock is ours; False on a file system without flock."""
        try:
            import fcntl
        except ImportError:
            raise UsageError(
                "this system cannot lock a workspace",
                where=str(self.path),
                expected="Linux or macOS",
                advice="finished workspaces can be read here",
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._held(self._holder()) from None
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            return False
        return True

    def _claim(self, *, flocked: bool) -> None:
        with disk_errors(self.lease):
            for _ in range(2):
                try:
                    self._write()
                except FileExistsError:
                    holder = self._holder()
                    if not self._is_gone(holder, flocked):
                        raise self._held(holder) from None
                    self._take_over(holder)
                else:
                    return
        raise self._held(self._holder())

    def _write(self) -> None:
        """Create the lease; of two that try, one fails, on network file systems too."""
        me = {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot_id()}
        descriptor = os.open(self.lease, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps({**me, "token": self._token}).encode())
            file.flush()
            os.fsync(descriptor)

    def _take_over(self, holder: Lease) -> None:
        """Remove a stale lease; one that another process made in the meantime is put back."""
        aside = self.lease.with_name(f"lease-{self._token}")
        with contextlib.suppress(FileNotFoundError):
            self.lease.rename(aside)
            if _read(aside) != holder:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.lease)
            aside.unlink()

    def _is_gone(self, holder: Lease, flocked: bool) -> bool:
        """Whether the holder is dead; ages are told by the file system's own clock."""
        if not holder:
            return True
        if holder.get("host") == socket.gethostname():
            return flocked or holder.get("boot") != boot_id() or not _runs(holder.get("pid"))
        os.utime(self.path)
        try:
            age = self.path.stat().st_mtime - self.lease.stat().st_mtime
        except FileNotFoundError:
            return True
        return age > LEASE_SECONDS

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # A disk that fails for a moment says nothing about the lease.
            with contextlib.suppress(OSError):
                if not self.lease.exists():
                    self._write()
                elif self._is_ours():
                    os.utime(self.lease)
                elif not self._stop.is_set():
                    self._lost()
                    return

    def _is_ours(self) -> bool:
        return bool(_read(self.lease).get("token") == self._token)

    def _holder(self) -> Lease:
        """What the lease says; its owner may be about to write it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (holder := _read(self.lease)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return holder

    def _held(self, holder: Lease) -> WorkspaceError:
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        return WorkspaceError(
            f"the workspace is in use by {who}",
            where=str(self.path.parent.parent),
            expected="one run per workspace",
            advice="wait for it, stop it, or choose another --workspace",
        )


def _read(lease: Path) -> Lease:
    """What a lease says; nothing if there is none or it is not written yet."""
    try:
        return dict(json.loads(lease.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _runs(pid: Any) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, TypeError):
        return False
    except OSError:
        return True
    return True
