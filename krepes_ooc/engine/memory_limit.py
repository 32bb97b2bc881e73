"""Measured memory of a running stage against ``--memory``: fewer workers, or a clean stop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import Stopped

# Share of the memory from which a stage above its plan takes fewer workers.
NEAR = 0.95
# Slack of the memory that a stage is said to need.
ENOUGH = 1.1
# How long the memory of a task that ended may take to go back to the system.
SETTLING_SECONDS = 0.2
WAIT_SECONDS = 0.05


@dataclass(frozen=True)
class PlannedMemory:
    """Anonymous memory that one stage may take, in bytes.

    Args:
        planned: by its plan, in this process.
        memory: ``--memory``.
        of_worker: limit of one worker process elsewhere; None: not known.
    """

    planned: int
    memory: int
    of_worker: int | None = None


class MemoryLimit(StopFlag):
    """Stop flag of one stage: that of the run, and set when the stage exceeds its memory.

    A stage that nears its memory with several workers begins its next blocks with fewer; one that
    exceeds it with a single worker ends at its next check.

    Args:
        stage: its name, for the messages.
        allowed: what it may take.
        workers: threads that compute its blocks.
        outer: stop flag of the run.
        notify: receives one line when workers are taken away.
    """

    def __init__(
        self,
        stage: str,
        allowed: PlannedMemory,
        workers: int,
        outer: StopFlag,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__()
        self.workers = max(1, workers)
        self._stage = stage
        self._allowed = allowed
        self._near = max(allowed.planned, int(NEAR * allowed.memory))
        self._outer = outer
        self._notify = notify
        self._running = 0
        self._settled = 0.0
        self._exceeded: tuple[str, int, int] | None = None  # who, bytes taken, limit
        self._changed = threading.Condition()

    @property
    def planned(self) -> int:
        """Anonymous memory of this process by the plan, in bytes."""
        return self._allowed.planned

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop or the stage exceeds its memory."""
        return self._outer.requested or self._exceeded is not None

    def request(self, reason: str, *, interrupted: bool = False) -> None:
        """Ask the whole run to stop."""
        self._outer.request(reason, interrupted=interrupted)

    def check(self) -> None:
        """Leave the current block if the run was asked to stop or the memory is exceeded.

        Raises:
            Interrupted: Ctrl-C.
            Stopped: a signal, the time limit, or the memory, with what the stage needs.
        """
        self._outer.check()
        if self._exceeded is not None:
            whose, taken, memory = self._exceeded
            raise Stopped(
                f"stopped, because {whose} takes {format_bytes(taken)} of memory",
                where=f"stage {self._stage}",
                expected=f"at most --memory {format_bytes(memory)}",
                advice="nothing is lost: run again with --memory "
                f"{format_bytes(ENOUGH * taken)} or more to resume",
            )

    def observe(self, anonymous: int) -> None:
        """Compare a measurement of this process with the memory; called many times a second.

        Args:
            anonymous: memory of the process now, in bytes.
        """
        if anonymous <= self._near:
            return
        with self._changed:
            # Blocks under way are finished first: fewer workers show only after them.
            if self._running > self.workers or time.monotonic() < self._settled:
                return
            if self.workers > 1 and self._running > 1:
                self._take_workers(anonymous)
            elif anonymous > self._allowed.memory:
                self._exceeded = "it", anonymous, self._allowed.memory

    def observe_worker(self, anonymous: int) -> None:
        """Compare the peak of a worker process with the limit of each.

        Args:
            anonymous: peak of its memory during a task, in bytes.
        """
        limit = self._allowed.of_worker
        if limit is not None and anonymous > limit:
            self._exceeded = "a worker process", anonymous, limit

    @contextlib.contextmanager
    def task(self) -> Iterator[None]:
        """One task of a block: begins only while fewer tasks run than there are workers.

        A task must not wait for other tasks of the same stage.
        """
        with self._changed:
            while self._running >= self.workers and not self.requested:
                self._changed.wait(WAIT_SECONDS)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                if self._running >= self.workers:
                    self._settled = time.monotonic() + SETTLING_SECONDS
                self._changed.notify_all()

    def _take_workers(self, anonymous: int) -> None:
        """Allow one worker less, or a single one where the memory is already exceeded."""
        beyond = anonymous > self._allowed.memory
        self.workers = 1 if beyond else min(self.workers, self._running) - 1
        self._notify(
            f"{self._stage}: {format_bytes(anonymous)} of memory taken, "
            f"{format_bytes(self._allowed.planned)} planned, --memory "
            f"{format_bytes(self._allowed.memory)}: {self.workers} at a time from the next block on"
        )


def memory_note(stage: str, peak: int, allowed: PlannedMemory) -> str:
    """One line about a stage whose peak lies above its plan; empty where it does not.

    Args:
        stage: its name.
        peak: measured, in bytes.
        allowed: plan and limit of the stage.
    """
    if peak <= allowed.planned:
        return ""
    words = f"{stage}: {memory_words(peak, allowed.planned)}"
    if peak <= allowed.memory:
        return words
    enough = format_bytes(ENOUGH * peak)
    return f"{words}, above --memory {format_bytes(allowed.memory)}: it needs --memory {enough}"


def memory_words(peak: float, planned: float) -> str:
    """Peak and plan of a stage in words."""
    return f"{format_bytes(peak)} of memory, {format_bytes(planned)} planned"
