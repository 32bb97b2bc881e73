"""Early and clean end of a run: signals, Ctrl-C and a time limit set one flag that tasks check."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from krepes_ooc.errors import Interrupted, Stopped


class StopFlag:
    """Whether the run was asked to stop, and why.

    Args:
        max_seconds: stop that many seconds after creation, or never.
        on_interrupt: called inside the signal handler with the number of Ctrl-C so far.
    """

    def __init__(
        self, max_seconds: float | None = None, on_interrupt: Callable[[int], None] = lambda _: None
    ) -> None:
        self._on_interrupt = on_interrupt
        self._interrupts = 0
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._request: tuple[str, bool] | None = None

    def request(self, reason: str, *, interrupted: bool = False) -> None:
        """Ask the run to stop; the first reason stays, and with it the exit code.

        Args:
            reason: completes "stopped, because ...".
            interrupted: whether it was Ctrl-C.
        """
        if self._request is None:
            self._request = reason, interrupted

    def interrupt(self) -> None:
        """Count one Ctrl-C: the first asks the run to stop.

        Raises:
            KeyboardInterrupt: it is not the first, for code of the main thread that asks no flag.
        """
        self._interrupts += 1
        self._on_interrupt(self._interrupts)
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.request("Ctrl-C was pressed", interrupted=True)

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop or its time is up."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.request("its time limit is reached")
        return self._request is not None

    def check(self) -> None:
        """Leave the current block if the run was asked to stop.

        Raises:
            Interrupted: Ctrl-C.
            Stopped: a signal or the time limit.
        """
        if self.requested and self._request is not None:
            reason, interrupted = self._request
            raise (Interrupted if interrupted else Stopped)(
                f"stopped, because {reason}",
                advice="nothing is lost: run the same command again to resume",
            )


@contextlib.contextmanager
def stop_on_signals(flag: StopFlag) -> Iterator[None]:
    """Turn SIGTERM, SIGUSR1 and Ctrl-C into a stop request."""
    # Python runs signal handlers in the main thread alone.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            flag.interrupt()
        else:
            flag.request(f"{signal.Signals(number).name} was received")

    names = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        # A handler that was not set from Python cannot be set again from Python.
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Progress(Protocol):
    """Listener of a run."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """A stage starts with ``done`` of ``total`` units on disk."""

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        """Units finished and bytes written."""

    def note(self, text: str) -> None:
        """One line that the user should read."""

    def end(self, stage: str, seconds: float, memory: str = "") -> None:
        """A stage is sealed; its peak of memory beside the plan, in words."""


class Silent:
    """A listener without output."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """As ``Progress``; no output."""

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        """As ``Progress``; no output."""

    def note(self, text: str) -> None:
        """As ``Progress``; no output."""

    def end(self, stage: str, seconds: float, memory: str = "") -> None:
        """As ``Progress``; no output."""
