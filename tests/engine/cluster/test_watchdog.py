"""Workers that hold tasks and do nothing do not hold up a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.engine import machine
from krepes_ooc.engine.cluster import watchdog
from krepes_ooc.engine.cluster.cluster import Cluster
from krepes_ooc.engine.cluster.cluster_executor import ClusterExecutor, TransferFolder
from krepes_ooc.engine.cluster.connect import open_cluster, parse_cluster
from krepes_ooc.engine.cluster.watchdog import WorkerWatchdog
from krepes_ooc.engine.run_control import Silent


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with open_cluster(parse_cluster("local", None), 2, tmp_path_factory.mktemp("logs")) as cluster:
        # Libraries are loaded by the first task: that may take longer than these tests are patient.
        run(cluster, tmp_path_factory.mktemp("first"), str)
        yield replace(cluster, stall_seconds=2.0)


def run(pool: Cluster, folder: Path, task: Callable[[int], Any]) -> tuple[list[Any], list[str]]:
    transfer, notes = TransferFolder.open(folder / "temp", machine.numerics()), Notes()
    try:
        return list(
            ClusterExecutor(2, pool=pool, transfer=transfer, progress=notes).map(task, range(4))
        ), (notes.lines)
    finally:
        transfer.close()


def wait_for_ever() -> None:
    threading.Event().wait()


@pytest.mark.slow
def test_a_worker_that_stands_still_is_started_again(pool: Cluster, tmp_path: Path):
    def task(index: int) -> int:
        if index == 1 and not (tmp_path / "met").exists():
            (tmp_path / "met").touch()
            wait_for_ever()
        return index

    found, lines = run(pool, tmp_path, task)
    assert found == [0, 1, 2, 3]
    assert any("did nothing for 2 s" in line and "in wait" in line for line in lines), lines
    assert any("started again, its tasks are repeated" in line for line in lines)


@pytest.mark.slow
def test_a_worker_that_computes_for_long_is_left_alone(pool: Cluster, tmp_path: Path):
    def task(index: int) -> int:
        with (tmp_path / f"begun-{index}").open("a") as file:
            file.write("x")
        end = time.monotonic() + 5  # two polls and more
        while index == 1 and time.monotonic() < end:
            sum(range(1000))
        return index

    found, lines = run(pool, tmp_path, task)
    assert found == [0, 1, 2, 3]
    assert lines == []
    assert (tmp_path / "begun-1").read_text() == "x"


class Scripted:
    """What a scheduler says of one worker, look by look."""

    def __init__(self, *looks: tuple[float, str]) -> None:
        self.looks, self.restarted = list(looks), 0
        self.scheduler = self

    def sync(self, ask: Any, callback_timeout: float, **given: Any) -> Any:
        return ask(**given)

    def processing(self) -> dict[str, tuple[str, ...]]:
        return {"a": ("task",), "b": ()}

    def identity(self) -> dict[str, Any]:
        def facts(cpu: float) -> dict[str, Any]:
            return {"last_seen": 100.0, "metrics": {"cpu": cpu}}

        return {"workers": {"a": facts(self.looks[0][0]), "b": facts(0.0)}}

    def call_stack(self, keys: list[str]) -> dict[str, Any]:
        assert keys == ["task"]
        return {"a": {"task": (f'  File "/x/y/z.py", line {self.looks[0][1]}, in f\n\tcode\n',)}}

    def restart_workers(self, workers: list[str], **given: Any) -> None:
        assert workers == ["a"]
        self.restarted += 1


def looked(monkeypatch: pytest.MonkeyPatch, client: Any) -> tuple[WorkerWatchdog, list[str]]:
    clock = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    lines: list[str] = []
    watch = WorkerWatchdog(client, lines.append)
    while client.looks:
        clock[0] += watch.seconds / 2
        watch.poll()
        clock[0] += watch.seconds / 2
        watch.poll()
        client.looks.pop(0)
    return watch, lines


def test_only_the_same_place_twice_without_work_is_a_stall(monkeypatch: pytest.MonkeyPatch):
    goes_on = Scripted((1.0, "7"), (1.0, "8"), (90.0, "8"), (1.0, "8"))
    watch, lines = looked(monkeypatch, goes_on)
    assert goes_on.restarted == 0
    assert lines[0] == "a did nothing for 30 s: y/z.py:7 in f"
    stands = Scripted((1.0, "7"), (1.0, "7"))
    watch, lines = looked(monkeypatch, stands)
    assert stands.restarted == 1
    assert watch.seconds == 60
    assert len(lines) == 2


def test_a_finished_task_ends_the_suspicion(monkeypatch: pytest.MonkeyPatch):
    client = Scripted((1.0, "7"))
    watch, _ = looked(monkeypatch, client)
    client.looks = [(1.0, "7")]
    watch.on_progress()
    watch._since -= 31
    watch.poll()
    assert client.restarted == 0


def test_a_look_that_fails_is_nobodys_stall():
    class Gone:
        def processing(self) -> None:
            raise OSError("closed")

    lines: list[str] = []
    watch = WorkerWatchdog(Gone(), lines.append)
    watch._since -= 31
    watch.poll()
    assert lines == []


def test_workers_that_leave_before_a_task_is_finished_are_told_of():
    lines: list[str] = []
    watch = WorkerWatchdog(None, lines.append)
    for name in "abcdef":  # two are wanted: each that leaves has a successor
        watch.on_workers({name, "z"}, 2)
    assert lines == []
    watch.on_progress()
    for name in "ghijkl":
        watch.on_workers({name, "z"}, 2)
    (line,) = lines
    assert line.startswith("6 workers left since a task was last finished")
    for name in "mnopq":
        watch.on_workers({name, "z"}, 2)
    assert lines == [line], "it waits for as many again"
