"""What a stage costs this process while it runs: CPU-seconds and the peak of anonymous memory."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from krepes_ooc.engine import machine

INTERVAL_SECONDS = 0.02


class Meter:
    """CPU-seconds and peak anonymous memory since its creation; sampled while it is entered.

    The kernel keeps no high-water mark of anonymous memory alone, so a light thread looks at it
    fifty times a second.
    """

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._cpu = time.process_time()
        self._first = self._peak = machine.anonymous_bytes()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._sample, name="krepes-meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def facts(self) -> dict[str, float]:
        """Wall seconds, CPU-seconds of all threads, and anonymous bytes before and at the peak."""
        self._peak = max(self._peak, machine.anonymous_bytes())
        return {
            "seconds": time.monotonic() - self._begun,
            "cpu_seconds": time.process_time() - self._cpu,
            "anonymous_before": self._first,
            "anonymous_peak": self._peak,
        }

    def _sample(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS):
            self._peak = max(self._peak, machine.anonymous_bytes())
