"""Journal of a stage: its units on disk, one checksummed line each, appended by one owner."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import (
    boot_id,
    checksummed_json,
    disk_errors,
    open_binary,
    read_checksummed,
    sync_path,
    unreadable,
    write_atomic,
)
from krepes_ooc.storage.file_checks import parse_files

COMMIT_SECONDS = 1.0
MAX_LINE_BYTES = 2**24
MAX_JOURNAL_BYTES = 2**30


@dataclass(frozen=True)
class Unit:
    """One finished unit of work: its files with size and crc32c of the payload.

    Args:
        name: ``block 37``.
        files: path relative to the store -> (bytes of the file, crc32c of the payload).
        boot: boot id under which the files were written; ``append`` fills it in.
        numerics: backend and BLAS that computed it.
        content: hash of the source rows, empty where no source was read.
        digest: of the stage that it is part of; ``append`` fills it in; empty in journals of
            earlier versions.
    """

    name: str
    files: Mapping[str, tuple[int, int]]
    boot: str = ""
    numerics: str = ""
    content: str = ""
    digest: str = ""


class Journal:
    """Append-only record of finished units; a power loss costs those of the last second.

    Args:
        path: the file; its folder exists.
        digest: of the stage, in every line: the journal of another run says nothing about this one.
    """

    def __init__(self, path: Path, digest: str = "") -> None:
        self.path = path
        self.digest = digest
        self._lock = threading.Lock()
        self._file: Any = None
        self._synced = 0.0

    def append(self, unit: Unit) -> None:
        """Record a finished unit; the line reaches the disk within a second or at ``close``.

        Raises:
            StageFailed: the disk is full; no part of the line is left behind.
        """
        line = checksummed_json(
            {
                "unit": unit.name,
                "files": {key: list(value) for key, value in unit.files.items()},
                "boot": boot_id(),
                "numerics": unit.numerics,
                "content": unit.content,
                "digest": self.digest,
            }
        )
        # Group commit: a flush costs milliseconds, so lines of one second share it.
        with self._lock, disk_errors(self.path, len(line)):
            if self._file is None:
                self._open()
            self._write(line)
            if time.monotonic() - self._synced > COMMIT_SECONDS:
                self._sync()

    def close(self) -> None:
        """Flush what was appended to the disk."""
        with self._lock, disk_errors(self.path):
            file = self._file
            self._file = None
            if file is not None:
                with contextlib.closing(file):
                    os.fsync(file.fileno())

    def _open(self) -> None:
        """Open the journal for appending, behind its last whole line."""
        end = last_line_end = 0
        for line in _lines(self.path):
            end += len(line)
            if line.endswith(b"\n"):
                last_line_end = end
        _break_hard_links(self.path)
        # A torn line has no end: the next one would be lost with it.
        self._file = open_binary(self.path, "ab")
        self._file.truncate(last_line_end)
        sync_path(self.path.parent)

    def _write(self, line: bytes) -> None:
        """Append the whole line or nothing: a disk that fills up takes a part of it first."""
        end = os.fstat(self._file.fileno()).st_size
        rest = memoryview(line)
        try:
            # An unbuffered write may take a part of the line.
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            try:
                self._file.truncate(end)
            except OSError:
                # The disk does not even take that: whoever opens the journal next cuts the line.
                self._file.close()
                self._file = None
            raise

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def read_journal(path: Path, digest: str = "") -> tuple[list[Unit], int]:
    """The units of one journal, later lines last, and the number of damaged lines in it.

    A kill can tear the last line only, which then has no end and is dropped.

    Args:
        path: the file.
        digest: of the stage; lines of another one are damage. Empty: unknown.

    Raises:
        UsageError: no permission to read it.
        DamageError: the disk cannot read it.
    """
    units: list[Unit] = []
    damaged = 0
    for line in _lines(path):
        unit = _parse(line)
        if unit is not None and _belongs(unit, digest):
            units.append(unit)
        elif line.endswith(b"\n") or _parse(line[:-1] + b"\n") is not None:
            # The second case is a whole line whose end was changed: a torn one is shorter.
            damaged += 1
    return units, damaged


def drop_damaged_lines(path: Path, temp: Path, digest: str = "") -> None:
    """Take damaged lines out of a journal: their units are computed again and written anew.

    Args:
        path: the file.
        temp: folder on the same file system.
        digest: of the stage; lines of another one go too.
    """
    lines = list(_lines(path))
    # By temporary name and rename: the good lines survive a kill.
    whole = [
        line for line in lines if (unit := _parse(line)) is not None and _belongs(unit, digest)
    ]
    if whole != lines:
        write_atomic(path, b"".join(whole), temp, sync=True)


def _break_hard_links(path: Path) -> None:
    """Make a journal a file of its own: a copy of the workspace may share it by a second name.

    Journals alone are written in place; every other file is replaced.
    """
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_nlink > 1:
            write_atomic(path, b"".join(_lines(path)), path.parent, sync=True)


def _parse(line: bytes) -> Unit | None:
    value = read_checksummed(line)
    if value is None:
        return None
    # A checksum tells damage, not origin: another program's line has another form.
    try:
        files = parse_files(value["files"])
        name, boot, numerics, content = (
            str(value[key]) for key in ("unit", "boot", "numerics", "content")
        )
    except (KeyError, ValueError):
        return None
    return Unit(name, files, boot, numerics, content, str(value.get("digest", "")))


def _belongs(unit: Unit, digest: str) -> bool:
    """Whether a unit is part of the stage with this digest, as far as both are known."""
    return not (unit.digest and digest) or unit.digest == digest


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a journal with their ends; none if there is no file."""
    try:
        with open_binary(path) as raw, io.BufferedReader(raw, 2**16) as file:
            if (size := os.fstat(raw.fileno()).st_size) > MAX_JOURNAL_BYTES:
                raise OSError(errno.EFBIG, f"{size} bytes, more than any journal has")
            while line := file.readline(MAX_LINE_BYTES):
                yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(path, error) from error
