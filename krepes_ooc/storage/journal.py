"""The journal: which units of a stage are on disk, one checked line each, appended by one owner."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krepes_ooc.storage.files import boot_id, disk_errors, read_signed, sign_json, sync_folder

COMMIT_SECONDS = 1.0


@dataclass(frozen=True)
class Unit:
    """One finished unit of work: its files with size and crc32c of the payload.

    Args:
        name: ``block 37`` or ``whole``.
        files: path relative to the store -> (bytes of the file, crc32c of the payload).
        boot: boot id under which the files were written.
        numerics: backend and BLAS that computed it.
        content: hash of the source rows, empty where no source was read.
    """

    name: str
    files: Mapping[str, tuple[int, int]]
    boot: str = ""
    numerics: str = ""
    content: str = ""


class Journal:
    """Append-only record of finished units; a torn tail is dropped, a power loss costs a second.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: Any = None
        self._synced = 0.0

    def append(self, unit: Unit) -> None:
        """Record a finished unit; the line reaches the disk within a second or at ``close``."""
        line = sign_json(
            {
                "unit": unit.name,
                "files": {key: list(value) for key, value in unit.files.items()},
                "boot": boot_id(),
                "numerics": unit.numerics,
                "content": unit.content,
            }
        )
        with self._lock, disk_errors(self.path, len(line)):
            if self._file is None:
                self._open()
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > COMMIT_SECONDS:
                self._sync()

    def close(self) -> None:
        """Flush what was appended to the disk."""
        with self._lock, disk_errors(self.path):
            if self._file is not None:
                self._sync()
                self._file.close()
                self._file = None

    def _open(self) -> None:
        whole = sum(len(line) for line in _whole_lines(self.path))
        self._file = self.path.open("ab")
        self._file.truncate(whole)
        sync_folder(self.path.parent)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def read_journal(path: Path) -> tuple[list[Unit], int]:
    """The units of one journal, later lines last, and the number of damaged lines in it."""
    units, damaged = [], 0
    for line in _whole_lines(path):
        value = read_signed(line)
        if value is None:
            damaged += 1
            continue
        files = {key: (int(size), int(crc)) for key, (size, crc) in value["files"].items()}
        units.append(Unit(value["unit"], files, value["boot"], value["numerics"], value["content"]))
    return units, damaged


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Lines that end in a newline: a kill can tear only the last one."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
