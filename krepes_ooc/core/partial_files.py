"""Files of partial results: whole or absent; the checksum holds for one run and one place only."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.files import CHECKSUM_BYTES, checksum, open_binary, write_atomic

_END_BYTES = 22 + CHECKSUM_BYTES  # what ends an archive of arrays, and the checksum behind it
Arrays = Mapping[str, npt.NDArray[Any]]


def write_partial_file(path: Path, data: bytes, temp: Path, key: str = "") -> None:
    """Write the bytes of a partial result and their checksum.

    Args:
        path: the file.
        data: its content.
        temp: folder on the same file system.
        key: what the result is part of; it enters the checksum, so that a file of another run or
            another place is refused when it is read under this key.

    Raises:
        StageFailed: the disk is full or fails.
    """
    suffix = checksum(data, key).to_bytes(CHECKSUM_BYTES, "little")
    write_atomic(path, (data, suffix), temp, sync=True)


def read_partial_file(path: Path, key: str = "") -> bytes | None:
    """The bytes of a partial result; None if it is missing, damaged or of another key.

    Args:
        path: the file.
        key: what it was written under.
    """
    try:
        with open_binary(path) as file:
            # The end of an archive comes first: a file of holes is not read.
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END_BYTES))
            if not file.read(_END_BYTES).startswith(b"PK\x05\x06"):
                return None
            file.seek(0)
            data = file.readall()
    except (OSError, MemoryError):
        return None
    payload = data[:-CHECKSUM_BYTES]
    if checksum(payload, key) != int.from_bytes(data[-CHECKSUM_BYTES:], "little"):
        return None
    return payload


def write_arrays(path: Path, arrays: Arrays, temp: Path, key: str = "") -> None:
    """Write a partial result: named arrays with one checksum.

    Args:
        path: the file.
        arrays: by name.
        temp: folder on the same file system.
        key: what the result is part of.
    """
    # An uncompressed .npz, followed by its crc32c as a chunk is.
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_partial_file(path, buffer.getvalue(), temp, key)


def read_arrays(path: Path, key: str = "") -> dict[str, npt.NDArray[Any]] | None:
    """The arrays of a partial result; None if it is missing, damaged or of another key.

    Args:
        path: the file.
        key: what it was written under.
    """
    # Nothing is parsed before its checksum holds.
    data = read_partial_file(path, key)
    if data is None:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            # They are written as they are: nothing may grow when it is read.
            if any(item.compress_size != item.file_size for item in loaded.zip.infolist()):
                return None
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, KeyError, MemoryError, zipfile.BadZipFile):
        return None
