"""Worker processes behind one scheduler: they compute graphs, and are replaced when they go."""

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
HAND_OUT_SECONDS = 10


@dataclass
class Cluster:
    """Worker processes that stay while the stages of a run follow each other.

    Args:
        client: of Distributed.
        n_workers: processes wanted.
        renew: asks for workers that are gone, if this cluster can.
        refusals: what the queue said to jobs it did not take.
        patience: seconds to wait while there is no worker.
        stall_seconds: between two looks at workers while no task finishes.
        hand_over_seconds: for a worker to hand a finished result over.
    """

    client: Any
    n_workers: int
    renew: Callable[[], None] = lambda: None
    refusals: list[str] = field(default_factory=list)
    patience: float = 60.0
    stall_seconds: float = 30.0
    hand_over_seconds: float = 10.0
    _looked: float = 0.0
    _renewed: float = 0.0
    _seen: float = field(default_factory=time.monotonic)

    def share_devices(self, visible: Sequence[str]) -> None:
        """Let every worker of this machine see one device of its own, those that join later too."""
        from krepes_ooc.engine.cluster.worker_plugins import OneGpuPerWorker

        self.client.register_plugin(OneGpuPerWorker(visible))

    @contextlib.contextmanager
    def publish(self, folder: Path, key: str, work: TaskPayload) -> Iterator[None]:
        """Work at every worker, those that join later too.

        A worker that does not take it in time is frozen, and dealt with when tasks run.

        Raises:
            KrepesError: a worker cannot take it: another version, or it sees no workspace.
        """
        from krepes_ooc.engine.cluster.worker_plugins import PayloadPlugin

        lent = PayloadPlugin(str(folder), key, work)
        with self._told(), arrays_as_files(folder), contextlib.suppress(OSError):
            self._hand_out(self.client.register_plugin, lent, name=key)
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                self._hand_out(self.client.unregister_worker_plugin, key)

    def _hand_out(self, what: Callable[..., Any], *given: Any, **named: Any) -> None:
        # Inside the event loop Distributed gives a coroutine, which a frozen worker cannot hold up.
        self.client.sync(what, *given, callback_timeout=HAND_OUT_SECONDS, **named)

    def compute(
        self,
        graph: Graph,
        names: Sequence[str],
        check: Callable[[], None],
        tell: Callable[[str], None],
    ) -> Iterator[tuple[str, TaskResult]]:
        """Results by name as they come; lost workers are replaced and their tasks repeated.

        Workers that do nothing, or keep a result to themselves, are told of and started again.

        Raises:
            Stopped: ``check`` says so, or the scheduler is lost, or no worker came.
            UsageError: the queue refuses the jobs.
            StageFailed: a task killed every worker that tried it.
        """
        self._seen = time.monotonic()
        with self._told():
            futures = self.client.get(graph, list(names), sync=False)
        waiting = dict(zip(names, futures, strict=True))
        stalls = WorkerWatchdog(self.client, tell, self.stall_seconds, self.hand_over_seconds)
        try:
            while waiting:
                check()
                moved = False
                for name in [name for name in waiting if _is_done(waiting[name])]:
                    part = self._result(waiting[name], stalls)
                    if part is not None:
                        # What is here need not be computed again when its worker leaves.
                        waiting.pop(name).release()
                        moved = True
                        yield name, part
                        stalls.on_progress()
                if not moved:
                    self._look_after(stalls)
                    stalls.poll()
                    time.sleep(POLL_SECONDS / 5)
        finally:
            for future in waiting.values():
                with contextlib.suppress(Exception):
                    future.cancel()

    def _result(self, future: Any, stalls: WorkerWatchdog) -> TaskResult | None:
        """A finished result; None if the worker that holds it does not hand it over."""
        if future.status == "cancelled":
            raise _lost()
        failed = future.status == "error"
        with self._told(), contextlib.nullcontext() if failed else _connections():
            try:
                part: TaskResult = future.result(timeout=stalls.hand_over_seconds)
            except TimeoutError:
                if failed:
                    raise
            else:
                return part
        holders = self._ask(self.client.scheduler.who_has, keys=[future.key])[future.key]
        if holders and future.status == "finished":
            stalls.on_no_answer(sorted(holders))
        return None

    def _ask(self, what: Callable[..., Any], **given: Any) -> Any:
        """What the scheduler says; one that stands still is as good as lost.

        Raises:
            Stopped: it does not answer.
        """
        with self._told(), _connections():
            return self.client.sync(what, callback_timeout=SCHEDULER_SECONDS, **given)

    def _look_after(self, stalls: WorkerWatchdog) -> None:
        """Replace workers that are gone; give up where nothing can be expected any more.

        Raises:
            Stopped: the scheduler is lost, or no worker came in time.
            UsageError: the queue refuses the jobs.
        """
        now = time.monotonic()
        if now - self._looked < POLL_SECONDS:
            return
        self._looked = now
        if self.client.status not in ("running", "newly-created"):
            raise _lost()
        workers = self._ask(self.client.scheduler.identity)["workers"]
        stalls.on_workers(workers, self.n_workers)
        if alive := len(workers):
            self._seen = now
        elif self.refusals:
            raise UsageError(
                f"the queue refuses the job: {self.refusals[-1]}",
                where="--cluster",
                expected="a queue that takes the script of krepes run --print-job",
                advice="mend the site file",
            )
        elif now - self._seen > self.patience:
            raise Stopped(
                f"no worker came within {self.patience:.0f} s",
                where="--cluster",
                advice="look at the queue; run the same command again to resume",
            )
        if alive < self.n_workers and now - self._renewed > RENEW_SECONDS:
            self._renewed = now
            self.renew()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What Distributed raises, in one line of ours."""
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
            raise UsageError(
                f"a worker cannot load the work: {error}",
                where="--cluster",
                expected="the same krepes_ooc as here",
                advice="install the same version where the workers start",
            ) from error


def _is_done(future: Any) -> bool:
    """Whether there is a result or an error; what is lost with its worker is computed again."""
    return future.status not in ("pending", "lost")


@contextlib.contextmanager
def _connections() -> Iterator[None]:
    """Distributed says OSError when nobody answers a call for a connection; no task runs here."""
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
