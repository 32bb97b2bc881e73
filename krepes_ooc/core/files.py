"""Files that are whole or absent (temporary name and rename), checksums, checksummed JSON."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.errors import DamageError, KrepesError, SourceError, StageFailed, UsageError

CHECKSUM_BYTES = 4
MAX_RECORD_BYTES = 2**28
# A pipe is opened without waiting for its other end, and a link is not followed.
SAFE_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))
READ_FLAGS = os.O_RDONLY | SAFE_FLAGS | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}
# What network file systems answer that cannot flush a folder, and need not.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES)
Bytes = bytes | memoryview
Files = dict[str, tuple[int, int]]


class NotAFileError(OSError):
    """Something else is where a file should be: a pipe, a socket, a device, a folder or a link."""


def open_regular(path: Path, flags: int = READ_FLAGS, mode: int = 0o666) -> int:
    """Descriptor of a regular file; nothing else is waited for, followed or read.

    Args:
        path: the file.
        flags: as ``os.open``.
        mode: of a file that the flags create; the umask is taken off.

    Raises:
        NotAFileError: something else is there.
        OSError: the file cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | SAFE_FLAGS, mode)
    except OSError as error:
        # Sockets, links and folders that are to be written cannot even be opened.
        if error.errno in (errno.ENXIO, errno.ELOOP, errno.EISDIR, errno.ENODEV):
            raise not_a_file(path, _mode_of(path)) from error
        raise
    found = os.fstat(descriptor).st_mode
    if stat.S_ISREG(found):
        return descriptor
    os.close(descriptor)
    raise not_a_file(path, found)


def _mode_of(path: Path) -> int:
    # A loop of links further up has no mode.
    try:
        return os.lstat(path).st_mode
    except OSError:
        return stat.S_IFLNK


def not_a_file(path: Path, mode: int) -> NotAFileError:
    """The error for what is no regular file.

    Args:
        path: where it is.
        mode: its ``st_mode``.
    """
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    return NotAFileError(errno.ENXIO, f"{kind} instead of a file", str(path))


def open_binary(path: Path, mode: str = "rb") -> io.FileIO:
    """A regular file, opened without a buffer, for reading unless another mode is given.

    Raises:
        OSError: as ``open_regular``.
    """
    file: Any = open(path, mode, buffering=0, opener=_opener)  # noqa: SIM115  the caller closes
    return cast("io.FileIO", file)


def _opener(path: str, flags: int) -> int:
    return open_regular(Path(path), flags)


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a regular file that is not larger than a limit.

    Raises:
        OSError: as ``open_regular``; or it is larger.
    """
    with open_binary(path) as raw, io.BufferedReader(raw) as file:
        size = os.fstat(raw.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size} bytes, more than {limit}", str(path))
        # One byte more than is allowed: the file may grow meanwhile.
        return file.read(min(size, limit) + 1)


def boot_id() -> str:
    """Identity of the running kernel, empty if unknown: another boot's sizes are not trusted."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def write_atomic(
    path: Path,
    data: Bytes | tuple[Bytes, ...],
    temp: Path,
    *,
    sync: bool,
    as_error: Callable[[OSError, Path, int], KrepesError] | None = None,
) -> None:
    """Write a file so that it is whole or absent; with ``sync`` also after a power loss.

    Args:
        path: final place.
        data: the bytes, in one or several parts.
        temp: folder on the same file system, outside any Zarr store.
        sync: flush the file and its folder to the disk before returning.
        as_error: the error for what the system refuses (error, path, bytes needed); default:
            those of ``disk_errors``.

    Raises:
        StageFailed: the disk is full or fails; says how much was needed and how much is free.
        UsageError: no permission to write there.
    """
    parts = data if isinstance(data, tuple) else (data,)
    partial = temp / f".{path.name}.{uuid.uuid4().hex}"
    with disk_errors(path, sum(map(len, parts)), as_error):
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.writelines(parts)
            if sync:
                publish(partial, path)
            else:
                partial.replace(path)
        except BaseException:
            # What cannot be removed now is removed with the other leftovers by the next run.
            remove_leftover(partial)
            raise


def remove_leftover(path: Path) -> None:
    """Delete a file that nothing reads any more; one that cannot be deleted does no harm."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its name; both last through a power loss.

    Raises:
        OSError: the disk refuses.
    """
    # The bytes must be on the disk before the name is, else the name may lead to nothing.
    sync_path(temporary)
    temporary.replace(path)
    sync_path(path.parent)


def sync_path(path: Path) -> int:
    """Flush a file, or a folder and the renames inside it, to the disk; returns its size."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        state = os.fstat(descriptor)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if not stat.S_ISDIR(state.st_mode) or error.errno not in _NO_FOLDER_SYNC:
                raise
        return state.st_size
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(
    path: Path,
    needed: int = 4096,
    as_error: Callable[[OSError, Path, int], KrepesError] | None = None,
) -> Iterator[None]:
    """Turn a full or failing disk and a missing permission into one clear line.

    Args:
        path: what is being written.
        needed: bytes that it takes.
        as_error: makes another error of what the system refuses.

    Raises:
        StageFailed: the disk is full, with the bytes needed and free; or it fails.
        UsageError: no permission, or a file is in the way.
    """
    try:
        yield
    except OSError as error:
        raise (as_error or _disk_error)(error, path, needed) from error


def _disk_error(error: OSError, path: Path, needed: int) -> KrepesError:
    where = str(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageFailed(
            f"the disk is full: {format_bytes(needed)} needed, {format_bytes(_free(path))} free",
            where=where,
            advice="free some space and run the same command again: it resumes",
        )
    if error.errno == errno.EISDIR or isinstance(error, NotAFileError):
        return DamageError(
            f"cannot write ({error.strerror})",
            where=where,
            expected="a file, or nothing",
            advice="remove it, then run the same command again",
        )
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(
            "the path is too long",
            where=where,
            expected="a path that the file system takes",
            advice="choose a shorter --workspace",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return UsageError(
            f"cannot write ({error.strerror})",
            where=where,
            expected="a folder you may write to",
            advice="choose another --workspace",
        )
    return StageFailed(
        f"the disk fails ({error.strerror or error})",
        where=where,
        advice="look at the disk, then run the same command again: it resumes",
    )


def _free(path: Path) -> int:
    # The folder may not be made yet: its file system is that of the nearest parent.
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def read_bytes(path: Path) -> bytes | None:
    """A whole small file, or None if there is none.

    Raises:
        UsageError: no permission to read it.
        DamageError: it cannot be read, or is larger than any record.
    """
    try:
        return read_small(path, MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EFBIG:
            limit = f"at most {format_bytes(MAX_RECORD_BYTES)}"
            raise DamageError("the file is too large", where=str(path), expected=limit) from error
        raise unreadable(path, error) from error


def read_if_record(path: Path) -> bytes | None:
    """A whole small file, or None if there is none, or something that no record can be.

    Raises:
        UsageError: no permission to read it.
        DamageError: the disk fails.
    """
    try:
        return read_bytes(path)
    except DamageError as error:
        cause = error.__cause__
        is_large = isinstance(cause, OSError) and cause.errno == errno.EFBIG
        if is_large or isinstance(cause, NotAFileError):
            return None
        raise


def unreadable(path: Path, error: Exception, *, source: bool = False) -> KrepesError:
    """The error for a file that is there and cannot be read.

    Args:
        path: the file.
        error: what the system or a library said.
        source: whether the file is the user's, and not one that was written here.

    Returns:
        SourceError for the user's file; else UsageError without permission, DamageError otherwise.
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if source:
        return SourceError(f"cannot be read: {reason}", where=str(path), expected="a readable file")
    if isinstance(error, PermissionError):
        return UsageError(
            f"cannot be read ({reason})",
            where=str(path),
            expected="a file that you may read",
        )
    return DamageError(
        f"cannot be read ({reason})",
        where=str(path),
        expected="the file that was written",
        advice="look at the disk, then run again, with --repair if it stays so",
    )


def read_checksummed_file(path: Path) -> dict[str, Any] | None:
    """The value of a one-line checksummed file, or None if there is no such file.

    Raises:
        DamageError: the file is there, but not what was written.
    """
    line = read_bytes(path)
    if line is None:
        return None
    value = read_checksummed(line)
    if value is None:
        raise DamageError(
            "the record does not match its checksum",
            where=str(path),
            expected="the line that was written",
            advice="`krepes run --repair` mends it: what it recorded is computed anew",
        )
    return value


def write_checksummed_file(path: Path, value: Mapping[str, Any], temp: Path) -> None:
    """Write a one-line checksummed file, whole or absent; it lasts through a power loss.

    Raises:
        StageFailed: the disk is full or fails.
        UsageError: no permission to write there.
    """
    write_atomic(path, checksummed_json(value), temp, sync=True)


def checksum(data: bytes | npt.NDArray[Any], key: str = "") -> int:
    """crc32c of bytes or of a contiguous array, and of a key behind them."""
    crc = google_crc32c.value(data)
    return int(google_crc32c.extend(crc, key.encode()) if key else crc)


def to_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN (None instead)."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


_JSON_TYPES = frozenset({str, int, bool, type(None)})


def _plain(value: Any) -> Any:
    """The value in the types that JSON has: NumPy's as Python's, paths as text."""
    # Most values of a long record are these, and need no other question.
    if type(value) in _JSON_TYPES:
        return value
    if isinstance(value, dict | Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        # One question for all entries of a long list.
        plain = _JSON_TYPES.issuperset(map(type, value))
        return value if plain else [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def checksummed_json(value: Mapping[str, Any], key: str = "") -> bytes:
    """One line of JSON that carries its own checksum.

    Args:
        value: the content.
        key: what the line is, such as the name of its file; it enters the checksum, so that the
            line is refused when it is read under another key.
    """
    # Written by hand: the checksum covers the exact bytes of the body.
    body = to_json(value).encode()
    return b'{"crc32c":%d,"body":%b}\n' % (checksum(body, key), body)


def read_checksummed(line: bytes, key: str = "") -> dict[str, Any] | None:
    """The value of one checksummed line, or None if the line is torn, changed or of another key.

    Lines without a key, as earlier versions wrote them, are read under every key.
    """
    # The inverse of ``checksummed_json``: {"crc32c":N,"body":BODY} and a line end, nothing else.
    head, _, rest = line.partition(b',"body":')
    body = rest[:-2]
    known = {b'{"crc32c":%d' % checksum(body, each) for each in (key, "")}
    if rest[-2:] != b"}\n" or head not in known:
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
