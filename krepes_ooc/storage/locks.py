"""Locks of a workspace and of its shards: flock, and a lease that names the process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import (
    NotAFileError,
    boot_id,
    disk_errors,
    open_binary,
    open_regular,
    read_small,
    unreadable,
)
from krepes_ooc.errors import DamageError, UsageError, WorkspaceError

HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 120.0
MAX_LEASE_BYTES = 2**16
PATIENCE_SECONDS = 0.5
# What a file system without locks says to flock: there the lease decides alone.
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
Lease = dict[str, Any]


class WorkspaceLock:
    """Exclusive lock of a workspace, released at exit or when the process dies.

    flock shows at once whether another process of this machine uses the workspace, but it is local
    on some cluster file systems. So there is also a lease, a file created exclusively, with host,
    pid, boot id and a heartbeat (its modification time). A lease is taken over when its holder is
    surely gone: it ran on this host and flock is free, or it gave no heartbeat for
    ``LEASE_SECONDS``.

    Args:
        path: the file for flock; the lease lies beside it.
        on_lost: called once if another host takes the lease while this process seems dead.

    Raises:
        WorkspaceError: another process uses the workspace; names it.
    """

    def __init__(self, path: Path, on_lost: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.lease = path.with_name("lease")
        self._on_lost = on_lost
        self._token = uuid.uuid4().hex
        self._file: Any = None
        self._stop = threading.Event()

    def __enter__(self) -> WorkspaceLock:
        self._file = os.fdopen(_open_lock_file(self.path), "r+b")
        try:
            self._claim(flocked=self._flock())
        except BaseException:
            self._file.close()
            raise
        # The heartbeat ends with the process, however it dies.
        threading.Thread(target=self._beat, name="krepes-lease", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A lease that a failing disk keeps is taken over at once: flock says that nobody runs.
        with contextlib.suppress(OSError, DamageError):
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
        return self._try_flock(self._file.fileno(), fcntl.LOCK_EX)

    def _try_flock(self, descriptor: int, mode: int) -> bool:
        """Take flock in this mode; False on a file system without flock.

        Raises:
            WorkspaceError: another process has it in a mode that excludes this one.
        """
        import fcntl

        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(self._holder()) from None
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            return False
        return True

    def _claim(self, *, flocked: bool) -> None:
        # The second try is for a lease that was stale: of several that remove it, one creates anew.
        with disk_errors(self.lease):
            for _ in range(2):
                try:
                    self._write()
                except FileExistsError:
                    holder = self._holder()
                    if not self._is_gone(holder, flocked):
                        raise self._in_use(holder) from None
                    self._remove_stale(holder)
                else:
                    return
        raise self._in_use(self._holder())

    def _write(self) -> None:
        """Create the lease; of two that try, one fails, on network file systems too."""
        me = {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot_id()}
        descriptor = os.open(self.lease, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps({**me, "token": self._token}).encode())
            file.flush()
            os.fsync(descriptor)

    def _remove_stale(self, holder: Lease) -> None:
        """Remove a stale lease; one that another process made in the meantime is put back."""
        # A rename is atomic: what was moved aside is looked at after nobody else can move it.
        aside = self.lease.with_name(f"lease-{self._token}")
        with contextlib.suppress(FileNotFoundError):
            self.lease.rename(aside)
            if _read(aside) != holder:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.lease)
            aside.unlink()

    def _is_gone(self, holder: Lease, flocked: bool) -> bool:
        """Whether the holder is dead; ages are differences of the file system's own clock."""
        if not holder:
            return True
        # A holder on this machine can be looked up.
        if holder.get("host") == socket.gethostname():
            return flocked or holder.get("boot") != boot_id() or not _runs(holder.get("pid"))
        # One elsewhere is dead when its heartbeat is old; clocks of two machines may differ.
        os.utime(self.path)
        try:
            age = self.path.stat().st_mtime - self.lease.stat().st_mtime
        except FileNotFoundError:
            return True
        return age > LEASE_SECONDS

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            # A disk that fails for a moment says nothing about the lease.
            with contextlib.suppress(OSError, DamageError):
                if not self.lease.exists():
                    self._write()
                elif self._is_ours():
                    os.utime(self.lease)
                elif not self._stop.is_set():
                    self._on_lost()
                    return

    def _is_ours(self) -> bool:
        return bool(_read(self.lease).get("token") == self._token)

    def _holder(self) -> Lease:
        """Content of the lease, waited for: its owner may be about to write it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (holder := _read(self.lease)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return holder

    def _in_use(self, holder: Lease) -> WorkspaceError:
        return WorkspaceError(
            f"the workspace is in use by {_process(holder)}",
            where=str(self.path.parent.parent),
            expected="one run per workspace",
            advice="wait for it, stop it, or choose another --workspace",
        )


def _read(lease: Path) -> Lease:
    """Content of a lease; empty if there is none or it is not written yet."""
    try:
        return dict(json.loads(read_small(lease, MAX_LEASE_BYTES)))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return {}
    except OSError as error:
        if isinstance(error, NotAFileError) or error.errno == errno.EFBIG:
            raise unreadable(lease, error) from error
        raise


def _process(holder: Lease) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _open_lock_file(path: Path) -> int:
    """Descriptor of a file for flock, created if it is missing; a link is never followed."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return open_regular(path, os.O_RDWR | os.O_CREAT)


def _runs(pid: Any) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, TypeError, OverflowError):
        return False
    except OSError:
        return True  # it runs as another user
    return True


OPENING_SECONDS = 120.0


class _ShardLock(WorkspaceLock):
    """The lease of one shard, or of those who open a stage."""

    def _in_use(self, holder: Lease) -> WorkspaceError:
        return _shard_in_use(self.path.parent, holder)


@contextlib.contextmanager
def lock_shard(
    private: Path, stage: str, shard: tuple[int, int], on_lost: Callable[[], None]
) -> Iterator[None]:
    """Lock one shard of a stage; other processes may lock other shards meanwhile.

    Args:
        private: ``.krepes`` of the workspace.
        stage: its name.
        shard: its number, from 1, and the number of shards.
        on_lost: called if another host takes the shard over while this process seems dead.

    Raises:
        WorkspaceError: this shard or the whole workspace is locked, or shards of another number
            are being computed.
    """
    number, count = shard
    folder = private / "shards" / f"{stage}-{number:06d}-of-{count:06d}"
    whole = WorkspaceLock(private / "lock")
    with _shared(whole), _ShardLock(folder / "lock", on_lost):
        # flock may be local: the lease excludes a plain run on another machine.
        holder = _read(whole.lease)
        if holder and not whole._is_gone(holder, flocked=True):
            raise whole._in_use(holder)
        # Shards I/N of another N would compute the same blocks.
        for other in _running_shards(private):
            if not other.name.endswith(f"-of-{count:06d}"):
                raise _shard_in_use(other, _read(other / "lease"))
        yield


@contextlib.contextmanager
def lock_opening(private: Path) -> Iterator[None]:
    """Let one process at a time begin a stage: shards that start together must not do it twice.

    Raises:
        WorkspaceError: another process has the lock for minutes.
    """
    # Beginning a stage takes a moment, so this lock is waited for.
    lock = _ShardLock(private / "shards" / "opening" / "lock")
    deadline = time.monotonic() + OPENING_SECONDS
    while True:
        try:
            lock.__enter__()
            break
        except WorkspaceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.__exit__()


def refuse_running_shards(private: Path) -> None:
    """Refuse a plain run while shards are being computed.

    Raises:
        WorkspaceError: naming a shard and its process.
    """
    for folder in _running_shards(private):
        raise _shard_in_use(folder, _read(folder / "lease"))


def clear_shards(private: Path) -> None:
    """Remove the locks of shards; only under the exclusive lock, when no shard runs."""
    shutil.rmtree(private / "shards", ignore_errors=True)


def _running_shards(private: Path) -> list[Path]:
    """Folders of the shards whose process is not surely gone."""
    running = []
    for lease in sorted((private / "shards").glob("*-of-*/lease")):
        with disk_errors(lease):
            holder = _read(lease)
        lock = _ShardLock(lease.with_name("lock"))
        if holder and not lock._is_gone(holder, flocked=_is_free(lock.path)):
            running.append(lease.parent)
    return running


def _is_free(path: Path) -> bool:
    """Whether no process of this machine has the flock of a shard."""
    import fcntl

    try:
        with open_binary(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _shared(whole: WorkspaceLock) -> Iterator[None]:
    """The flock of the workspace, shared: a plain run on this machine would not get it."""
    import fcntl

    descriptor = _open_lock_file(whole.path)
    try:
        whole._try_flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _shard_in_use(folder: Path, holder: Lease) -> WorkspaceError:
    # The folder is named STAGE-NUMBER-of-COUNT.
    name, _, count = folder.name.partition("-of-")
    stage, _, number = name.rpartition("-")
    shard = f"shard {int(number)}/{int(count)} of {stage}" if count else "the opening of a stage"
    return WorkspaceError(
        f"{shard} is being computed by {_process(holder)}",
        where=str(folder.parents[2]),
        expected="a workspace that nobody else writes, or other shards of the same number",
        advice="wait for it, or stop it",
    )
