"""A real Slurm on this machine: every way to spread an audit gives the bits of threads.

    make slurm-test                            (as root, on Debian: it installs slurm-wlm and munge)
    python tests/slurm/run.py --only jobs,array      some of the scenarios

Scenarios, each on digits and on an audit of Adult rows bootstrapped to --samples:
threads (the reference), local (two processes), jobs (Slurm jobs, one cancelled in the middle),
walltime (Slurm kills the jobs at their limit), array (job array), requeue (a job that stops itself
and goes back into the queue) and scheduler (a scheduler that is killed; the run resumes).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.scale import bootstrap  # noqa: E402
from tests.crash.compare import differences  # noqa: E402

HPC = ROOT / "pipelines" / "hpc"
KREPES = [sys.executable, "-m", "krepes_ooc"]
SITE = "scheduler: slurm\njobs: 2\nmemory: 2GiB\nwalltime: '{walltime}'\npatience: 120\n"
WAIT = 900


class Case:
    """One audit: its recipe, its reference, and the workspaces of the scenarios."""

    def __init__(self, name: str, recipe: str, sets: list[str], folder: Path) -> None:
        self.name, self.recipe, self.folder = name, recipe, folder
        self.sets = [part for text in sets for part in ("--set", text)]

    @property
    def reference(self) -> Path:
        return self.folder / f"{self.name}-threads"

    def fresh(self, scenario: str) -> Path:
        workspace = self.folder / f"{self.name}-{scenario}"
        shutil.rmtree(workspace, ignore_errors=True)
        return workspace

    def command(self, workspace: Path, *more: str) -> list[str]:
        return [*KREPES, "run", self.recipe, "-w", str(workspace), *self.sets, "-q", *more]

    def run(self, workspace: Path, *more: str) -> None:
        subprocess.run(self.command(workspace, *more), check=True, cwd=ROOT)

    def check(self, workspace: Path) -> str:
        """What differs from threads; raises if anything does."""
        found = differences(self.reference, workspace)
        assert not found, found
        return "every stored bit equals threads"


def threads(case: Case, folder: Path) -> str:
    if not (case.reference / "report.html").exists():
        case.run(case.fresh("threads"), "--workers", "2")
    return "the reference"


def local(case: Case, folder: Path) -> str:
    workspace = case.fresh("local")
    case.run(workspace, "--cluster", "local", "--workers", "2")
    return case.check(workspace)


def jobs(case: Case, folder: Path) -> str:
    workspace, site = case.fresh("jobs"), folder / "site.yaml"
    site.write_text(SITE.format(walltime="00:30:00"))
    run = subprocess.Popen(case.command(workspace, "--cluster", str(site)), cwd=ROOT)
    wait_for(lambda: journalled(workspace) or run.poll() is not None, "a block in a journal")
    cancelled = running_jobs()[:1]
    subprocess.run(["scancel", "--signal=KILL", *cancelled], check=True)
    assert run.wait(WAIT) == 0
    return f"job {cancelled} killed; {case.check(workspace)}"


def walltime(case: Case, folder: Path) -> str:
    """Jobs whose limit is lowered under them while they work: Slurm kills them at once."""
    workspace, site = case.fresh("walltime"), folder / "site.yaml"
    site.write_text(SITE.format(walltime="00:30:00"))
    run = subprocess.Popen(case.command(workspace, "--cluster", str(site)), cwd=ROOT)
    wait_for(lambda: journalled(workspace) or run.poll() is not None, "a block in a journal")
    limited = running_jobs()
    for job in limited:
        subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=1"], check=True)
    assert run.wait(WAIT) == 0
    states = {job: state_of(job) for job in limited}
    return f"jobs {states} at a limit of 1 minute; {case.check(workspace)}"


def array(case: Case, folder: Path) -> str:
    workspace = case.fresh("array")
    for before, stage in ((None, "features"), ("audited", "kernel"), (None, "moments")):
        if before is not None:
            case.run(workspace, "--until", before, "--workers", "2")
        elif stage == "features":
            case.run(workspace, "--until", "pretrain", "--workers", "2")
        else:
            case.run(workspace, "--until", "kernel", "--workers", "2")
        script = [str(HPC / "slurm-array.sh"), case.recipe, stage, "-w", str(workspace), *case.sets]
        batch("--array=3,1,2", "--mem=2G", *script)
    case.run(workspace, "--workers", "2")
    return f"features, kernel and moments in 3 parts each; {case.check(workspace)}"


def requeue(case: Case, folder: Path) -> str:
    workspace = case.fresh("requeue")
    script = [str(HPC / "slurm-requeue.sh"), case.recipe, "-w", str(workspace), *case.sets]
    os.environ["KREPES_MAX_TIME"] = "20s"
    job = batch("--mem=4G", *script, "-q", nudge=True)
    return f"job {job} requeued {restarts(job)} times; {case.check(workspace)}"


def scheduler(case: Case, folder: Path) -> str:
    workspace = case.fresh("scheduler")
    address, port = "tcp://127.0.0.1:18786", "18786"
    cli = [sys.executable, "-m", "distributed.cli"]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    host = ["--host", "127.0.0.1"]
    head = subprocess.Popen(
        [*cli[:2], "distributed.cli.dask_scheduler", *host, "--port", port, "--no-dashboard"],
        **quiet,
    )
    worker = [*cli[:2], "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    hands = [subprocess.Popen([*worker, "--death-timeout", "20"], **quiet) for _ in range(2)]
    run = subprocess.Popen(case.command(workspace, "--cluster", address), cwd=ROOT)
    try:
        wait_for(lambda: journalled(workspace) or run.poll() is not None, "a block in a journal")
        head.send_signal(signal.SIGKILL)
        code = run.wait(WAIT)
        assert code == 75, f"exit {code}"
    finally:
        for process in (head, *hands):
            process.kill()
            process.wait()
    case.run(workspace, "--workers", "2")
    return f"exit 75, resumed on threads; {case.check(workspace)}"


SCENARIOS: dict[str, Callable[[Case, Path], str]] = {
    each.__name__: each for each in (threads, local, jobs, walltime, array, requeue, scheduler)
}


def journalled(workspace: Path) -> bool:
    """Whether a worker has written the first block of a stage."""
    journals = (workspace / ".krepes" / "stages").glob("*/journal-*.jsonl")
    return any(path.name != "journal-0000.jsonl" and path.stat().st_size for path in journals)


def running_jobs() -> list[str]:
    return said("squeue", "-h", "-t", "running", "-o", "%A").split()


def state_of(job: str) -> str:
    return next(
        (part[9:] for part in said("scontrol", "show", "job", job).split() if "JobState=" in part),
        "gone",
    )


def restarts(job: str) -> str:
    return next(
        part[9:] for part in said("scontrol", "show", "job", job).split() if "Restarts=" in part
    )


def batch(*arguments: str, nudge: bool = False) -> str:
    """Submit a script and wait until the queue is empty; a requeued job need not sit out its delay.

    Returns:
        The number of the job.
    """
    environment = {"KREPES": " ".join(KREPES), "PYTHONPATH": str(ROOT)}
    os.environ |= environment
    sbatch = ["sbatch", "--parsable", "-o", "/dev/null", f"--chdir={ROOT}", *arguments]
    job = said(*sbatch).strip()

    def ended() -> bool:
        if nudge:
            update = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
            subprocess.run(update, capture_output=True, check=False)
        return not said("squeue", "-h", "-j", job).strip()

    wait_for(ended, f"the end of job {job}")
    return job


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_for(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.2)


def cases(asked: argparse.Namespace) -> list[Case]:
    found = [Case("digits", "digits", [], asked.folder)]
    if asked.samples:
        table = asked.folder / f"adult-{asked.samples}.parquet"
        bootstrap(asked.adult, table, asked.samples)
        small = [
            f"source.path={table}",
            "network.arguments={inputs: 107, hidden: [32], outputs: 8}",
            "stages.pretrain.epochs=1",
            "stages.landmarks.count=64",
            "stages.spectrum.components=8",
            "stages.audited.audit=200",
            "stages.audited.fit=1000",
        ]
        found.append(Case(f"adult-{asked.samples}", "adult", small, asked.folder))
    return [case for case in found if not asked.case or case.name.startswith(asked.case)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--adult", type=Path, default=ROOT / ".cache/data/adult.parquet")
    parser.add_argument("--folder", type=Path, default=Path("slurm-test"))
    parser.add_argument("--only", default=",".join(SCENARIOS))
    parser.add_argument("--case", default="", help="digits or adult; default both")
    asked = parser.parse_args()
    asked.folder = asked.folder.resolve()
    asked.folder.mkdir(parents=True, exist_ok=True)
    start = [str(ROOT / "tests/slurm/cluster.sh"), "start", str(asked.folder / "slurm")]
    os.environ["SLURM_CONF"] = said(*start).strip().splitlines()[-1]
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        for case in cases(asked):
            for name in ("threads", *(n for n in asked.only.split(",") if n != "threads")):
                begun = time.monotonic()
                words = SCENARIOS[name](case, asked.folder)
                print(f"{case.name:14} {name:10} {time.monotonic() - begun:7.1f} s  {words}")
                sys.stdout.flush()
    finally:
        subprocess.run([start[0], "stop", start[2]], check=False)


if __name__ == "__main__":
    main()
