"""Jobs of a queueing system as workers; lost ones are submitted again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Client, SchedulerPlugin
from distributed.deploy.spec import ProcessInterface

from krepes_ooc.engine.cluster.cluster import Cluster
from krepes_ooc.engine.cluster.site_file import Site, cluster_class, job_settings


class WorkerRegistry(SchedulerPlugin):
    """Scheduler plugin that records the names of workers that joined, and of those present."""

    name = "krepes-worker-registry"

    def __init__(self) -> None:
        self.joined: set[str] = set()
        self._names: dict[str, str] = {}

    @property
    def present(self) -> set[str]:
        """Names of the workers that did not leave."""
        return set(self._names.values())

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Called by the scheduler."""
        self._names[worker] = str(scheduler.workers[worker].name)
        self.joined.add(self._names[worker])

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Called by the scheduler."""
        self._names.pop(worker, None)


@contextlib.contextmanager
def open_jobs(site: Site, logs: Path, scheduler: dict[str, Any]) -> Iterator[Cluster]:
    """A scheduler in this process, and the jobs that connect to it; all end with the context.

    Args:
        site: the queue and the settings of its jobs.
        logs: folder for the output of jobs.
        scheduler: its options.

    Raises:
        UsageError: dask-jobqueue is not installed.
    """
    refusals: list[str] = []
    settings = job_settings(site)
    settings["log_directory"] = settings["log_directory"] or str(logs)
    kind = cluster_class(site)
    with (
        kind(
            job_cls=_recording_refusals(kind.job_cls, refusals),
            scheduler_options=scheduler,
            silence_logs="critical",
            **settings,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,  # type: ignore[no-untyped-call]
    ):
        registry = WorkerRegistry()
        cluster.scheduler.add_plugin(registry)
        cluster.scale(jobs=site.jobs)

        # Called in another thread than the event loop, to which all of this belongs.
        def renew() -> None:
            if site.processes > 1:
                cluster.loop.add_callback(_drop_finished_jobs, cluster, site.processes, registry)
            cluster.loop.add_callback(cluster.scale, jobs=site.jobs)

        yield Cluster(client, site.jobs * site.processes, renew, refusals, site.patience)


async def _drop_finished_jobs(cluster: Any, processes: int, registry: WorkerRegistry) -> None:
    """Drop the jobs all of whose processes left: Distributed does so for one process a job only."""
    for job in list(cluster.workers):
        names = {f"{job}-{number}" for number in range(processes)}
        # A job that waits in the queue has not joined yet.
        if names & registry.joined and not names & registry.present:
            registry.joined -= names
            await cluster.workers.pop(job).close()


def _recording_refusals(job: Any, refusals: list[str]) -> Any:
    """The class of jobs, which also records why the queue refused one."""

    class Job(job):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, ValueError, OSError) as error:
                # Counted as started: the error would be lost in Distributed's event loop.
                refusals.append(_refusal_text(error))
                await ProcessInterface.start(self)  # type: ignore[no-untyped-call]

    return Job


def _refusal_text(error: Exception) -> str:
    """Output of the queue's command, in one line."""
    if isinstance(error, FileNotFoundError):
        return f"no command {error.filename!r} on this machine"
    # dask-jobqueue puts the output of the command behind "stderr:".
    lines = str(error).partition("stderr:")[2].strip() or str(error)
    return " ".join(lines.split())
