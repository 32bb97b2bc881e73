"""What the terminal shows: progress as bars, or as plain lines on a pipe; tables; JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.errors import Interrupted, printable


class Lines:
    """Progress as plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self._stage, self._total, self._done, self._before = "", 0, 0, 0
        self._bytes, self._said, self._begun = 0, 0.0, 0.0

    def begin(self, stage: str, total: int, done: int) -> None:
        """Say what is on disk already."""
        self._stage, self._total, self._done, self._bytes = stage, total, done, 0
        self._said = self._begun = time.monotonic()
        self._before = done
        resumed = f", {done} of {total} on disk" if done else ""
        click.echo(f"{stage}: {total} units{resumed}")

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        """Say how far the stage is, every ten seconds at most."""
        self._done, self._bytes = self._done + units, self._bytes + n_bytes
        if time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            click.echo(f"{self._stage}: {self._told()}")

    def _told(self) -> str:
        """Units, rate of what is written, and how long the rest will take at this pace."""
        told = f"{self._done} of {self._total}"
        seconds = max(1e-9, time.monotonic() - self._begun)
        if self._bytes:
            told += f", {format_bytes(self._bytes / seconds)}/s"
        if finished := self._done - self._before:
            left = (self._total - self._done) * seconds / finished
            told += f", {_stage_summary(left)} left"
        return told

    def note(self, text: str) -> None:
        """Say it."""
        click.echo(f"  {printable(text)}")

    def end(self, stage: str, seconds: float) -> None:
        """Say that the stage is sealed."""
        click.echo(f"{stage}: sealed in {seconds:.1f} s")


def _stage_summary(seconds: float) -> str:
    """A duration as people say it."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Bars:
    """Progress as one bar a stage, with blocks, rate and remaining time."""

    def __init__(self) -> None:
        from rich import progress

        self._progress = progress.Progress(
            progress.TextColumn("{task.description:<10}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
        )
        self._task: Any = None
        self._bytes, self._begun = 0, 0.0
        self._progress.start()

    def begin(self, stage: str, total: int, done: int) -> None:
        """Draw a new bar."""
        self._bytes, self._begun = 0, time.monotonic()
        self._task = self._progress.add_task(stage, total=total, completed=done, rate="")

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        """Move the bar."""
        self._bytes += n_bytes
        rate = self._bytes / max(1e-9, time.monotonic() - self._begun)
        shown = f"{format_bytes(rate)}/s" if self._bytes else ""
        if self._task is not None:
            self._progress.update(self._task, advance=units, rate=shown)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(f"  {printable(text)}", markup=False, highlight=False)

    def end(self, stage: str, seconds: float) -> None:
        """Fill the bar."""
        if self._task is not None:
            total = self._progress.tasks[self._task].total
            self._progress.update(self._task, completed=total, rate=f"{seconds:.1f} s")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def on_interrupt(presses: int) -> None:
    """Say at once that Ctrl-C was heard; the second one ends the process as a kill would.

    Runs inside the signal handler, so it writes to the descriptors and touches no lock.
    """
    if presses == 1:
        os.write(2, b"krepes: finishing the blocks in flight; Ctrl-C again drops them\n")
        return
    if sys.stdout.isatty():
        os.write(1, b"\x1b[?25h")  # the bars hide the cursor
    os.write(2, b"krepes: stopped by Ctrl-C; run the same command again to resume\n")
    os._exit(Interrupted.exit_code)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows as a table, wrapped on a terminal, one line a row on a pipe; cells are text."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if title:
        click.echo(title)
    if sys.stdout.isatty():
        _print_wrapped(columns, cells)
        return
    table = [list(columns), *cells] if any(columns) else cells
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=1, sort_keys=True, default=str))


def _print_wrapped(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column)
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)
