"""Watchdog: detects hung, silent and departing workers; warns and restarts them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

ANSWER_SECONDS = 5
RESTART_SECONDS = 30
IDLE_PERCENT = 10.0  # of a core: heartbeats and the memory meter of a task take a few
SILENT = "it does not answer"
MAX_DEPARTURES = 3  # for each worker wanted, before the user is warned


@dataclass
class WorkerWatchdog:
    """Poll of the workers while no task of a graph finishes.

    A task may wait for a lost file lock: a run of weeks must survive that. When nothing finished
    for an interval, a worker is suspect if it has tasks and uses no processor, or sends no
    heartbeat; if it is at the same place in the code at the next poll, it is restarted and its
    tasks are repeated, which changes no bits. Every restart doubles the interval.

    A frozen worker may also have finished results in memory. Others wait for these and are not to
    blame: as long as one is silent, it alone is restarted.

    Args:
        client: of Distributed.
        notify: gets one line for the user.
        seconds: between two polls.
        transfer_seconds: for a worker to send a finished result.
    """

    client: Any
    notify: Callable[[str], None]
    seconds: float = 30.0
    transfer_seconds: float = 10.0
    _since: float = field(default_factory=lambda: time.monotonic())
    _suspects: dict[str, str] = field(default_factory=dict)
    _present: frozenset[str] = frozenset()
    _departures: int = 0

    def on_progress(self) -> None:
        """A task has finished."""
        self._since = time.monotonic()
        self._suspects = {}
        self._departures = 0

    def on_workers(self, workers: Iterable[str], wanted: int) -> None:
        """Count departures; warn when many workers leave before a task is finished.

        Args:
            workers: that are present now.
            wanted: number of workers.
        """
        present = frozenset(workers)
        self._departures += len(self._present - present)
        self._present = present
        if self._departures >= MAX_DEPARTURES * wanted:
            self.notify(
                f"{self._departures} workers left since a task was last finished: if one takes "
                "longer than a worker stays, give a longer walltime, or set a smaller "
                "stages.features.block_rows before a new run"
            )
            self._departures = 0

    def poll(self) -> None:
        """Warn of suspects and restart those that hang; may be called at any rate."""
        if time.monotonic() - self._since < self.seconds:
            return
        idle = self._idle_workers()
        # Others may be idle because they wait for the results of a silent one.
        silent = {worker: at for worker, at in idle.items() if at == SILENT}
        idle = silent or idle
        # Hung: at the same place as at the last poll.
        hung = sorted(worker for worker, at in idle.items() if self._suspects.get(worker) == at)
        for worker, at in idle.items():
            if worker not in hung:
                self.notify(f"{worker} did nothing for {self.seconds:.0f} s: {at}")
        for worker in hung:
            self.notify(f"{worker} still does nothing: it is started again, its tasks are repeated")
        if hung:
            self.seconds *= 2
            self._restart(hung)
        self._suspects = {} if hung else idle
        self._since = time.monotonic()

    def on_no_answer(self, workers: Sequence[str]) -> None:
        """Restart workers that have a finished result and did not send it in time."""
        for worker in workers:
            self.notify(
                f"{worker} holds a result and does not answer for {self.transfer_seconds:.0f} s: "
                "it is started again, its tasks are repeated"
            )
        self.transfer_seconds *= 2
        self._restart(workers)

    def _restart(self, workers: Sequence[str]) -> None:
        # A process that is frozen is killed by its nanny; one whose nanny is silent too, such as a
        # suspended job, is removed, and its job is cancelled and submitted again.
        with contextlib.suppress(Exception):
            self.client.sync(
                self.client.scheduler.restart_workers,
                callback_timeout=2 * RESTART_SECONDS,
                workers=list(workers),
                timeout=RESTART_SECONDS,
                wait_for_workers=False,
                on_error="return",
                stimulus_id=f"krepes-stall-{time.time()}",
            )

    def _idle_workers(self) -> dict[str, str]:
        """Workers that do nothing, and the place in the code where each of them is."""
        # A failed poll is no reason to end the run: the scheduler is checked elsewhere.
        with contextlib.suppress(Exception):
            scheduler = self.client.scheduler
            tasks = self.client.sync(scheduler.processing, callback_timeout=ANSWER_SECONDS)
            facts = self.client.sync(scheduler.identity, callback_timeout=ANSWER_SECONDS)["workers"]
            # Both clocks are the scheduler's: the latest heartbeat of all says what time it is.
            latest = max(worker["last_seen"] for worker in facts.values())
            return {
                worker: self._stack_position(worker, tasks[worker])
                for worker in sorted(facts)
                if latest - facts[worker]["last_seen"] > self.seconds / 2
                or (tasks.get(worker) and facts[worker]["metrics"]["cpu"] < IDLE_PERCENT)
            }
        return {}

    def _stack_position(self, worker: str, keys: Sequence[str]) -> str:
        """Innermost frames of this package, and the innermost of all, of a worker's tasks."""
        if not keys:
            return SILENT
        try:
            stacks = self.client.sync(
                self.client.scheduler.call_stack,
                keys=list(keys),
                callback_timeout=ANSWER_SECONDS,
            )
        except Exception:  # whatever a scheduler in trouble raises: no position
            return SILENT
        frames = [frame for stack in stacks.get(worker, {}).values() for frame in stack]
        if not frames:
            return "it has not begun"
        package_frames = [frame for frame in frames[:-1] if "krepes_ooc" in frame]
        return ", then ".join(_short(frame) for frame in [*package_frames[-3:], frames[-1]])


def _short(frame: str) -> str:
    """``File "/a/b/c.py", line 7, in f`` with its source line, as ``b/c.py:7 in f``."""
    file, line, function = frame.strip().splitlines()[0].split(", ", 2)
    path = "/".join(file.strip('File "').split("/")[-2:])
    return f"{path}:{line.removeprefix('line ')} {function}"
