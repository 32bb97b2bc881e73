"""Stop a run early and cleanly: signals, Ctrl-C and a time limit become one flag that tasks ask."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from krepes_ooc.errors import Interrupted, Stopped


class StopFlag:
    """Whether the run was asked to stop, and why.

    Args:
        max_seconds: stop that many seconds after creation, or never.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._reason = ""
        self._interrupted = False

    def request(self, reason: str, *, interrupted: bool = False) -> None:
        """Ask the run to stop; the first reason stays."""
        self._interrupted = self._interrupted or interrupted
        self._reason = self._reason or reason

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop or its time is up."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.request("its time limit is reached")
        return bool(self._reason)

    def check(self) -> None:
        """Leave the current block if the run was asked to stop.

        Raises:
            Interrupted: Ctrl-C.
            Stopped: a signal or the time limit.
        """
        if self.requested:
            kind = Interrupted if self._interrupted else Stopped
            raise kind(
                f"stopped, because {self._reason}",
                advice="nothing is lost: run the same command again to resume",
            )


@contextlib.contextmanager
def stop_on_signals(flag: StopFlag) -> Iterator[None]:
    """Turn SIGTERM, SIGUSR1 and Ctrl-C into a stop request; a second Ctrl-C stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if flag.requested:
                raise KeyboardInterrupt
            flag.request("Ctrl-C was pressed", interrupted=True)
        else:
            flag.request(f"{signal.Signals(number).name} was received")

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
