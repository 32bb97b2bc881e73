"""Worker processes behind one scheduler: they compute graphs, and are replaced when they go."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krepes_ooc.engine.arrayfiles import arrays_as_files
from krepes_ooc.engine.executor import Graph
from krepes_ooc.engine.stalls import StallWatch
from krepes_ooc.engine.station import Part, Work
from krepes_ooc.errors import KrepesError, StageFailed, Stopped, UsageError

POLL_SECONDS = 0.25
RENEW_SECONDS = 5.0
CONNECT_SECONDS = 10


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
    """

    client: Any
    n_workers: int
    renew: Callable[[], None] = lambda: None
    refusals: list[str] = field(default_factory=list)
    patience: float = 60.0
    stall_seconds: float = 30.0
    _renewed: float = 0.0
    _seen: float = field(default_factory=time.monotonic)

    def share_devices(self, visible: Sequence[str]) -> None:
        """Let every worker of this machine see one device of its own, those that join later too."""
        from krepes_ooc.engine.onegpu import OneGpu

        self.client.register_plugin(OneGpu(visible))

    @contextlib.contextmanager
    def lend(self, folder: Path, key: str, work: Work) -> Iterator[None]:
        """Work at every worker, those that join later too.

        Raises:
            KrepesError: a worker cannot take it: another version, or it sees no workspace.
        """
        from krepes_ooc.engine.lending import Lent

        with self._told(), arrays_as_files(folder):
            self.client.register_plugin(Lent(str(folder), key, work), name=key)
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                self.client.unregister_worker_plugin(key)

    def compute(
        self,
        graph: Graph,
        names: Sequence[str],
        check: Callable[[], None],
        tell: Callable[[str], None],
    ) -> Iterator[tuple[str, Part]]:
        """Results by name as they come; lost workers are replaced and their tasks repeated.

        Workers that hold tasks and do nothing are told of, then started again.

        Raises:
            Stopped: ``check`` says so, or the scheduler is lost, or no worker came.
            UsageError: the queue refuses the jobs.
            StageFailed: a task killed every worker that tried it.
        """
        self._seen = time.monotonic()
        with self._told():
            futures = self.client.get(graph, list(names), sync=False)
        waiting = dict(zip(names, futures, strict=True))
        stalls = StallWatch(self.client, tell, self.stall_seconds)
        try:
            while waiting:
                check()
                done = [name for name, future in waiting.items() if future.status != "pending"]
                for name in done:
                    yield name, self._result(waiting.pop(name))
                    stalls.moved()
                if not done:
                    self._look_after()
                    stalls.look()
                    time.sleep(POLL_SECONDS / 5)
        finally:
            for future in waiting.values():
                with contextlib.suppress(Exception):
                    future.cancel()

    def _result(self, future: Any) -> Part:
        with self._told():
            if future.status in ("cancelled", "lost"):
                raise _lost()
            part: Part = future.result(timeout=CONNECT_SECONDS)
        return part

    def _look_after(self) -> None:
        """Replace workers that are gone; give up where nothing can be expected any more.

        Raises:
            Stopped: the scheduler is lost, or no worker came in time.
            UsageError: the queue refuses the jobs.
        """
        now = time.monotonic()
        if now - self._renewed < POLL_SECONDS:
            return
        if self.client.status not in ("running", "newly-created"):
            raise _lost()
        alive = len(self.client.scheduler_info(n_workers=-1)["workers"])
        if alive:
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
        if now - self._renewed > RENEW_SECONDS and alive < self.n_workers:
            self.renew()
        self._renewed = now

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


def _lost() -> Stopped:
    return Stopped(
        "stopped, because the scheduler is lost",
        where="--cluster",
        advice="nothing is lost on disk: run the same command again to resume",
    )
