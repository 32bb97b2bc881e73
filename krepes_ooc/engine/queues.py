"""How a computing site is asked for workers: the YAML files in pipelines/hpc, or one's own."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from krepes_ooc import catalogue
from krepes_ooc.blocks import format_bytes, parse_bytes
from krepes_ooc.errors import UsageError
from krepes_ooc.settings import read_settings, setting

LIFETIME_MARGIN, STAGGER = 0.1, 0.05  # of the walltime
SHORTEST_MARGIN = 30  # seconds


@dataclass(frozen=True)
class Site:
    """The keys of a site file."""

    scheduler: Literal["slurm", "pbs", "sge", "lsf"] = setting(about="the queueing system")
    about: str = setting("", about="one line for people")
    jobs: int = setting(2, about="jobs that are kept running or queued", minimum=1)
    processes: int = setting(1, about="worker processes of one job, a core each", minimum=1)
    memory: str = setting("4GiB", about="memory of one worker process")
    walltime: str = setting("01:00:00", about="limit of one job: [HH:]MM:SS")
    interface: str = setting(
        "lo", about="network between jobs and this machine; lo: this machine alone"
    )
    queue: str = setting("", about="queue or partition; default: the site's own")
    account: str = setting("", about="account or project that is charged")
    directives: tuple[str, ...] = setting((), about="further lines of the job's header")
    prologue: tuple[str, ...] = setting((), about="shell lines before a worker starts")
    python: str = setting("", about="Python on the nodes; default: this one")
    logs: str = setting("", about="folder for the jobs' output; default: in the workspace")
    scratch: str = setting("/tmp", about="folder on the nodes for a worker's own small files")
    patience: int = setting(3600, about="seconds to wait while there is no worker", minimum=1)

    @property
    def memory_bytes(self) -> int:
        """Memory of one worker process."""
        return parse_bytes(self.memory)

    @property
    def walltime_seconds(self) -> int:
        """The limit of one job.

        Raises:
            UsageError: it has another form than [HH:]MM:SS.
        """
        if not re.fullmatch(r"(\d+:)?[0-5]?\d:[0-5]\d", self.walltime):
            raise UsageError(f"walltime {self.walltime!r}", expected="[HH:]MM:SS, such as 01:00:00")
        parts = [int(part) for part in self.walltime.split(":")]
        return sum(part * 60**i for i, part in enumerate(reversed(parts)))

    @property
    def lifetime_seconds(self) -> tuple[int, int]:
        """When a worker leaves by itself, before its job is killed, and how much that varies."""
        wall = self.walltime_seconds
        margin = max(math.ceil(LIFETIME_MARGIN * wall), SHORTEST_MARGIN)
        stagger = math.ceil(STAGGER * wall)
        return max(1, wall - margin - stagger), stagger


def read_site(path: Path, memory: int | None = None) -> Site:
    """Read a site file; ``memory`` is ``--memory``, which goes before what the file says.

    Raises:
        UsageError: there is no such file, or a size or time has another form.
        RecipeError: an unknown key, or a value that is not allowed.
    """
    values = catalogue.load_yaml(path)
    if memory is not None:
        values["memory"] = f"{memory}B"
    site = read_settings(Site, values, str(path))
    _ = site.memory_bytes, site.walltime_seconds
    return site


def job_script(site: Site, scheduler: str = "tcp://SCHEDULER:PORT") -> str:
    """The batch script of one job.

    Raises:
        UsageError: dask-jobqueue is not installed.
    """
    job: Any = cluster_class(site).job_cls
    script: str = job(scheduler, name="krepes", **job_settings(site)).job_script()
    return script


def cluster_class(site: Site) -> Any:
    """The class of dask-jobqueue for a queueing system.

    Raises:
        UsageError: dask-jobqueue is not installed.
    """
    try:
        import dask_jobqueue
    except ImportError:
        raise UsageError(
            "dask-jobqueue is not installed",
            where="--cluster",
            expected="the extra hpc",
            advice="pip install 'krepes-ooc[hpc]'",
        ) from None
    return getattr(dask_jobqueue, f"{site.scheduler.upper()}Cluster")


def job_settings(site: Site) -> dict[str, Any]:
    """What dask-jobqueue is told about one job."""
    lifetime, stagger = site.lifetime_seconds
    memory = site.memory_bytes * site.processes
    account = {"slurm": "account", "pbs": "account"}.get(site.scheduler, "project")
    limit = site.walltime if site.scheduler != "lsf" else _hours_and_minutes(site)
    return {
        "cores": site.processes,
        "processes": site.processes,
        "memory": format_bytes(memory).replace(" ", ""),
        "walltime": limit,
        "queue": site.queue or None,
        account: site.account or None,
        "interface": site.interface,
        "job_extra_directives": list(site.directives),
        "job_script_prologue": [*_one_thread(), *site.prologue],
        "python": site.python or sys.executable,
        "local_directory": site.scratch,
        "log_directory": site.logs or None,
        "job_name": "krepes",
        "death_timeout": 60,
        # A worker that leaves in time hands its tasks back; one at its walltime is killed.
        "worker_extra_args": [
            *("--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{stagger}s"),
            "--no-dashboard",
        ],
    }


def _one_thread() -> list[str]:
    """Environment of a worker: one thread, and a monitor that leaves mapped files alone.

    Distributed counts the pages of mapped files as memory of the worker; the budget binds instead.
    """
    monitor = [
        f"export DASK_DISTRIBUTED__WORKER__MEMORY__{name}=False"
        for name in ("TARGET", "SPILL", "PAUSE", "TERMINATE")
    ]
    return [*monitor, "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1"]


def _hours_and_minutes(site: Site) -> str:
    minutes = math.ceil(site.walltime_seconds / 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
