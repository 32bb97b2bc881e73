"""Sources of workers: this machine, the queue of a computing site, or a scheduler address."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krepes_ooc.engine.cluster.cluster import CONNECT_SECONDS, Cluster
from krepes_ooc.engine.cluster.site_file import ADDRESSES, Site, read_site
from krepes_ooc.engine.cluster.tls import Certificates, temporary_security
from krepes_ooc.errors import StageFailed, UsageError

LOOPBACK = "127.0.0.1"
# Settings of Distributed while krepes uses it. Mapped files count as memory there, so its monitor
# would pause a healthy worker; the budget binds instead. A task is not blamed for a walltime.
SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.scheduler.allowed-failures": 50,
    "distributed.scheduler.worker-ttl": "2 minutes",
    "distributed.deploy.lost-worker-timeout": "3s",
    "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    "distributed.admin.large-graph-warning-threshold": "1GB",
    # Pages that show what runs to everybody who reaches their port.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
PAGES = ("distributed.http.scheduler.info", "distributed.http.statics")


@dataclass(frozen=True)
class ClusterSpec:
    """Parsed value of ``--cluster``.

    Args:
        kind: local, site or address.
        address: of a scheduler.
        site: a computing site.
        memory: of one worker in bytes, if it is known before they start.
    """

    kind: str
    address: str = ""
    site: Site | None = None
    memory: int | None = None

    @property
    def certificates(self) -> Certificates | None:
        """Files that encrypt all connections, if a site file names them."""
        return None if self.site is None else self.site.certificates

    @property
    def pages(self) -> dict[str, Any]:
        """Settings of Distributed for the pages that a site file asks for, encrypted."""
        if self.site is None or not self.site.info_pages or self.certificates is None:
            return {}
        tls = {"ca-file": self.certificates.ca, "cert": self.certificates.cert}
        tls["key"] = self.certificates.key
        prefix = "distributed.scheduler.dashboard.tls"
        return {
            "distributed.scheduler.http.routes": list(PAGES),
            **{f"{prefix}.{name}": str(path) for name, path in tls.items()},
        }


def parse_cluster(text: str, memory: int | None) -> ClusterSpec:
    """Parse a value of ``--cluster``.

    Args:
        text: ``local``, the address of a scheduler, or the path of a site file.
        memory: ``--memory`` in bytes, if it was given.

    Raises:
        UsageError: it is none of these.
        RecipeError: the site file has an unknown key or a wrong value.
    """
    if text == "local":
        return ClusterSpec("local", memory=memory)
    if text.startswith(ADDRESSES):
        return ClusterSpec("address", address=text, memory=memory)
    if not text.endswith((".yaml", ".yml")):
        raise UsageError(
            f"{text!r}",
            where="--cluster",
            expected="local, a scheduler such as tcp://host:8786, or the path of a site's .yaml",
        )
    # A site file may also stand for this machine or for a running scheduler.
    site = read_site(Path(text), memory)
    if site.scheduler == "local":
        return ClusterSpec("local", site=site, memory=memory)
    if site.scheduler == "running":
        return ClusterSpec("address", site.address, site, site.memory_bytes)
    return ClusterSpec("site", site=site, memory=site.memory_bytes)


@contextlib.contextmanager
def open_cluster(spec: ClusterSpec, n_workers: int, logs: Path) -> Iterator[Cluster]:
    """Start or join workers; those that were started end with the context.

    Args:
        spec: local, site or address.
        n_workers: processes on this machine; a site file has another number.
        logs: folder for the output of jobs.

    Raises:
        UsageError: the scheduler cannot be reached, or a library is not installed.
        StageFailed: a worker process of this machine ends before it begins.
    """
    import dask
    import distributed  # noqa: F401  its defaults come first: what is set here is unset again

    # A lost scheduler is one line of krepes, not pages of Distributed's log.
    with dask.config.set(SETTINGS | spec.pages), _quiet("distributed"):
        if spec.kind == "local":
            opened = _local(n_workers, spec.certificates)
        elif spec.kind == "site" and spec.site is not None:
            opened = _jobs(spec.site, logs)
        else:
            opened = _joined(spec.address, spec.certificates)
        with opened as cluster:
            if spec.pages:
                port = cluster.client.scheduler_info()["services"]["dashboard"]
                cluster.pages = f"https://{LOOPBACK}:{port}/info/main/workers.html"
            yield cluster


@contextlib.contextmanager
def _local(n_workers: int, tls: Certificates | None) -> Iterator[Cluster]:
    from distributed import Client, LocalCluster

    # Without certificates of its own an audit makes some, which nobody else has.
    security = tls.security() if tls else temporary_security()
    # One thread a process, no memory monitor: the budget has counted what each may take.
    with contextlib.ExitStack() as opened:
        try:
            cluster = opened.enter_context(
                LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=n_workers,
                    threads_per_worker=1,
                    processes=True,
                    host=LOOPBACK,
                    protocol="tls://",
                    security=security,
                    memory_limit=None,
                    silence_logs=logging.CRITICAL,
                    scheduler_kwargs=_no_dashboard(),
                )
            )
        except (RuntimeError, OSError) as error:
            # A process that is killed at once, by the system's memory killer for one.
            raise StageFailed(
                "a worker process ended before it began",
                where="--cluster local",
                expected=f"{n_workers} processes that start",
                advice="look at the memory that is free, take fewer --workers, and run again",
            ) from error
        client = opened.enter_context(
            Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]
        )
        yield Cluster(client, n_workers)


@contextlib.contextmanager
def _jobs(site: Site, logs: Path) -> Iterator[Cluster]:
    from krepes_ooc.engine.cluster.job_queue import open_jobs

    with open_jobs(site, logs, _no_dashboard()) as cluster:
        yield cluster


@contextlib.contextmanager
def _joined(address: str, tls: Certificates | None) -> Iterator[Cluster]:
    from distributed import Client

    try:
        client = Client(  # type: ignore[no-untyped-call]
            address,
            timeout=CONNECT_SECONDS,
            set_as_default=False,
            security=tls.security() if tls else None,
        )
    except (TypeError, RuntimeError) as error:  # no certificate, where the address asks for one
        raise UsageError(
            f"cannot connect to {address}: {' '.join(str(error).split())}",
            where="--cluster",
            expected="certificates for tls://",
            advice="name them in a site file, see pipelines/hpc/running.yaml",
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no scheduler answers at {address} within {CONNECT_SECONDS} s",
            where="--cluster",
            expected="the address of a running dask scheduler",
            advice="look at what the scheduler printed when it started",
        ) from error
    # As many as are there now; others may join and leave while the run goes on.
    with client:
        yield Cluster(client, max(1, len(client.scheduler_info(n_workers=-1)["workers"])))


def _no_dashboard() -> dict[str, Any]:
    """Options of a scheduler without a dashboard; its pages, if any, are for this machine alone."""
    return {"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence the loggers of a library, for the time of a context."""
    # Each logger has its level, so silencing the parent is not enough.
    known = [n for n in logging.root.manager.loggerDict if n == name or n.startswith(f"{name}.")]
    before = {logger: logger.level for logger in map(logging.getLogger, (name, *known))}
    for logger in before:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
