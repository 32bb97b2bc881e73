"""Digests: sha256 of canonical JSON and of whole files, cached while a file is untouched."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import (
    MAX_RECORD_BYTES,
    checksummed_json,
    not_a_file,
    read_checksummed,
    read_small,
    to_json,
    unreadable,
    write_atomic,
)
from krepes_ooc.errors import SourceError

_MEMORY = "fingerprint.json"


def canonical_digest(value: Any) -> str:
    """sha256, in hex, of canonical JSON (``to_json``)."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()


def pairs_digest(names: Sequence[str], values: Sequence[str]) -> str:
    """``canonical_digest`` of the pairs of two lists of texts, which may be millions."""
    # Texts need no conversion to plain values, pair by pair.
    pairs = json.dumps(list(zip(names, values, strict=True)), separators=(",", ":"))
    return hashlib.sha256(pairs.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a whole file, in hex.

    Raises:
        SourceError: the file cannot be read.
    """
    stat_signature(path)  # of a pipe the opening would wait
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error, source=True) from error


def remembered_sha256(path: Path, cache: Path) -> str:
    """sha256 of a whole file, read again only if size, time, change time or inode differ.

    Args:
        path: the file.
        cache: folder of ``fingerprint.json``, where digests are kept between runs.

    Raises:
        SourceError: the file cannot be read, or the cache folder cannot be written.
    """
    signature = stat_signature(path)
    if (known := recall_sha256(path, cache)) is not None:
        return known
    digest = file_sha256(path)
    # A file that changed while it was read has a digest of no version of it: not to be kept.
    if stat_signature(path) == signature:
        remember_sha256(path, cache, digest)
    return digest


def recall_sha256(path: Path, cache: Path) -> str | None:
    """sha256 of a file whose size, times and inode are those of its last reading, else None.

    Raises:
        SourceError: the file is gone.
    """
    entry = _read_digests(cache / _MEMORY).get(str(path))
    if isinstance(entry, dict) and entry.get("stat") == list(stat_signature(path)):
        return str(entry["sha256"])
    return None


def remember_sha256(path: Path, cache: Path, sha256: str) -> None:
    """Keep the sha256 of a file as it is now.

    Raises:
        SourceError: the file is gone, or the cache folder cannot be written.
    """
    memory = cache / _MEMORY
    # Read again: another process may have added its files meanwhile.
    digests = _read_digests(memory)
    digests |= {str(path): {"stat": list(stat_signature(path)), "sha256": sha256}}
    write_cache_file(memory, checksummed_json(digests, cache_key(memory)))


def stat_signature(path: Path) -> tuple[int, int, int, int]:
    """Size, modification time, change time and inode: one of them changes with the content.

    Raises:
        SourceError: the file is gone, or something else is there: a pipe, a device, a folder.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise not_a_file(path, state.st_mode)
    except OSError as error:
        raise unreadable(path, error, source=True) from error
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def cache_key(path: Path) -> str:
    """Key of a checksummed file of the cache: its name and that of its folder.

    The names hold digests of what was scanned, so that a result of another scan is refused.
    """
    return f"{path.parent.name}/{path.name}"


def write_cache_file(path: Path, content: bytes) -> None:
    """Write a small file of the cache, whole or absent.

    Raises:
        SourceError: the cache folder cannot be written.
    """
    write_atomic(path, content, path.parent, sync=True, as_error=_cache_error)


def _cache_error(error: OSError, path: Path, _needed: int) -> SourceError:
    return SourceError(
        f"cannot write the cache: {error.strerror}",
        where=str(path),
        advice="free space or choose another workspace",
    )


def _read_digests(path: Path) -> dict[str, Any]:
    """Cached digests by path; none where the record is damaged, so that files are read again."""
    try:
        return read_checksummed(read_small(path, MAX_RECORD_BYTES), cache_key(path)) or {}
    except OSError:
        return {}
