from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.core.files import boot_id
from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.storage import locks
from krepes_ooc.storage.locks import LEASE_SECONDS, WorkspaceLock
from tests.storage import stores

FORK = get_context("fork")


def lock_in(root: Path) -> WorkspaceLock:
    return WorkspaceLock(root / ".krepes" / "lock")


def refusal(root: Path) -> str:
    with pytest.raises(WorkspaceError) as caught, lock_in(root):
        pass
    assert caught.value.exit_code == 4
    return str(caught.value)


def hold_in_process(root: Path) -> Any:
    ready = FORK.Event()

    def hold() -> None:
        with lock_in(root):
            ready.set()
            time.sleep(60)

    process = stores.start(hold)
    assert ready.wait(10)
    return process


def leave_lease(root: Path, age: float = 0.0, **lease: Any) -> None:
    """A lease as another process would have left it, its last heartbeat ``age`` seconds ago."""
    path = root / ".krepes" / "lease"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"token": "theirs", **lease}) if lease else "")
    os.utime(path, (time.time() - age,) * 2)


def no_flock(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSYS) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no flock here")

    monkeypatch.setattr(fcntl, "flock", refuse)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lock_can_be_taken_again(tmp_path: Path):
    for _ in range(3):
        with lock_in(tmp_path) as lock:
            assert json.loads(lock.lease.read_text())["pid"] == os.getpid()
        assert not lock.lease.exists()


def test_second_process_is_refused_and_told_who_holds_it(tmp_path: Path):
    process = hold_in_process(tmp_path)
    assert refusal(tmp_path) == (
        f"{tmp_path}: the workspace is in use by process {process.pid} on {socket.gethostname()}; "
        "expected one run per workspace; wait for it, stop it, or choose another --workspace"
    )
    process.kill()
    process.join()


def test_same_process_is_refused_twice(tmp_path: Path):
    with lock_in(tmp_path):
        assert f"process {os.getpid()} on" in refusal(tmp_path)
        assert f"process {os.getpid()} on" in refusal(tmp_path)
    with lock_in(tmp_path):
        pass


def test_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path):
    process = hold_in_process(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert json.loads((tmp_path / ".krepes" / "lease").read_text())["pid"] == process.pid
    with lock_in(tmp_path) as lock:
        assert json.loads(lock.lease.read_text())["pid"] == os.getpid()


def test_lease_of_another_host_holds_until_its_heartbeat_is_old(tmp_path: Path):
    other = {"host": "elsewhere", "pid": 17, "boot": "b"}
    for age in (0.0, LEASE_SECONDS - 5):
        leave_lease(tmp_path, age, **other)
        assert "in use by process 17 on elsewhere" in refusal(tmp_path)
        assert (tmp_path / ".krepes" / "lease").exists()
    leave_lease(tmp_path, LEASE_SECONDS + 5, **other)
    with lock_in(tmp_path) as lock:
        assert json.loads(lock.lease.read_text())["host"] == socket.gethostname()


def test_lease_of_this_host_before_a_reboot_is_taken_over(tmp_path: Path):
    leave_lease(tmp_path, host=socket.gethostname(), pid=os.getpid(), boot="before")
    with lock_in(tmp_path):
        pass


def test_free_flock_proves_the_holder_dead_though_its_number_runs_again(tmp_path: Path):
    leave_lease(tmp_path, host=socket.gethostname(), pid=1, boot=boot_id())
    with lock_in(tmp_path):
        pass


def test_lease_that_was_never_written_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.05)
    leave_lease(tmp_path)
    with lock_in(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["fresh", "stale", "no flock"])
def test_one_of_many_racing_processes_wins(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    if kind == "no flock":
        no_flock(monkeypatch)

    def race(barrier: Any, won: Any, tried: Any) -> None:
        barrier.wait()
        try:
            with lock_in(tmp_path):
                with won.get_lock():
                    won.value += 1
                tried.wait(10)
        except WorkspaceError:
            tried.wait(10)

    for _ in range(5):
        if kind == "stale":
            leave_lease(tmp_path, LEASE_SECONDS + 5, host="elsewhere", pid=1, boot="b")
        barrier, won, tried = FORK.Barrier(4), FORK.Value("i", 0), FORK.Barrier(4)
        processes = [stores.start(lambda: race(barrier, won, tried)) for _ in range(4)]  # noqa: B023
        for process in processes:
            process.join(20)
            assert process.exitcode == 0
        assert won.value == 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_the_lease_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    no_flock(monkeypatch, number)
    here = {"host": socket.gethostname(), "boot": boot_id()}
    with lock_in(tmp_path):
        assert f"process {os.getpid()} on" in refusal(tmp_path)
    dead = stores.start(lambda: None)
    dead.join()
    for gone in ({**here, "pid": dead.pid}, {**here, "pid": os.getpid(), "boot": "before"}):
        leave_lease(tmp_path, **gone)
        with lock_in(tmp_path):
            pass
    leave_lease(tmp_path, **here, pid=1)
    assert "process 1 on" in refusal(tmp_path)
    for pid in ("text", None, dead.pid):
        leave_lease(tmp_path, **here, pid=pid)
        with lock_in(tmp_path):
            pass


def test_other_flock_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="disk"), lock_in(tmp_path):
        pass


def test_heartbeat_renews_the_lease_and_restores_a_deleted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.01)
    with lock_in(tmp_path) as lock:
        os.utime(lock.lease, (0, 0))
        eventually(lambda: lock.lease.stat().st_mtime > 1)
        lock.lease.unlink()
        eventually(lambda: lock.lease.exists() and lock.lease.stat().st_size > 0)
        assert json.loads(lock.lease.read_text())["pid"] == os.getpid()


def test_lost_lease_is_told_and_left_to_its_new_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.01)
    lost: list[int] = []
    with WorkspaceLock(tmp_path / ".krepes" / "lock", lambda: lost.append(1)) as lock:
        time.sleep(0.1)
        assert not lost
        leave_lease(tmp_path, host="elsewhere", pid=17, boot="b")
        eventually(lambda: bool(lost))
    assert lost == [1]
    assert json.loads(lock.lease.read_text())["host"] == "elsewhere"


def test_a_deleted_lock_file_lets_a_second_run_in_and_the_first_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.01)
    lost: list[int] = []
    path = tmp_path / ".krepes" / "lock"
    with WorkspaceLock(path, lambda: lost.append(1)):
        path.unlink()
        with WorkspaceLock(path) as second:
            eventually(lambda: bool(lost))
            assert second.lease.exists()
            with pytest.raises(WorkspaceError, match="in use by process"), WorkspaceLock(path):
                pass
    assert lost == [1]


def test_fresh_lease_that_was_moved_by_mistake_is_put_back(tmp_path: Path):
    """Between judging a lease stale and moving it, another host may have taken it over."""
    judged = {"token": "old", "host": "elsewhere", "pid": 1, "boot": "b"}
    leave_lease(tmp_path, host="third", pid=2, boot="b")
    lock_in(tmp_path)._remove_stale(judged)
    assert json.loads((tmp_path / ".krepes" / "lease").read_text())["host"] == "third"
    assert [path.name for path in (tmp_path / ".krepes").iterdir()] == ["lease"]


def test_system_without_locks_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UsageError) as caught:
        lock_in(tmp_path).__enter__()
    assert str(caught.value) == (
        f"{tmp_path / '.krepes' / 'lock'}: this system cannot lock a workspace; "
        "expected Linux or macOS; finished workspaces can be read here"
    )


def test_lock_that_is_a_link_is_not_followed(tmp_path: Path):
    (tmp_path / ".krepes").mkdir()
    (tmp_path / "precious").write_text("data")
    (tmp_path / ".krepes" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(Exception, match="a symbolic link instead of a file"), lock_in(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "data"


def test_read_only_folder_is_a_usage_error(tmp_path: Path):
    with stores.mounted(tmp_path / "disk", "1m") as disk:
        stores.make_read_only(disk)
        with pytest.raises(UsageError, match=r"cannot write \(Read-only file system\)"):
            lock_in(disk).__enter__()
