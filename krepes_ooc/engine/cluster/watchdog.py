"""Workers that do nothing, do not answer or leave too early: users are told, and helped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

ANSWER_SECONDS = 5
RESTART_SECONDS = 30
IDLE_PERCENT = 10.0  # of a core: heartbeats and the meter of a task take a few
SILENT = "it does not answer"
FRUITLESS = 3  # times as many workers as are wanted


@dataclass
class WorkerWatchdog:
    """Looks at workers while no task of a graph finishes.

    A task may wait for a lock that nobody gives back: a run of weeks must outlive that. When
    nothing finished for an interval, a worker is suspect that holds tasks and uses no processor, or
    gives no sign of life; if the next look finds it at the same place, it is started again and its
    tasks are repeated, which changes no bits. Every restart doubles the interval.

    A worker that is frozen, or whose machine is, may also hold results that are finished. Others
    wait for these and are not to blame: as long as one is silent, it alone is started again.

    Args:
        client: of Distributed.
        notify: one line for the user.
        seconds: between two looks.
        hand_over_seconds: for a worker to hand a finished result over.
    """

    client: Any
    notify: Callable[[str], None]
    seconds: float = 30.0
    hand_over_seconds: float = 10.0
    _since: float = field(default_factory=lambda: time.monotonic())
    _suspects: dict[str, str] = field(default_factory=dict)
    _here: frozenset[str] = frozenset()
    _left: int = 0

    def on_progress(self) -> None:
        """A task has finished."""
        self._since, self._suspects, self._left = time.monotonic(), {}, 0

    def on_workers(self, workers: Iterable[str], wanted: int) -> None:
        """These workers are here now, of so many; told when they leave and no task is finished."""
        now = frozenset(workers)
        self._left += len(self._here - now)
        self._here = now
        if self._left >= FRUITLESS * wanted:
            self.notify(
                f"{self._left} workers left since a task was last finished: if one takes longer "
                "than a worker stays, give a longer walltime, or set a smaller "
                "stages.features.block_rows before a new run"
            )
            self._left = 0

    def poll(self) -> None:
        """Call while nothing finishes, as often as you like."""
        if time.monotonic() - self._since < self.seconds:
            return
        idle = self._idle()
        silent = {worker: at for worker, at in idle.items() if at == SILENT}
        idle = silent or idle
        stuck = sorted(worker for worker, at in idle.items() if self._suspects.get(worker) == at)
        for worker, at in idle.items():
            if worker not in stuck:
                self.notify(f"{worker} did nothing for {self.seconds:.0f} s: {at}")
        for worker in stuck:
            self.notify(f"{worker} still does nothing: it is started again, its tasks are repeated")
        if stuck:
            self.seconds *= 2
            self._restart(stuck)
        self._suspects = {} if stuck else idle
        self._since = time.monotonic()

    def on_no_answer(self, workers: Sequence[str]) -> None:
        """These hold a result that is finished and have not handed it over in time."""
        for worker in workers:
            self.notify(
                f"{worker} holds a result and does not answer for {self.hand_over_seconds:.0f} s: "
                "it is started again, its tasks are repeated"
            )
        self.hand_over_seconds *= 2
        self._restart(workers)

    def _restart(self, workers: Sequence[str]) -> None:
        # A process that is frozen is killed by its nanny; one whose nanny is silent too, such as a
        # suspended job, is struck off, and its job is cancelled and asked for again.
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

    def _idle(self) -> dict[str, str]:
        """Workers that do nothing, and the place in the code where each of them stands."""
        # Looking may fail where everything else goes on: the scheduler is watched elsewhere.
        with contextlib.suppress(Exception):
            ask = self.client.scheduler
            holding = self.client.sync(ask.processing, callback_timeout=ANSWER_SECONDS)
            held = {worker for worker, keys in holding.items() if keys}
            facts = self.client.sync(ask.identity, callback_timeout=ANSWER_SECONDS)["workers"]
            # Both clocks are the scheduler's: the latest heartbeat of all says what time it is.
            latest = max(worker["last_seen"] for worker in facts.values())
            return {
                worker: self._place(worker, holding[worker])
                for worker in sorted(facts)
                if latest - facts[worker]["last_seen"] > self.seconds / 2
                or (worker in held and facts[worker]["metrics"]["cpu"] < IDLE_PERCENT)
            }
        return {}

    def _place(self, worker: str, keys: Sequence[str]) -> str:
        """The frames of this package, and the innermost one, of what a worker computes."""
        if not keys:
            return SILENT
        try:
            stacks = self.client.sync(
                self.client.scheduler.call_stack,
                keys=list(keys),
                callback_timeout=ANSWER_SECONDS,
            )
        except Exception:  # whatever a scheduler in trouble raises: it says nothing of the worker
            return SILENT
        frames = [frame for stack in stacks.get(worker, {}).values() for frame in stack]
        if not frames:
            return "it has not begun"
        own = [frame for frame in frames[:-1] if "krepes_ooc" in frame]
        return ", then ".join(_short(frame) for frame in [*own[-3:], frames[-1]])


def _short(frame: str) -> str:
    """``File "/a/b/c.py", line 7, in f`` with its source line, as ``b/c.py:7 in f``."""
    file, line, function = frame.strip().splitlines()[0].split(", ", 2)
    path = "/".join(file.strip('File "').split("/")[-2:])
    return f"{path}:{line.removeprefix('line ')} {function}"
