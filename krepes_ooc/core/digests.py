"""sha256 of whole files, remembered between runs while the file is untouched."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import checksummed_json, read_checksummed
from krepes_ooc.errors import SourceError


def canonical_digest(value: Any) -> str:
    """sha256, in hex, of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a whole file, in hex.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def remembered_sha256(path: Path, cache: Path) -> str:
    """sha256 of a whole file, read again only if size, time, change time or inode differ.

    Raises:
        SourceError: the file cannot be read.
    """
    memory = cache / "fingerprint.json"
    known = _read_known(memory)
    key, seal = str(path), list(stat_signature(path))
    if isinstance(known.get(key), dict) and known[key].get("stat") == seal:
        return str(known[key]["sha256"])
    digest = file_sha256(path)
    if list(stat_signature(path)) == seal:
        known = _read_known(memory) | {key: {"stat": seal, "sha256": digest}}
        write_atomic(memory, checksummed_json(known))
    return digest


def stat_signature(path: Path) -> tuple[int, int, int, int]:
    """What changes when a file is written: size, modification time, change time, inode.

    Raises:
        SourceError: the file is gone.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def write_atomic(path: Path, content: bytes) -> None:
    """Write a small file by temporary name and rename.

    Raises:
        SourceError: the cache folder cannot be written.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        publish(Path(temporary), path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise SourceError(
            f"cannot write the cache: {error.strerror}",
            where=str(path),
            advice="free space or choose another workspace",
        ) from error


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name, after its bytes have reached the disk.

    Raises:
        OSError: the disk refuses.
    """
    handle = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(temporary, path)


def unreadable(path: Path, error: Exception) -> SourceError:
    """The error for a file that cannot be read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SourceError(f"cannot be read: {reason}", where=str(path), expected="a readable file")


def _read_known(path: Path) -> dict[str, Any]:
    """What is remembered; nothing where it is not what was written, so that it is learned anew."""
    try:
        return read_checksummed(path.read_bytes()) or {}
    except OSError:
        return {}
