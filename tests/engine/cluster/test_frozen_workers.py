"""Processes that are frozen, not dead: nothing closes, nothing answers, the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from krepes_ooc.engine import machine
from krepes_ooc.engine.cluster import cluster as cluster_module
from krepes_ooc.engine.cluster.cluster import Cluster
from krepes_ooc.engine.cluster.cluster_executor import ClusterExecutor, TransferFolder
from krepes_ooc.engine.cluster.connect import open_cluster, parse_cluster
from krepes_ooc.engine.cluster.watchdog import WorkerWatchdog
from krepes_ooc.engine.executor import Executor
from krepes_ooc.engine.run_control import Silent, StopFlag
from krepes_ooc.errors import Stopped
from tests.engine import outside

pytestmark = pytest.mark.slow


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def saying(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]


class When(StopFlag):
    """A moment to do something: once all tasks are on their way, before a result is asked for."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act, self._looks = act, 0

    @property
    def requested(self) -> bool:
        self._looks += 1
        if self._looks == 2:  # the first time is before there are tasks
            self._act()
        return super().requested


@pytest.fixture
def transfer(tmp_path: Path) -> Iterator[TransferFolder]:
    opened = TransferFolder.open(tmp_path / "temp", machine.numerics())
    yield opened
    opened.close()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Cluster]:
    with open_cluster(parse_cluster("local", None), 2, tmp_path / "logs") as cluster:
        cluster.stall_seconds, cluster.transfer_seconds = 3.0, 2.0
        yield cluster


def freeze_soon(marker: Path) -> None:
    """Freeze this process half a second from now, once; the marker holds its number."""
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -STOP {os.getpid()}"])


def is_frozen(marker: Path) -> bool:
    return marker.exists() and psutil.Process(int(marker.read_text())).status() == "stopped"


def test_a_frozen_worker_that_holds_results_is_named_and_replaced(
    pool: Cluster, transfer: TransferFolder, tmp_path: Path
):
    marker, notes = tmp_path / "frozen", Notes()

    def task(index: int) -> int:
        if index == 1:
            freeze_soon(marker)
        return index * index

    def until_frozen() -> None:
        outside.wait_for(lambda: is_frozen(marker), "the frost")

    executor = ClusterExecutor(2, When(until_frozen), notes, pool, transfer)
    assert list(executor.map(task, range(4))) == [0, 1, 4, 9]
    (line,) = notes.saying("holds a result and does not answer for 2 s: it is started again")
    assert line.startswith("tls://127.0.0.1:")
    assert not psutil.pid_exists(int(marker.read_text()))


def test_those_that_wait_for_a_frozen_worker_are_not_to_blame(
    pool: Cluster, transfer: TransferFolder, tmp_path: Path
):
    marker, notes = tmp_path / "frozen", Notes()

    def part(index: int) -> np.ndarray:
        if index == 1:
            freeze_soon(marker)
        time.sleep(0.2)
        with (tmp_path / "workers").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return np.full(8, index / 3)

    found = ClusterExecutor(2, progress=notes, pool=pool, transfer=transfer).reduce(
        part, range(16), np.add
    )
    expected = Executor(1).reduce(lambda i: np.full(8, i / 3), range(16), np.add)
    assert found.tobytes() == expected.tobytes()
    frozen = marker.read_text()
    assert notes.saying("did nothing for 3 s: it does not answer"), notes.lines
    assert len(notes.saying("started again")) == 1, notes.lines
    assert not psutil.pid_exists(int(frozen))
    healthy = set((tmp_path / "workers").read_text().split()) - {frozen}
    assert any(psutil.pid_exists(int(pid)) for pid in healthy)


def test_a_frozen_worker_holds_up_no_work_that_is_handed_out(
    pool: Cluster, transfer: TransferFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster_module, "BROADCAST_SECONDS", 2)
    marker, notes = tmp_path / "frozen", Notes()
    executor = ClusterExecutor(2, progress=notes, pool=pool, transfer=transfer)
    executor.run(lambda i: freeze_soon(marker) if i == 1 else None, range(4))
    outside.wait_for(lambda: is_frozen(marker), "the frost")
    assert list(executor.map(lambda i: i * i, range(8))) == [i * i for i in range(8)]
    assert notes.saying("started again"), notes.lines


@pytest.mark.crash  # it waits for most of a minute
def test_a_suspended_job_is_struck_off_and_the_others_go_on(
    transfer: TransferFolder, tmp_path: Path
):
    """Worker and nanny stand still together, as in a job that its queue suspends."""
    notes = Notes()

    def task(index: int) -> int:
        time.sleep(0.1)
        return index * index

    with (
        outside.scheduler(tmp_path) as (_, address),
        outside.workers(address, tmp_path, 2) as jobs,
        open_cluster(parse_cluster(address, None), 2, tmp_path) as cluster,
    ):
        cluster.stall_seconds, cluster.transfer_seconds = 3.0, 2.0
        outside.wait_for(lambda: len(cluster.client.nthreads()) == 2, "two workers")
        suspend = When(lambda: os.killpg(jobs[1].pid, signal.SIGSTOP))
        found = list(ClusterExecutor(2, suspend, notes, cluster, transfer).map(task, range(20)))
        assert found == [i * i for i in range(20)]
        assert notes.saying("started again, its tasks are repeated")
        assert len(cluster.client.nthreads()) == 1


def test_a_connection_that_nobody_accepts_is_a_lost_scheduler(
    pool: Cluster, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Timed out trying to connect to tcp://127.0.0.1:1 after 10 s")

    monkeypatch.setattr(pool.client, "sync", refuse)
    with pytest.raises(Stopped, match="the scheduler is lost; nothing is lost on disk: run"):
        pool._check_workers(WorkerWatchdog(pool.client, str))


def test_a_frozen_scheduler_is_a_lost_one(
    transfer: TransferFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("SCHEDULER_SECONDS", "BROADCAST_SECONDS"):
        monkeypatch.setattr(cluster_module, name, 2)
    with (
        outside.scheduler(tmp_path) as (process, address),
        open_cluster(parse_cluster(address, None), 2, tmp_path) as cluster,
    ):
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(Stopped, match="the scheduler is lost; nothing is lost on disk: run"):
            ClusterExecutor(2, pool=cluster, transfer=transfer).run(str, range(4))
