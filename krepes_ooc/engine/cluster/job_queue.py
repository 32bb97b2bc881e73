"""Jobs of a queue that serve as workers, and are asked for again when they are gone."""

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
    """Names of the workers that came, and of those that are here."""

    name = "krepes-roll"

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
    """A scheduler in this process, and the jobs that look for it; all go at the end.

    Args:
        site: the queue and what is asked of it.
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
        roll = WorkerRegistry()
        cluster.scheduler.add_plugin(roll)
        cluster.scale(jobs=site.jobs)

        def renew() -> None:
            if site.processes > 1:
                cluster.loop.add_callback(_strike_off, cluster, site.processes, roll)
            cluster.loop.add_callback(cluster.scale, jobs=site.jobs)

        yield Cluster(client, site.jobs * site.processes, renew, refusals, site.patience)


async def _strike_off(cluster: Any, processes: int, roll: WorkerRegistry) -> None:
    """Forget the jobs all of whose processes left: Distributed knows those of one process alone."""
    for job in list(cluster.workers):
        names = {f"{job}-{number}" for number in range(processes)}
        if names & roll.joined and not names & roll.present:
            roll.joined -= names
            await cluster.workers.pop(job).close()


def _recording_refusals(job: Any, refusals: list[str]) -> Any:
    """The class of jobs, with a memory for why the queue did not take one."""

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
    """What the queue's command said, in one line."""
    if isinstance(error, FileNotFoundError):
        return f"no command {error.filename!r} on this machine"
    lines = str(error).partition("stderr:")[2].strip() or str(error)
    return " ".join(lines.split())
