"""Measured memory against the limit of a stage: fewer tasks at a time, then a clean stop."""

from __future__ import annotations

import threading
import time

import pytest

from krepes_ooc.engine import machine, memory_limit
from krepes_ooc.engine.executor import Executor
from krepes_ooc.engine.machine import INTERVAL_SECONDS, ResourceMeter
from krepes_ooc.engine.memory_limit import MemoryLimit, PlannedMemory, memory_note
from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import Interrupted, Stopped

MIB = 2**20
ALLOWED = PlannedMemory(planned=500 * MIB, memory=1000 * MIB, of_worker=300 * MIB)


def limit(workers: int = 1, outer: StopFlag | None = None, notes: list[str] | None = None):
    told = [] if notes is None else notes
    return MemoryLimit("kernel", ALLOWED, workers, outer or StopFlag(), told.append)


def test_one_worker_above_the_memory_stops_and_says_what_it_needs() -> None:
    flag = limit()
    flag.observe(1000 * MIB)
    flag.check()
    flag.observe(1001 * MIB)
    assert flag.requested
    with pytest.raises(Stopped) as caught:
        flag.check()
    assert caught.value.exit_code == 75
    assert str(caught.value) == (
        "stage kernel: stopped, because it takes 1001.0 MiB of memory; expected at most --memory "
        "1000.0 MiB; nothing is lost: run again with --memory 1.1 GiB or more to resume"
    )


def test_a_plan_near_the_memory_is_no_reason_to_slow_down() -> None:
    notes: list[str] = []
    allowed = PlannedMemory(planned=990 * MIB, memory=1000 * MIB)
    flag = MemoryLimit("kernel", allowed, 2, StopFlag(), notes.append)
    with flag.task(), flag.task():
        flag.observe(985 * MIB)
    assert (flag.workers, notes) == (2, [])


@pytest.mark.parametrize(("taken", "left"), [(940, 3), (960, 2), (1100, 1)])
def test_several_workers_become_fewer(taken: int, left: int) -> None:
    notes: list[str] = []
    flag = limit(3, notes=notes)
    with flag.task(), flag.task(), flag.task():
        flag.observe(taken * MIB)
        # Blocks under way are finished before the next measurement counts.
        flag.observe(2000 * MIB)
        assert flag.workers == left if left < 3 else flag.workers == 1
        flag.check()
    assert len(notes) == 1
    assert f"{flag.workers} at a time from the next block on" in notes[0]


def test_tasks_wait_until_fewer_run() -> None:
    flag = limit(3)
    most, running, lock = [0], [0], threading.Lock()

    def work(index: int) -> int:
        with lock:
            running[0] += 1
            if index > 3:
                most[0] = max(most[0], running[0])
        time.sleep(0.02)
        if index == 0:
            flag.observe(1100 * MIB)
        with lock:
            running[0] -= 1
        return index

    executor = Executor(3, flag, limit=flag)
    assert list(executor.map(work, range(12))) == list(range(12))
    assert flag.workers == 1
    assert most == [1]


def test_a_single_worker_that_still_takes_too_much_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limit, "SETTLING_SECONDS", 0.0)
    flag = limit(2)
    with flag.task(), flag.task():
        flag.observe(1100 * MIB)
    with flag.task():
        flag.observe(1100 * MIB)
        with pytest.raises(Stopped, match=r"takes 1\.1 GiB"):
            flag.check()


def test_the_run_is_asked_first() -> None:
    outer = StopFlag()
    flag = limit(outer=outer)
    flag.request("a test says so", interrupted=True)
    assert outer.requested
    with pytest.raises(Interrupted):
        flag.check()


def test_a_worker_process_has_its_own_limit() -> None:
    flag = limit()
    flag.observe_worker(300 * MIB)
    flag.check()
    flag.observe_worker(301 * MIB)
    with pytest.raises(Stopped, match=r"a worker process takes 301\.0 MiB .* --memory 300\.0 MiB"):
        flag.check()


def test_the_meter_tells_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "anonymous_bytes", lambda: 2000 * MIB)
    flag = limit()
    with ResourceMeter(flag.observe):
        time.sleep(5 * INTERVAL_SECONDS)
    assert flag.requested


def test_what_is_said_of_a_peak_above_its_plan() -> None:
    assert memory_note("kernel", 500 * MIB, ALLOWED) == ""
    assert memory_note("kernel", 900 * MIB, ALLOWED) == (
        "kernel: 900.0 MiB of memory, 500.0 MiB planned"
    )
    assert memory_note("kernel", 2000 * MIB, ALLOWED).endswith(
        "above --memory 1000.0 MiB: it needs --memory 2.1 GiB"
    )
