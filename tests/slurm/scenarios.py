"""Ways to spread an audit, each with its fault: no scenario passes without having seen it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.engine import outside
from tests.slurm.case import Case
from tests.slurm.commands import ROOT, WAIT, Watch, batch, said, wait_for

HPC = ROOT / "pipelines" / "hpc"
SITE = {"scheduler": "slurm", "jobs": 2, "memory": "2GiB", "walltime": "'00:30:00'"}


def threads(case: Case) -> str:
    """The reference of all others, and once more, to see that threads equal themselves."""
    workspace = case.fresh("again")
    case.run(workspace, "--workers", "1")
    return case.check(workspace)


def local(case: Case) -> str:
    """Two processes of a LocalCluster."""
    workspace = case.fresh("local")
    case.run(workspace, "--cluster", "local", "--workers", "2")
    return case.check(workspace)


def killed(case: Case) -> str:
    """A worker job whose processes are killed, as by a node that fails, and replaced."""
    case = case.longer()
    with Watch() as jobs:
        workspace, run = on_slurm(case, "killed")
        victim = busy(jobs, workspace, run)
        for pid in processes_of(victim):
            os.kill(pid, signal.SIGKILL)
        ended_well(case, workspace, run)
    assert "FAILED" in jobs.states[victim], jobs.states
    later = [job for job in jobs.ever("RUNNING") if int(job) > int(victim) and job != victim]
    assert len(jobs.ever("RUNNING")) >= 3, f"nobody replaced {victim}: {jobs.states}"
    return f"job {victim} {jobs.states[victim][-1]}, then job {later[-1]}; {case.check(workspace)}"


def walltime(case: Case) -> str:
    """Jobs that Slurm ends at their limit of a minute, while their workers compute."""
    case = case.longer()
    with Watch() as jobs:
        # The later line of a script's header wins: workers believe in half an hour.
        workspace, run = on_slurm(case, "walltime", directives="['--time=1']")
        ended_well(case, workspace, run)
    ended = jobs.ever("TIMEOUT")
    assert ended, f"no job met its walltime: {jobs.states}"
    return f"jobs {', '.join(ended)} TIMEOUT, {len(jobs.states)} jobs; {case.check(workspace)}"


def lifetime(case: Case) -> str:
    """Workers that leave before the limit of a minute, so that Slurm has nobody to end."""
    case = case.longer()
    with Watch() as jobs:
        workspace, run = on_slurm(case, "lifetime", walltime="'00:01:00'")
        ended_well(case, workspace, run)
    left = jobs.ever("COMPLETED")
    assert left, f"no worker left by itself: {jobs.states}"
    assert not jobs.ever("TIMEOUT"), jobs.states
    return f"jobs {', '.join(left)} left in time, 0 TIMEOUT; {case.check(workspace)}"


def suspended(case: Case) -> str:
    """A worker job that Slurm freezes, worker and nanny: it is named, given up and replaced."""
    case = case.longer()
    with Watch() as jobs:
        workspace, run = on_slurm(case, "suspended")
        victim = busy(jobs, workspace, run)
        said("scontrol", "suspend", victim)
        ended_well(case, workspace, run)
    assert "SUSPENDED" in jobs.states[victim], jobs.states
    lines = case.output(workspace).read_text().splitlines()
    told = [line for line in lines if "does not answer" in line or "started again" in line]
    assert told, "nobody was told of the frozen worker"
    assert len(jobs.ever("RUNNING")) >= 3, f"nobody replaced {victim}: {jobs.states}"
    return f"job {victim} SUSPENDED, '{told[0].strip()[:60]}...'; {case.check(workspace)}"


def array(case: Case) -> str:
    """Three parts of three stages: released one by one as 3, 1, 2, then all once more at once."""
    workspace = case.fresh("array")
    before = {"features": "", "kernel": "audited", "moments": "kernel"}
    with Watch() as jobs:
        for stage, last in before.items():
            if last:
                case.run(workspace, "--until", last, "--workers", "2")
            script = [str(HPC / "slurm-array.sh"), case.recipe, stage, "-w", str(workspace)]
            asked = ["--array=1-3", "--mem=2G"]
            job = batch("--hold", *asked, *script, *case.options)
            for number in (3, 1, 2):
                said("scontrol", "release", f"{job}_{number}")
                wait_for(lambda part=f"{job}_{number}": part in jobs.now("COMPLETED"), "a part")
            again = batch(*asked, *script, *case.options)
            parts = {f"{again}_{number}" for number in (1, 2, 3)}
            wait_for(lambda parts=parts: parts <= set(jobs.now("COMPLETED")), "the array again")
        done = jobs.now("COMPLETED")
    assert len(done) == 18, jobs.states
    case.run(workspace, "--workers", "2")
    return f"18 parts COMPLETED, as 3, 1, 2 and again; {case.check(workspace)}"


def requeue(case: Case) -> str:
    """A job that stops itself by --max-time and puts itself back until the audit is done."""
    # Digits alone are over too soon: their network is trained here, too.
    workspace = (case.bare if case.recipe == "digits" else case.fresh)("requeue")
    os.environ["KREPES_MAX_TIME"] = case.max_time
    with Watch() as jobs:
        script = [str(HPC / "slurm-requeue.sh"), case.recipe, "-w", str(workspace)]
        job = batch("--mem=4G", *script, *case.options, "-q")
        ends = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"}
        wait_for(lambda: ends & set(jobs.states.get(job, [])[-1:]), f"the end of job {job}")
    assert jobs.now("COMPLETED") == [job], jobs.states
    assert jobs.restarts[job] >= 1, f"job {job} was never requeued: {jobs.states[job]}"
    return f"job {job} Restarts={jobs.restarts[job]}, COMPLETED; {case.check(workspace)}"


def scheduler(case: Case) -> str:
    """A scheduler that is killed while workers compute: exit 75; the next run goes on."""
    workspace = case.fresh("scheduler")
    scratch = case.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    (scratch / "scheduler.json").unlink(missing_ok=True)
    with (
        outside.scheduler(scratch) as (head, address),
        outside.workers(address, scratch, 2),
    ):
        run = case.start(workspace, "--cluster", address)
        wait_for(lambda: blocks(workspace) or run.poll() is not None, "a block in a journal")
        head.send_signal(signal.SIGKILL)
        code = run.wait(WAIT)
    said_last = case.output(workspace).read_text().strip().splitlines()[-1]
    assert code == 75, f"exit {code}: {said_last}"
    assert "the scheduler is lost" in said_last, said_last
    assert not (workspace / "report.html").exists()
    case.run(workspace, "--cluster", "local", "--workers", "2")
    return f"exit 75 '{said_last[:60]}...', resumed; {case.check(workspace)}"


def refused(case: Case) -> str:
    """A partition that there is not: one line and exit 2, nothing is begun."""
    workspace, run = on_slurm(case, "refused", queue="nowhere")
    assert run.wait(WAIT) == 2
    line = case.output(workspace).read_text().strip().splitlines()[-1]
    assert "the queue refuses the job" in line, line
    assert "invalid partition specified: nowhere" in line, line
    return line


def on_slurm(case: Case, scenario: str, **site: object) -> tuple[Path, subprocess.Popen[str]]:
    """A run in the background whose workers are jobs."""
    workspace, path = case.fresh(scenario), case.folder / f"{scenario}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in {**SITE, **site}.items()))
    return workspace, case.start(workspace, "--cluster", str(path))


def busy(jobs: Watch, workspace: Path, run: subprocess.Popen[str]) -> str:
    """A job that runs, once jobs have put a block on disk."""
    wait_for(
        lambda: (blocks(workspace) and jobs.now("RUNNING")) or run.poll() is not None,
        "a block in a journal",
    )
    assert run.poll() is None, "the run was over before the fault"
    time.sleep(0.2)
    return jobs.now("RUNNING")[0]


def processes_of(job: str) -> list[int]:
    """The processes of a job: batch shell, nanny and worker."""
    rows = said("scontrol", "listpids", job).splitlines()[1:]
    return [int(row.split()[0]) for row in rows if int(row.split()[0]) > 0]


def blocks(workspace: Path) -> bool:
    """Whether workers have journalled a block."""
    return any(
        path.stat().st_size > 0
        for path in (workspace / ".krepes/stages").glob("features/**/journal*.jsonl")
    )


def ended_well(case: Case, workspace: Path, run: subprocess.Popen[str]) -> None:
    code = run.wait(WAIT)
    assert code == 0, f"exit {code}: {case.output(workspace).read_text()[-2000:]}"


SCENARIOS: dict[str, Callable[[Case], str]] = {
    each.__name__: each
    for each in (
        threads,
        local,
        killed,
        walltime,
        lifetime,
        suspended,
        array,
        requeue,
        scheduler,
        refused,
    )
}
