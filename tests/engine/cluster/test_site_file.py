"""Site files: what they may say, the batch script they become, and queues that refuse."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from krepes_ooc.core import resources
from krepes_ooc.engine.cluster import connect
from krepes_ooc.engine.cluster.cluster_executor import ClusterExecutor, TransferFolder
from krepes_ooc.engine.cluster.connect import open_cluster, parse_cluster
from krepes_ooc.engine.cluster.site_file import Site, job_script, job_settings, read_site
from krepes_ooc.errors import RecipeError, UsageError
from tests import small

HPC = resources.folder("pipelines") / "hpc"
QUEUES = ("slurm", "pbs", "sge", "lsf")


def site_file(folder: Path, *lines: str) -> Path:
    path = folder / "site.yaml"
    path.write_text("\n".join(["scheduler: slurm", *lines]))
    return path


@pytest.mark.parametrize("name", QUEUES)
def test_shipped_sites_are_read_and_reach_this_machine_alone(name: str):
    site = read_site(HPC / f"{name}.yaml")
    assert (site.scheduler, site.interface) == (name, "lo")
    assert site.walltime_seconds == 3600


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("slurm", ["#SBATCH -p long", "#SBATCH -A physics", "#SBATCH -t 02:00:00"]),
        ("pbs", ["#PBS -q long", "#PBS -A physics", "#PBS -l walltime=02:00:00"]),
        ("sge", ["#$ -q long", "#$ -P physics", "#$ -l h_rt=02:00:00"]),
        ("lsf", ["#BSUB -q long", '#BSUB -P "physics"', "#BSUB -W 02:00"]),
    ],
)
def test_the_job_script_says_what_the_site_file_says(name: str, lines: list[str]):
    pytest.importorskip("dask_jobqueue")
    site = Site(name, walltime="02:00:00", queue="long", account="physics", prologue=("ml gcc",))
    script = job_script(site)
    for line in [
        *lines,
        "ml gcc",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
        f"{sys.executable} -m distributed.cli.dask_worker",
        "--nthreads 1",
        "--lifetime 6120s --lifetime-stagger 360s",
        "--no-dashboard",
        "--interface lo",
    ]:
        assert line in script


def test_print_job_prints_the_script_and_runs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    pytest.importorskip("dask_jobqueue")
    path = site_file(tmp_path, "memory: 2GiB", "directives: [--exclusive]")
    asked = ("run", "digits", "-w", str(tmp_path / "w"), "--print-job", "--cluster", str(path))
    found = small.krepes(capsys, *asked)
    assert (found.code, found.err) == (0, "")
    assert "#SBATCH --mem=2G" in found.out
    assert "#SBATCH --exclusive" in found.out
    assert "#SBATCH --mem=3G" in small.krepes(capsys, *asked, "--memory", "3GiB").out
    assert not (tmp_path / "w").exists()


def test_there_is_no_job_without_a_site(capsys: pytest.CaptureFixture[str]):
    for where in ([], ["--cluster", "local"]):
        found = small.krepes(capsys, "run", "digits", "--print-job", *where)
        assert found.code == 2
        assert "there is no job to print; expected --cluster with the path" in found.line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("walltme: '1:00'", "unknown key 'walltme'; expected one of about, account"),
        ("walltime: 'an hour'", "walltime 'an hour'; expected [HH:]MM:SS"),
        ("memory: much", "'much' is no size in bytes"),
        ("jobs: 0", "jobs"),
        ("scheduler: condor", "stands twice"),
    ],
)
def test_a_wrong_site_file_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, said: str
):
    path = site_file(tmp_path, line)
    found = small.krepes(capsys, "run", "digits", "--cluster", str(path))
    assert found.code == 2
    assert said in found.line


def test_an_unknown_queue_and_a_missing_file_are_refused(tmp_path: Path):
    path = tmp_path / "site.yaml"
    path.write_text("scheduler: condor")
    with pytest.raises(RecipeError, match="condor"):
        read_site(path)
    with pytest.raises(UsageError, match="no such file"):
        parse_cluster(str(tmp_path / "none.yaml"), None)
    with pytest.raises(UsageError, match="'nowhere'; expected local, a scheduler such as"):
        parse_cluster("nowhere", None)


def test_a_worker_leaves_before_its_job_is_killed():
    for walltime in ("00:02:00", "01:00:00", "72:00:00"):
        site = Site("slurm", walltime=walltime)
        lifetime, stagger = site.lifetime_seconds
        assert 0 < lifetime + stagger <= site.walltime_seconds - 30
    assert job_settings(Site("lsf", walltime="00:01:30"))["walltime"] == "00:02"


def test_without_dask_jobqueue_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(UsageError, match=r"not installed; .*pip install 'krepes-ooc\[hpc\]'"):
        job_script(Site("slurm"))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'sbatch: error: invalid partition specified: long' >&2; exit 1", "invalid partiti"),
        (None, "no command 'sbatch' on this machine"),
    ],
)
def test_a_queue_that_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
):
    pytest.importorskip("dask_jobqueue")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    if script is not None:
        command = bin_ / "sbatch"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{bin_}:/bin:/usr/bin")
    else:
        monkeypatch.setenv("PATH", str(bin_))
    asked = connect.ClusterSpec("site", site=Site("slurm", jobs=1))
    transfer = TransferFolder.open(tmp_path / "temp", "")
    with (
        pytest.raises(UsageError, match=f"the queue refuses the job: .*{said}.*mend the site"),
        open_cluster(asked, 1, tmp_path / "jobs") as cluster,
    ):
        ClusterExecutor(1, pool=cluster, transfer=transfer).run(str, range(3))


def test_a_scheduler_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 1)
    with (
        pytest.raises(UsageError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1 within 1 s"),
        open_cluster(parse_cluster("tcp://127.0.0.1:1", None), 1, tmp_path),
    ):
        pytest.fail("opened")
