"""Terminal output: progress as bars, or as plain lines on a pipe; tables; JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.core.progress_lines import shorten_note
from krepes_ooc.errors import Interrupted, neutral, printable


def echo(text: str = "", *, nl: bool = True) -> None:
    """Print text; control characters in it, of names and files, are spelled out."""
    click.echo(neutral(text), nl=nl)


class Bars:
    """Progress as one bar a stage, with blocks, rate and remaining time."""

    def __init__(self, note_length: int | None = None) -> None:
        from rich import progress

        self._note_length = note_length

        self._progress = progress.Progress(
            progress.TextColumn("{task.description:<10}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
        )
        self._task: Any = None
        self._bytes = 0
        self._started = 0.0
        self._progress.start()

    def begin(self, stage: str, total: int, done: int) -> None:
        """Draw a new bar."""
        self._bytes = 0
        self._started = time.monotonic()
        self._task = self._progress.add_task(stage, total=total, completed=done, rate="")

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        """Move the bar."""
        self._bytes += n_bytes
        rate = self._bytes / max(1e-9, time.monotonic() - self._started)
        text = f"{format_bytes(rate)}/s" if self._bytes else ""
        if self._task is not None:
            self._progress.update(self._task, advance=units, rate=text)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        words = shorten_note(text, self._note_length)
        self._progress.console.print(f"  {words}", markup=False, highlight=False)

    def end(self, stage: str, seconds: float, memory: str = "") -> None:
        """Fill the bar."""
        if self._task is not None:
            total = self._progress.tasks[self._task].total
            words = ", ".join(filter(None, (f"{seconds:.1f} s", memory)))
            self._progress.update(self._task, completed=total, rate=words)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def on_interrupt(presses: int) -> None:
    """Acknowledge Ctrl-C at once; the second one ends the process as a kill would.

    Runs inside the signal handler, so it writes to the descriptors and touches no lock.
    """
    # The first one stops the run after the blocks in flight.
    if presses == 1:
        os.write(2, b"krepes: finishing the blocks in flight; Ctrl-C again drops them\n")
        return
    # The second one drops them: the journal has every finished block.
    if sys.stdout.isatty():
        os.write(1, b"\x1b[?25h")  # the bars hide the cursor
    os.write(2, b"krepes: stopped by Ctrl-C; run the same command again to resume\n")
    os._exit(Interrupted.exit_code)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows as a table, wrapped on a terminal, one line a row on a pipe; cells are text."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if title:
        echo(title)
    if sys.stdout.isatty():
        _print_wrapped(columns, cells)
        return
    # On a pipe every column is as wide as its widest cell, so that programs can cut it.
    table = [list(columns), *cells] if any(columns) else cells
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def show_page(path: Path) -> None:
    """Open a page in the user's browser; where there is none, say so."""
    import webbrowser

    if not webbrowser.open(path.resolve().as_uri()):
        echo(f"no browser was found; open {path} yourself")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=1, sort_keys=True, default=str))


def _print_wrapped(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print a table that fits the width of the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column)
    # As Text, so that no cell is read as markup.
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)
