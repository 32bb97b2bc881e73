"""Several writers of one workspace, each the owner of a shard: job arrays without a scheduler.

A shard takes its own exclusive lease and shares the workspace with other shards; a plain run takes
the workspace alone. Each side writes its lease before it looks for the other's, so of a shard and a
plain run that start at once at most one goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from krepes_ooc.errors import WorkspaceError
from krepes_ooc.storage.files import disk_errors
from krepes_ooc.storage.lock import NO_FLOCK, Lease, WorkspaceLock, _read

OPENING_SECONDS = 120.0


class _ShardLock(WorkspaceLock):
    """The lease of one shard, or of those who open a stage."""

    def _held(self, holder: Lease) -> WorkspaceError:
        return _running(self.path.parent, holder)


@contextlib.contextmanager
def hold_shard(
    private: Path, stage: str, share: tuple[int, int], lost: Callable[[], None]
) -> Iterator[None]:
    """Hold one shard of a stage; others may hold other shards meanwhile.

    Args:
        private: ``.krepes`` of the workspace.
        stage: its name.
        share: number of the shard, from 1, and how many there are.
        lost: called if another host takes the shard over while this process seems dead.

    Raises:
        WorkspaceError: somebody holds this shard or the whole workspace, or shards of another
            number run.
    """
    number, count = share
    folder = private / "shards" / f"{stage}-{number:06d}-of-{count:06d}"
    whole = WorkspaceLock(private / "lock")
    with _shared(whole), _ShardLock(folder / "lock", lost):
        holder = _read(whole.lease)
        if holder and not whole._is_gone(holder, flocked=True):
            raise whole._held(holder)
        for other in _running_shards(private):
            if not other.name.endswith(f"-of-{count:06d}"):
                raise _running(other, _read(other / "lease"))
        yield


@contextlib.contextmanager
def opening(private: Path) -> Iterator[None]:
    """One process at a time: shards that start together must not begin a stage twice.

    Raises:
        WorkspaceError: another process stays in there for minutes.
    """
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
        WorkspaceError: naming a shard and its holder.
    """
    for folder in _running_shards(private):
        raise _running(folder, _read(folder / "lease"))


def clear_shards(private: Path) -> None:
    """Remove the locks of shards that nobody holds; only under the exclusive lock."""
    shutil.rmtree(private / "shards", ignore_errors=True)


def _running_shards(private: Path) -> list[Path]:
    found = []
    for lease in sorted((private / "shards").glob("*-of-*/lease")):
        with disk_errors(lease):
            holder = _read(lease)
        lock = _ShardLock(lease.with_name("lock"))
        if holder and not lock._is_gone(holder, flocked=_is_free(lock.path)):
            found.append(lease.parent)
    return found


def _is_free(path: Path) -> bool:
    """Whether no process of this machine holds the flock of a shard."""
    import fcntl

    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _shared(whole: WorkspaceLock) -> Iterator[None]:
    """The flock of the workspace, shared: a plain run on this machine would not get it."""
    import fcntl

    with disk_errors(whole.path):
        whole.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(whole.path, flags, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise whole._held(whole._holder()) from None
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
        yield
    finally:
        os.close(descriptor)


def _running(folder: Path, holder: Lease) -> WorkspaceError:
    name, _, count = folder.name.partition("-of-")
    stage, _, number = name.rpartition("-")
    shard = f"shard {int(number)}/{int(count)} of {stage}" if count else "the opening of a stage"
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return WorkspaceError(
        f"{shard} is being computed by {who}",
        where=str(folder.parents[2]),
        expected="a workspace that nobody else writes, or other shards of the same number",
        advice="wait for it, or stop it",
    )
