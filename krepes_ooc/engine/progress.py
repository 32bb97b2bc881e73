"""What a stage tells while it runs; the command line draws it."""

from __future__ import annotations

from typing import Protocol


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
