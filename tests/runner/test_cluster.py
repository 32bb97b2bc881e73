"""Whole audits on worker processes: the bits of threads, whatever becomes of the scheduler."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from krepes_ooc.engine.budget import Budget, MemoryNeed
from krepes_ooc.engine.cluster.connect import ClusterSpec, parse_cluster
from krepes_ooc.errors import PlanRefused
from krepes_ooc.runner.workers import workers_that_fit
from tests import small
from tests.crash.compare import differences

GIB = 2**30
STREAMED = (
    "stages.newton.objective=simclr",
    "stages.newton.objective_settings.batch=64",
    "stages.newton.max_iterations=3",
    "stages.landmarks.sampler=leverage",
)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), STREAMED])
def test_two_processes_give_the_bits_of_threads(tmp_path: Path, changes: tuple[str, ...]):
    threads = small.finished()
    if changes:
        small.audit(threads := tmp_path / "threads", *changes)
    small.audit(tmp_path / "processes", *changes, cluster=parse_cluster("local", None))
    assert differences(threads, tmp_path / "processes") == []
    assert small.seals(threads) == small.seals(tmp_path / "processes")
    assert not list((tmp_path / "processes" / ".krepes" / "temp").iterdir())


@pytest.mark.slow
def test_a_lost_scheduler_ends_the_run_and_the_next_one_goes_on(tmp_path: Path):
    module = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    file = tmp_path / "address.json"
    scheduler = subprocess.Popen(
        [*module, "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)],
        stderr=subprocess.DEVNULL,
        cwd=small.ROOT,
    )
    try:
        address = _address(file)
        # No worker ever comes, so the run is waiting when the scheduler dies.
        run = small.process(
            small.arguments(tmp_path / "w", "--cluster", address, "--until", "features", "-q")
        )
        journal = tmp_path / "w" / ".krepes" / "stages" / "features" / "begun.json"
        deadline = time.monotonic() + 60
        while not journal.exists():
            assert time.monotonic() < deadline
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        time.sleep(1.0)
    finally:
        scheduler.kill()
        scheduler.wait()
    _, err = run.communicate(timeout=60)
    assert run.returncode == 75
    assert err.startswith("krepes: --cluster: stopped, because the scheduler is lost; nothing is")
    assert err.count("\n") == 1
    small.audit(tmp_path / "w")
    assert differences(small.finished(), tmp_path / "w") == []


def _address(file: Path) -> str:
    import json

    deadline = time.monotonic() + 30
    while not file.exists() or not file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return str(json.loads(file.read_text())["address"])


def test_processes_on_this_machine_share_the_budget():
    cost: Any = SimpleNamespace(need=MemoryNeed(fixed=GIB // 4, per_worker=GIB // 4))
    spec = ClusterSpec("local")
    assert workers_that_fit(spec, "kernel", cost, Budget(4 * GIB, 8), GIB // 4) == 4
    assert workers_that_fit(spec, "kernel", cost, Budget(4 * GIB, 2), GIB // 4) == 2
    # Half for this process, three quarters for one worker: both count in what is asked for.
    with pytest.raises(PlanRefused) as caught:
        workers_that_fit(spec, "kernel", cost, Budget(GIB, 2), GIB // 4)
    words = "this process and one worker need 1.2 GiB of memory; expected at most --memory 1.0 GiB"
    assert words in str(caught.value)
    assert "raise --memory to 1.4 GiB, or leave out --cluster" in str(caught.value)
    assert workers_that_fit(spec, "kernel", cost, Budget(int(1.4 * GIB), 2), GIB // 4) == 1


def test_a_worker_of_a_site_has_its_own_memory():
    cost: Any = SimpleNamespace(need=MemoryNeed(fixed=GIB // 4, per_worker=GIB // 4))
    assert (
        workers_that_fit(ClusterSpec("site", memory=GIB), "kernel", cost, Budget(GIB, 7), GIB // 4)
        == 7
    )
    assert workers_that_fit(ClusterSpec("address"), "kernel", cost, Budget(GIB, 7), GIB // 4) == 7
    with pytest.raises(PlanRefused, match=r"one worker needs 768\.0 MiB"):
        workers_that_fit(
            ClusterSpec("site", memory=GIB // 2), "kernel", cost, Budget(GIB, 7), GIB // 4
        )
