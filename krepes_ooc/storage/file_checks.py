"""Checks of files on disk: inside the workspace, and with the bytes that were recorded."""

from __future__ import annotations

import io
import os
from pathlib import Path, PurePosixPath
from typing import Any

import google_crc32c
import numpy as np

from krepes_ooc.core.files import CHECKSUM_BYTES, Files, unreadable
from krepes_ooc.errors import WorkspaceError

_PIECE_BYTES = 2**20


def confine(path: Path, root: Path) -> Path:
    """The path itself, if no symbolic link stands between the folder ``root`` and it.

    Raises:
        WorkspaceError: a link would lead elsewhere.
    """
    # Every step below the root: a link further up is the user's own choice.
    step = path
    while step != root and step != step.parent:
        if step.is_symlink():
            raise WorkspaceError(
                f"a symbolic link, to {step.readlink()}",
                where=str(step),
                expected="real files and folders inside the workspace",
                advice="remove the link",
            )
        step = step.parent
    return path


def is_inside(key: str) -> bool:
    """Whether a recorded file name stays inside the folder that it is relative to."""
    # Names are read from files that may be damaged or forged.
    name = PurePosixPath(key)
    return bool(key) and "\0" not in key and not name.is_absolute() and ".." not in name.parts


def parse_files(recorded: Any) -> Files:
    """Size and crc32c of files by name, as a journal or a manifest holds them.

    Raises:
        ValueError: another form, or a name that leads out of the workspace.
    """
    try:
        files = {str(key): (int(size), int(crc)) for key, (size, crc) in recorded.items()}
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError("no files with size and checksum") from error
    if not all(map(is_inside, files)):
        raise ValueError("a file outside the workspace")
    return files


def measure(path: Path) -> tuple[int, int]:
    """Size and crc32c of a file.

    Raises:
        DamageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return size, _file_checksum(file, size)
    except OSError as error:
        raise unreadable(path, error) from error


def file_problem(path: Path, size: int, crc: int, *, suffixed: bool) -> str:
    """The difference between a file and its record, in words; empty if there is none.

    Args:
        path: the file.
        size: bytes that it had.
        crc: crc32c of its bytes, those of a checksum suffix not counted.
        suffixed: whether the file ends in its own checksum.
    """
    try:
        with path.open("rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes != size:
                return f"{n_bytes} bytes instead of {size}"
            # The suffix is compared too: readers check a chunk by it alone.
            computed = _file_checksum(file, size - CHECKSUM_BYTES * suffixed)
            suffix = int.from_bytes(file.read(), "little")
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if computed != crc:
        return "the bytes differ from the checksum recorded"
    return "the checksum suffix is damaged" if suffixed and suffix != crc else ""


def _file_checksum(file: io.BufferedReader, count: int) -> int:
    """crc32c of the next ``count`` bytes, read in pieces: a bad sector is an error, not a crash."""
    crc = 0
    buffer = np.empty(min(_PIECE_BYTES, max(1, count)), dtype=np.uint8)
    while count > 0:
        n_read = file.readinto(buffer.data[:count])
        if not n_read:
            break
        crc = int(google_crc32c.extend(crc, buffer[:n_read]))
        count -= n_read
    return crc
