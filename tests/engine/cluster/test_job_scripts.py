"""Worker jobs of a queue whose commands are two shell scripts: they die, leave and never come."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.engine.cluster import cluster as cluster_module
from krepes_ooc.engine.cluster.cluster_executor import ClusterExecutor, TransferFolder
from krepes_ooc.engine.cluster.connect import ClusterSpec, open_cluster
from krepes_ooc.engine.cluster.site_file import Site
from krepes_ooc.engine.run_control import Silent
from krepes_ooc.errors import Stopped

pytest.importorskip("dask_jobqueue")
pytestmark = pytest.mark.slow
SBATCH = """#!/bin/sh
# A queue that starts every job at once; a job is a process group and a file with its number.
[ -e {folder}/full ] && {{ echo "Submitted batch job 99"; exit 0; }}
for script; do :; done
cp "$script" {folder}/$$.sh
setsid sh {folder}/$$.sh > {folder}/out 2>&1 &
echo "$!" >> {folder}/jobs
echo "Submitted batch job $!"
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a queue: ``jobs`` has the number of every job, ``full`` keeps them waiting."""
    folder = tmp_path / "queue"
    folder.mkdir()
    commands = {"sbatch": SBATCH.format(folder=folder), "scancel": '#!/bin/sh\nkill -- "-$1"\n'}
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield folder
    for job in jobs_of(folder):
        subprocess.run(["kill", "-9", "--", f"-{job}"], check=False, capture_output=True)


@pytest.fixture
def transfer(tmp_path: Path) -> Iterator[TransferFolder]:
    opened = TransferFolder.open(tmp_path / "temp", "")
    yield opened
    opened.close()


def jobs_of(queue: Path) -> list[int]:
    file = queue / "jobs"
    return list(map(int, file.read_text().split())) if file.exists() else []


def test_a_job_of_two_processes_that_is_killed_is_replaced(
    queue: Path, transfer: TransferFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster_module, "RENEW_SECONDS", 1.0)

    def task(index: int) -> int:
        time.sleep(0.1)
        if index == 3 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.killpg(os.getpgid(0), signal.SIGKILL)
        return index * index

    asked = ClusterSpec("site", site=Site("slurm", jobs=1, processes=2, patience=60))
    with open_cluster(asked, 1, tmp_path / "logs") as cluster:
        found = list(ClusterExecutor(2, pool=cluster, transfer=transfer).map(task, range(12)))
    assert found == [i * i for i in range(12)]
    assert (tmp_path / "killed").exists()
    assert len(jobs_of(queue)) == 2


@pytest.mark.crash  # it waits for most of a minute
def test_a_worker_whose_lifetime_is_over_leaves_and_another_comes(
    queue: Path, transfer: TransferFolder, tmp_path: Path
):
    def task(index: int) -> int:
        time.sleep(0.4)
        with (tmp_path / "done").open("a") as file:
            file.write("x")
        return index * index

    site = Site("slurm", jobs=1, walltime="00:01:00", patience=60)
    assert site.lifetime_seconds == (27, 3)
    with open_cluster(ClusterSpec("site", site=site), 1, tmp_path / "logs") as cluster:
        found = list(ClusterExecutor(1, pool=cluster, transfer=transfer).map(task, range(96)))
    assert found == [i * i for i in range(96)]
    assert len(jobs_of(queue)) >= 2
    # Eight items make a task: the one in hand is done again, what was handed over is not.
    again = (tmp_path / "done").stat().st_size - 96
    assert again < 8 * len(jobs_of(queue))


def test_a_queue_that_gives_no_job_ends_the_patience(
    queue: Path, transfer: TransferFolder, tmp_path: Path
):
    (queue / "full").touch()
    asked = ClusterSpec("site", site=Site("slurm", jobs=1, patience=2))
    said = r"no worker came within 2 s; look at the queue; run the same command again to resume"
    with (
        open_cluster(asked, 1, tmp_path / "logs") as cluster,
        pytest.raises(Stopped, match=said),
    ):
        ClusterExecutor(1, pool=cluster, transfer=transfer).run(str, range(3))


def test_mapped_pages_do_not_trip_the_monitor_of_a_small_worker(
    queue: Path, transfer: TransferFolder, tmp_path: Path
):
    """256 MiB are the limit of the worker; it maps and touches twice as much, for a while."""
    path = tmp_path / "mapped"
    with path.open("wb") as file:
        file.truncate(2**29)
    asked = ClusterSpec("site", site=Site("slurm", jobs=1, memory="256MiB", patience=60))

    def task(index: int) -> tuple[int, int, int]:
        import psutil
        from distributed import get_worker

        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            total = int(np.frombuffer(mapped, dtype=np.uint8)[::4096].sum())
            time.sleep(1.0)  # the monitor looks ten times a second
            assert total == 0
            me = psutil.Process().memory_info()
            return os.getpid(), me.rss, int(get_worker().memory_manager.memory_limit)

    with open_cluster(asked, 1, tmp_path / "logs") as cluster:
        found = list(
            ClusterExecutor(1, progress=Silent(), pool=cluster, transfer=transfer).map(
                task, range(3)
            )
        )
    assert len({pid for pid, _, _ in found}) == 1
    for _, resident, limit in found:
        assert limit == 2**28
        assert resident > 2**29
