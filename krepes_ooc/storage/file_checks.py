"""Checks of files on disk: that they are inside the workspace, and what was written."""

from __future__ import annotations

import io
import os
from pathlib import Path, PurePosixPath

import google_crc32c
import numpy as np

from krepes_ooc.core.files import CHECKSUM_BYTES, unreadable
from krepes_ooc.errors import WorkspaceError

_PIECE_BYTES = 2**20


def confine(path: Path, root: Path) -> Path:
    """The path itself, if no symbolic link stands between the folder ``root`` and it.

    Raises:
        WorkspaceError: a link would lead elsewhere.
    """
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
    name = PurePosixPath(key)
    return bool(key) and "\0" not in key and not name.is_absolute() and ".." not in name.parts


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
    """What is wrong with a file, in words; empty if nothing is.

    Args:
        path: the file.
        size: bytes that it had.
        crc: crc32c of its bytes, those of a checksum suffix not counted.
        suffixed: whether the file ends in its own checksum.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                return f"{found} bytes instead of {size}"
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
    crc, buffer = 0, np.empty(min(_PIECE_BYTES, max(1, count)), dtype=np.uint8)
    while count > 0:
        got = file.readinto(buffer.data[:count])
        if not got:
            break
        crc, count = int(google_crc32c.extend(crc, buffer[:got])), count - got
    return crc
