"""Stop a run early and cleanly: signals, Ctrl-C and a time limit become one flag that tasks ask."""

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
        pressed: told at every Ctrl-C how often it was pressed, inside the signal handler.
    """

    def __init__(
        self, max_seconds: float | None = None, pressed: Callable[[int], None] = lambda _: None
    ) -> None:
        self._pressed, self._presses = pressed, 0
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._asked: tuple[str, bool] | None = None

    def request(self, reason: str, *, interrupted: bool = False) -> None:
        """Ask the run to stop; the first reason stays, and with it the exit code.

        Args:
            reason: completes "stopped, because ...".
            interrupted: whether it was Ctrl-C.
        """
        if self._asked is None:
            self._asked = reason, interrupted

    def press(self) -> None:
        """Count one Ctrl-C: the first asks the run to stop.

        Raises:
            KeyboardInterrupt: it is not the first, for code of the main thread that asks no flag.
        """
        self._presses += 1
        self._pressed(self._presses)
        if self._presses > 1:
            raise KeyboardInterrupt
        self.request("Ctrl-C was pressed", interrupted=True)

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop or its time is up."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.request("its time limit is reached")
        return self._asked is not None

    def check(self) -> None:
        """Leave the current block if the run was asked to stop.

        Raises:
            Interrupted: Ctrl-C.
            Stopped: a signal or the time limit.
        """
        if self.requested and self._asked is not None:
            reason, interrupted = self._asked
            raise (Interrupted if interrupted else Stopped)(
                f"stopped, because {reason}",
                advice="nothing is lost: run the same command again to resume",
            )


@contextlib.contextmanager
def stop_on_signals(flag: StopFlag) -> Iterator[None]:
    """Turn SIGTERM, SIGUSR1 and Ctrl-C into a stop request."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            flag.press()
        else:
            flag.request(f"{signal.Signals(number).name} was received")

    names = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
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

    def end(self, stage: str, seconds: float) -> None:
        """A stage is sealed."""


class Silent:
    """A listener that says nothing."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """Say nothing."""

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def end(self, stage: str, seconds: float) -> None:
        """Say nothing."""
