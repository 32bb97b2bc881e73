"""Progress of a run as plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.errors import printable

# Characters of a remark that are printed without --verbose
NOTE_LENGTH = 300


class Lines:
    """Progress as plain lines, for logs, pipes and notebooks.

    Args:
        write: receives each line.
        note_length: characters of a remark that are printed; None: all.
    """

    INTERVAL_SECONDS = 10.0

    def __init__(self, write: Callable[[str], object], note_length: int | None = None) -> None:
        self._write = write
        self._note_length = note_length
        self._stage = ""
        self._total = 0
        self._done = 0
        self._resumed = 0
        self._bytes = 0
        self._started = 0.0
        self._printed = 0.0

    def begin(self, stage: str, total: int, done: int) -> None:
        """Print the stage, its units and how many of them are on disk."""
        self._stage = stage
        self._total = total
        self._done = done
        self._resumed = done
        self._bytes = 0
        self._started = time.monotonic()
        self._printed = self._started
        on_disk = f", {done} of {total} on disk" if done else ""
        self._write(f"{stage}: {total} {'unit' if total == 1 else 'units'}{on_disk}")

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        """Print the progress of the stage, every ten seconds at most."""
        # A stage that announces no units writes its store after the one before has ended
        if not self._stage:
            return
        self._done = min(self._done + units, self._total)
        self._bytes += n_bytes
        if time.monotonic() - self._printed > self.INTERVAL_SECONDS:
            self._printed = time.monotonic()
            self._write(f"{self._stage}: {self._progress_text()}")

    def _progress_text(self) -> str:
        """Units, bytes written per second, and the time that is left at this pace."""
        text = f"{self._done} of {self._total}"
        seconds = max(1e-9, time.monotonic() - self._started)
        if self._bytes:
            text += f", {format_bytes(self._bytes / seconds)}/s"
        # The pace is that of this run: units of an earlier one took no time now.
        if finished := self._done - self._resumed:
            left = (self._total - self._done) * seconds / finished
            text += f", {_format_duration(left)} left"
        return text

    def note(self, text: str) -> None:
        """Print a remark."""
        self._write(f"  {shorten_note(text, self._note_length)}")

    def end(self, stage: str, seconds: float, memory: str = "") -> None:
        """Print that the stage is sealed."""
        self._stage = ""
        self._write(", ".join(filter(None, (f"{stage}: sealed in {seconds:.1f} s", memory))))


def shorten_note(text: str, length: int | None) -> str:
    """A remark on one line, cut where it is longer; warnings are never cut."""
    text = printable(text)
    if length is None or len(text) <= length or text.startswith(("warning", "source:")):
        return text
    return f"{text[:length].rstrip()} ... (-v prints it whole)"


def _format_duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
