"""Files that are whole or absent: temp + rename, checksums, checked JSON lines."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from krepes_ooc.blocks import format_bytes
from krepes_ooc.errors import DamageError, StageFailed, UsageError

CHECKSUM_BYTES = 4


def checksum(data: Any) -> int:
    """crc32c of a contiguous buffer."""
    return int(google_crc32c.value(data))


def boot_id() -> str:
    """Identity of the running kernel: after a reboot, unsynced files are not trusted by size."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def write_atomic(path: Path, data: bytes | memoryview, temp: Path, *, sync: bool) -> None:
    """Write a file so that it is whole or absent; with ``sync`` also after a power loss.

    Args:
        path: final place.
        data: the bytes.
        temp: folder on the same file system, outside any Zarr store.
        sync: flush the file and its folder to the disk before returning.

    Raises:
        StageFailed: the disk is full; says how much was needed and how much is free.
        UsageError: no permission to write there.
    """
    part = temp / f"{uuid.uuid4().hex}.partial"
    with disk_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        if sync:
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename inside it survives a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full disk and a missing permission into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StageFailed(
                f"the disk is full: {format_bytes(needed)} needed, {format_bytes(_free(path))} free",
                where=str(path),
                advice="free some space and run the same command again: it resumes",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(
                f"cannot write ({error.strerror})",
                where=str(path),
                expected="a folder you may write to",
                advice="choose another --workspace",
            ) from error
        raise


def _free(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def to_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN (None instead)."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def sign_json(value: Mapping[str, Any]) -> bytes:
    """One line of JSON that carries its own checksum."""
    body = to_json(value)
    return f'{{"crc32c":{checksum(body.encode())},"body":{body}}}\n'.encode()


def read_signed(line: bytes) -> dict[str, Any] | None:
    """The value of one signed line, or None if the line is torn or changed."""
    try:
        parsed = json.loads(line)
        body = parsed["body"]
        whole = line.endswith(b"\n") and sign_json(body) == line
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return dict(body) if whole and isinstance(body, dict) else None


def read_signed_file(path: Path) -> dict[str, Any] | None:
    """The value of a one-line signed file, or None if there is no such file.

    Raises:
        DamageError: the file is there, but not what was written.
    """
    try:
        line = path.read_bytes()
    except FileNotFoundError:
        return None
    value = read_signed(line)
    if value is None:
        raise DamageError(
            "the record does not match its checksum",
            where=str(path),
            advice="`krepes run --restart-stale` computes its stage again",
        )
    return value


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], temp: Path) -> None:
    """Write a partial result: named arrays with one checksum, whole or absent."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    write_atomic(path, data + checksum(data).to_bytes(CHECKSUM_BYTES, "little"), temp, sync=True)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays of a partial result, or None if it is missing or damaged: it is computed again."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    payload, suffix = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if len(data) < CHECKSUM_BYTES or checksum(payload) != int.from_bytes(suffix, "little"):
        return None
    with np.load(io.BytesIO(payload), allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}
