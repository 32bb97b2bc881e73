"""Checks of files on disk: inside the workspace, and with the bytes that were recorded."""

from __future__ import annotations

import io
import os
from pathlib import Path, PurePosixPath
from typing import Any

import google_crc32c
import numpy as np

from krepes_ooc.core.files import CHECKSUM_BYTES, Files, open_binary, unreadable
from krepes_ooc.errors import DamageError, WorkspaceError

_PIECE_BYTES = 2**20
MAX_CHUNK_BYTES = 2**31 - 1


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


def refuse_file(folder: Path) -> None:
    """Raise if something else than a folder is in the place of a folder.

    Raises:
        DamageError: naming it.
    """
    if not folder.is_dir() and os.path.lexists(folder):
        raise DamageError(
            "no folder",
            where=str(folder),
            expected="a folder, or nothing",
            advice="remove it, then run the same command again, with --repair",
        )


def refuse_foreign_files(folder: Path, recorded: Files) -> None:
    """Raise unless a store holds folders and files of the recorded sizes alone, at any depth.

    Raises:
        DamageError: a pipe, a socket, a device or a link is there, or a file of another size.
    """
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif problem := _entry_problem(entry, folder, recorded):
                    raise DamageError(
                        problem,
                        where=entry.path,
                        expected="what was written",
                        advice="`krepes verify` lists all damage",
                    )


def _entry_problem(entry: os.DirEntry[str], folder: Path, recorded: Files) -> str:
    if not entry.is_file(follow_symlinks=False):
        return "no file and no folder"
    size = entry.stat(follow_symlinks=False).st_size
    known = recorded.get(Path(entry.path).relative_to(folder).as_posix())
    if known is not None and size != known[0]:
        return f"{size} bytes instead of {known[0]}"
    return "" if size <= MAX_CHUNK_BYTES + CHECKSUM_BYTES else f"{size} bytes, more than any chunk"


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
        if not all(0 <= size < 2**63 and 0 <= crc < 2**32 for size, crc in files.values()):
            raise ValueError("sizes and checksums that no file has")
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
        with open_binary(path) as file:
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
        suffixed: whether the file is a chunk, which ends in its own checksum.

    Raises:
        UsageError: no permission to read it, which says nothing about its bytes.
    """
    try:
        with open_binary(path) as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes != size:
                return f"{n_bytes} bytes instead of {size}"
            if suffixed and size > MAX_CHUNK_BYTES + CHECKSUM_BYTES:
                return f"{size} bytes, more than any chunk has"
            # The suffix is compared too: readers check a chunk by it alone.
            computed = _file_checksum(file, size - CHECKSUM_BYTES * suffixed)
            suffix = int.from_bytes(file.read(), "little")
    except FileNotFoundError:
        return "missing"
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if computed != crc:
        return "the bytes differ from the checksum recorded"
    return "the checksum suffix is damaged" if suffixed and suffix != crc else ""


def _file_checksum(file: io.FileIO, count: int) -> int:
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
