"""Site files: YAML that describes how a computing site starts workers (pipelines/hpc, or yours)."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from krepes_ooc.core import resources
from krepes_ooc.core.blocks import format_bytes, parse_bytes
from krepes_ooc.core.settings import read_settings, setting
from krepes_ooc.engine.cluster.tls import KEYS, Certificates, read_certificates
from krepes_ooc.errors import UsageError

ADDRESSES = ("tcp://", "tls://", "ucx://")
LIFETIME_MARGIN = 0.1  # of the walltime
STAGGER = 0.05  # of the walltime
SHORTEST_MARGIN = 30  # seconds


@dataclass(frozen=True)
class Site:
    """The keys of a site file."""

    scheduler: Literal["slurm", "pbs", "sge", "lsf", "local", "running"] = setting(
        about="the queueing system; local: this machine; running: a scheduler that runs already"
    )
    about: str = setting("", about="one line for people")
    address: str = setting("", about="of a scheduler that runs already")
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
    tls_ca: str = setting("", about="certificate of the authority: with it, all is encrypted")
    tls_cert: str = setting("", about="certificate of scheduler, workers and this process")
    tls_key: str = setting("", about="private key of the certificate")
    info_pages: bool = setting(
        False, about="the scheduler's pages on what runs, encrypted, for browsers of this machine"
    )

    @property
    def certificates(self) -> Certificates | None:
        """Files that encrypt all connections, where they are named; see ``read_site``."""
        if not self.tls_ca:
            return None
        return Certificates(Path(self.tls_ca), Path(self.tls_cert), Path(self.tls_key))

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
        """Seconds until a worker leaves by itself, before its job is killed, and their spread."""
        # Spread, so that not all workers leave at once.
        wall = self.walltime_seconds
        margin = max(math.ceil(LIFETIME_MARGIN * wall), SHORTEST_MARGIN)
        stagger = math.ceil(STAGGER * wall)
        return max(1, wall - margin - stagger), stagger


def read_site(path: Path, memory: int | None = None) -> Site:
    """Read a site file; ``memory`` is ``--memory``, which goes before what the file says.

    Raises:
        UsageError: there is no such file, a size or time has another form, a key has no meaning
            for this kind of site, or a certificate cannot be used.
        RecipeError: an unknown key, or a value that is not allowed.
    """
    values = resources.load_yaml(path)
    given = set(values)
    if memory is not None:
        values["memory"] = f"{memory}B"
    site = read_settings(Site, values, str(path))
    # Sizes and times are parsed now, so that a wrong one is an error of the file.
    _ = site.memory_bytes, site.walltime_seconds
    _refuse_idle_keys(site, given, str(path))
    files = {key: getattr(site, key) for key in KEYS}
    tls = read_certificates(files, path.parent, str(path))
    if tls is None:
        return site
    # Absolute paths: jobs start in another folder.
    return replace(site, tls_ca=str(tls.ca), tls_cert=str(tls.cert), tls_key=str(tls.key))


def _refuse_idle_keys(site: Site, given: set[str], where: str) -> None:
    """Refuse keys without effect for this kind of site, open pages, and a wrong address.

    Raises:
        UsageError: naming the key.
    """
    always = {"scheduler", "about", *KEYS}
    read = {"local": always | {"info_pages"}, "running": always | {"address", "memory"}}
    queue = {field.name for field in fields(Site)} - {"address"}
    if idle := sorted(given - read.get(site.scheduler, queue)):
        raise UsageError(
            f"{idle[0]} has no meaning beside scheduler {site.scheduler}",
            where=where,
            expected="one of " + ", ".join(sorted(read.get(site.scheduler, queue))),
        )
    if site.info_pages and not any(getattr(site, key) for key in KEYS):
        raise UsageError(
            "info_pages without certificates", where=where, expected=f"all of {', '.join(KEYS)}"
        )
    # Certificates have no effect on an unencrypted address.
    wanted = ("tls://",) if any(getattr(site, key) for key in KEYS) else ADDRESSES
    if site.scheduler == "running" and not site.address.startswith(wanted):
        raise UsageError(
            f"address {site.address!r}",
            where=where,
            expected=f"the address of a running scheduler, {wanted[0]}HOST:PORT",
        )


def job_script(site: Site, scheduler: str = "") -> str:
    """The batch script of one job.

    Raises:
        UsageError: dask-jobqueue is not installed, or the site has no queue.
    """
    if site.scheduler in ("local", "running"):
        raise UsageError(
            f"scheduler {site.scheduler} has no jobs",
            where="--print-job",
            expected="the file of a site with a queue",
        )
    scheduler = scheduler or f"{'tls' if site.certificates else 'tcp'}://SCHEDULER:PORT"
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
    """Settings of one job for dask-jobqueue."""
    # The queueing systems differ in a keyword and in the form of a walltime.
    lifetime, stagger = site.lifetime_seconds
    tls = site.certificates
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
        **({"security": tls.security(), "protocol": "tls://"} if tls else {}),
        # A worker that leaves in time hands its tasks back; one at its walltime is killed.
        "worker_extra_args": [
            *("--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{stagger}s"),
            "--no-dashboard",
        ],
    }


def _one_thread() -> list[str]:
    """Environment of a worker: one thread, no pages, a monitor that leaves mapped files alone.

    Distributed counts the pages of mapped files as memory of the worker; the budget binds instead.
    """
    monitor = [
        f"export DASK_DISTRIBUTED__WORKER__MEMORY__{name}=False"
        for name in ("TARGET", "SPILL", "PAUSE", "TERMINATE")
    ]
    pages = "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'"
    return [*monitor, pages, "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1"]


def _hours_and_minutes(site: Site) -> str:
    minutes = math.ceil(site.walltime_seconds / 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
