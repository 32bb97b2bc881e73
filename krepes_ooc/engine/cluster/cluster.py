"""Cluster: worker processes behind one scheduler; those that are lost are replaced."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krepes_ooc.engine.cluster.array_transfer import arrays_as_files
from krepes_ooc.engine.cluster.watchdog import WorkerWatchdog
from krepes_ooc.engine.cluster.worker import TaskPayload, TaskResult
from krepes_ooc.engine.executor import Graph
from krepes_ooc.errors import KrepesError, StageFailed, Stopped, UsageError

POLL_SECONDS = 0.25
RENEW_SECONDS = 5.0
CONNECT_SECONDS = 10
SCHEDULER_SECONDS = 30
BROADCAST_SECONDS = 10


@dataclass
class Cluster:
    """Worker processes that serve all stages of a run.

    Args:
        client: of Distributed.
        n_workers: processes wanted.
        renew: asks for workers in place of lost ones, if this cluster can.
        refusals: messages of the queue for jobs that it refused.
        patience: seconds to wait while there is no worker.
        stall_seconds: between two polls of the workers while no task finishes.
        transfer_seconds: for a worker to send a finished result.
        pages: address of the scheduler's pages; empty: it has none.
    """

    client: Any
    n_workers: int
    renew: Callable[[], None] = lambda: None
    refusals: list[str] = field(default_factory=list)
    patience: float = 60.0
    stall_seconds: float = 30.0
    transfer_seconds: float = 10.0
    pages: str = ""
    _last_poll: float = 0.0
    _last_renewal: float = 0.0
    _last_worker: float = field(default_factory=time.monotonic)

    def share_devices(self, visible: Sequence[str]) -> None:
        """Show every worker of this machine one device, those that join later too."""
        from krepes_ooc.engine.cluster.worker_plugins import OneGpuPerWorker

        self.client.register_plugin(OneGpuPerWorker(visible))

    @contextlib.contextmanager
    def publish(self, folder: Path, key: str, payload: TaskPayload) -> Iterator[None]:
        """Install a payload on every worker, those that join later too, for the time of a context.

        A worker that does not answer in time is frozen; it is restarted while tasks run.

        Raises:
            KrepesError: a worker cannot install it: another version, or it sees no workspace.
        """
        from krepes_ooc.engine.cluster.worker_plugins import PayloadPlugin

        plugin = PayloadPlugin(str(folder), key, payload)
        # OSError: a worker did not answer in time.
        with _as_krepes_errors(), arrays_as_files(folder), contextlib.suppress(OSError):
            self._broadcast(self.client.register_plugin, plugin, name=key)
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                self._broadcast(self.client.unregister_worker_plugin, key)

    def _broadcast(self, method: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        # In the event loop Distributed returns a coroutine, which a frozen worker cannot block.
        self.client.sync(method, *arguments, callback_timeout=BROADCAST_SECONDS, **keywords)

    def compute(
        self,
        graph: Graph,
        names: Sequence[str],
        check: Callable[[], None],
        notify: Callable[[str], None],
    ) -> Iterator[tuple[str, TaskResult]]:
        """Names and results as they come; lost workers are replaced and their tasks repeated.

        Workers that hang, or do not send a result, are reported to ``notify`` and restarted.

        Raises:
            Stopped: ``check`` raises it, or the scheduler is lost, or no worker came.
            UsageError: the queue refuses the jobs.
            StageFailed: a task killed every worker that tried it.
        """
        self._last_worker = time.monotonic()
        with _as_krepes_errors():
            futures = self.client.get(graph, list(names), sync=False)
        waiting = dict(zip(names, futures, strict=True))
        watchdog = WorkerWatchdog(self.client, notify, self.stall_seconds, self.transfer_seconds)
        try:
            while waiting:
                check()
                progressed = False
                for name in [name for name in waiting if _is_done(waiting[name])]:
                    result = self._result(waiting[name], watchdog)
                    if result is not None:
                        # A result that has arrived need not be computed again if its worker leaves.
                        waiting.pop(name).release()
                        progressed = True
                        yield name, result
                        watchdog.on_progress()
                # Workers are polled only while nothing finishes: it costs messages.
                if not progressed:
                    self._check_workers(watchdog)
                    watchdog.poll()
                    time.sleep(POLL_SECONDS / 5)
        finally:
            for future in waiting.values():
                with contextlib.suppress(Exception):
                    future.cancel()

    def _result(self, future: Any, watchdog: WorkerWatchdog) -> TaskResult | None:
        """A finished result; None if its worker does not send it in time."""
        if future.status == "cancelled":
            raise _lost()
        # An error comes from the task: an OSError among them says nothing of connections.
        failed = future.status == "error"
        with _as_krepes_errors(), contextlib.nullcontext() if failed else _connections():
            try:
                result: TaskResult = future.result(timeout=watchdog.transfer_seconds)
            except TimeoutError:
                if failed:
                    raise
            else:
                return result
        # Computed, but not sent: the workers that have it in memory do not answer.
        owners = self._ask(self.client.scheduler.who_has, keys=[future.key])[future.key]
        if owners and future.status == "finished":
            watchdog.on_no_answer(sorted(owners))
        return None

    def _ask(self, method: Callable[..., Any], **keywords: Any) -> Any:
        """Answer of the scheduler; one that does not answer counts as lost.

        Raises:
            Stopped: it does not answer.
        """
        with _as_krepes_errors(), _connections():
            return self.client.sync(method, callback_timeout=SCHEDULER_SECONDS, **keywords)

    def _check_workers(self, watchdog: WorkerWatchdog) -> None:
        """Replace lost workers; stop where none can be expected any more.

        Raises:
            Stopped: the scheduler is lost, or no worker came in time.
            UsageError: the queue refuses the jobs.
        """
        now = time.monotonic()
        if now - self._last_poll < POLL_SECONDS:
            return
        self._last_poll = now
        if self.client.status not in ("running", "newly-created"):
            raise _lost()
        workers = self._ask(self.client.scheduler.identity)["workers"]
        watchdog.on_workers(workers, self.n_workers)
        # Without any worker: the queue refuses jobs, or lets them wait.
        if workers:
            self._last_worker = now
        elif self.refusals:
            raise UsageError(
                f"the queue refuses the job: {self.refusals[-1]}",
                where="--cluster",
                expected="a queue that takes the script of krepes run --print-job",
                advice="mend the site file",
            )
        elif now - self._last_worker > self.patience:
            raise Stopped(
                f"no worker came within {self.patience:.0f} s",
                where="--cluster",
                advice="look at the queue; run the same command again to resume",
            )
        if len(workers) < self.n_workers and now - self._last_renewal > RENEW_SECONDS:
            self._last_renewal = now
            self.renew()


@contextlib.contextmanager
def _as_krepes_errors() -> Iterator[None]:
    """Turn the errors of Distributed into those of krepes, one line each.

    Raises:
        StageFailed: a task killed every worker that tried it.
        Stopped: the scheduler is lost.
        UsageError: a worker has another krepes_ooc.
    """
    import distributed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    try:
        yield
    except KrepesError:
        raise
    except distributed.KilledWorker as error:
        raise StageFailed(
            f"a task killed every worker that tried it, the last one {error.last_worker}",
            where="--cluster",
            expected="workers that live for one task",
            advice="look at their logs; give workers more --memory or a longer walltime",
        ) from error
    except (CommClosedError, FutureCancelledError, TimeoutError, ConnectionError) as error:
        raise _lost() from error
    except (ImportError, AttributeError) as error:
        # Unpickling looks functions up by name, which another version may not have.
        raise UsageError(
            f"a worker cannot load the work: {error}",
            where="--cluster",
            expected="the same krepes_ooc as here",
            advice="install the same version where the workers start",
        ) from error


def _is_done(future: Any) -> bool:
    """Whether there is a result or an error; one lost with its worker is computed again."""
    return future.status not in ("pending", "lost")


@contextlib.contextmanager
def _connections() -> Iterator[None]:
    """Turn OSError, which Distributed raises for a refused connection, into a lost scheduler.

    Raises:
        Stopped: no connection.
    """
    try:
        yield
    except TimeoutError:
        raise
    except OSError as error:
        raise _lost() from error


def _lost() -> Stopped:
    return Stopped(
        "stopped, because the scheduler is lost",
        where="--cluster",
        advice="nothing is lost on disk: run the same command again to resume",
    )
