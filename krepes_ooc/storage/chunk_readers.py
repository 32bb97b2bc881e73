"""Two ways to read one chunk file: a fresh memory map, and a pooled direct read.

A map costs nothing but page faults and is right as long as the page cache can hold the store. A
store larger than half of the memory is read past the page cache (O_DIRECT) into pooled buffers:
otherwise the kernel would spend CPU time on evicting pages that are never used twice. No other
codec than the writer's is read.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.files import CHECKSUM_BYTES, READ_FLAGS, open_regular, unreadable
from krepes_ooc.errors import DamageError, StageFailed
from krepes_ooc.storage.zarr_metadata import ArrayInfo

PAGE = 4096
MAX_IDLE_BUFFERS = 16
# Limits of this process: the file is not to blame.
_OUR_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# What file systems answer that cannot read past the page cache.
_NO_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class ChunkReader(Protocol):
    """A way to read chunks; safe for any number of threads."""

    def chunk(
        self, folder: Path, info: ArrayInfo, at: tuple[int, ...]
    ) -> tuple[npt.NDArray[Any], int | None]:
        """Values of one chunk, read-only, and the crc32c on disk; None if it is checked already.

        Args:
            folder: of the array.
            info: of the array.
            at: coordinates of the chunk.

        Raises:
            DamageError: the chunk is missing, of the wrong size, or cannot be read.
            StageFailed: this process has no more file descriptors or memory.
        """


class MmapReader:
    """A fresh read-only map of the chunk file, dropped with the array."""

    def chunk(
        self, folder: Path, info: ArrayInfo, at: tuple[int, ...]
    ) -> tuple[npt.NDArray[Any], int | None]:
        """As ``ChunkReader``."""
        needed = info.chunk_bytes + CHECKSUM_BYTES
        with _opened(chunk_path(folder, at), needed, READ_FLAGS) as descriptor:
            mapped = mmap.mmap(descriptor, needed, access=mmap.ACCESS_READ)
        values = np.frombuffer(mapped, dtype=info.dtype, count=math.prod(info.chunks))
        suffix = int.from_bytes(mapped[-CHECKSUM_BYTES:], "little")
        return values.reshape(info.chunks), suffix


class DirectReader:
    """A read past the page cache into an aligned buffer, which is used again with the next chunk.

    File systems that cannot do that are read as usual, into the same buffers.
    """

    def __init__(self) -> None:
        self._pool = BufferPool()
        self._flags = READ_FLAGS | getattr(os, "O_DIRECT", 0)

    def chunk(
        self, folder: Path, info: ArrayInfo, at: tuple[int, ...]
    ) -> tuple[npt.NDArray[Any], int | None]:
        """As ``ChunkReader``.

        Raises:
            DamageError: as ``ChunkReader``.
        """
        needed = info.chunk_bytes + CHECKSUM_BYTES
        path = chunk_path(folder, at)
        buffer = self._pool.acquire(needed)
        view = memoryview(buffer)
        try:
            n_read = self._read(path, needed, view)
        except BaseException:
            # An open view would keep the buffer from being used again.
            view.release()
            self._pool.release(buffer)
            raise
        if n_read != needed:
            raise damage_error(path, f"{n_read} bytes could be read", f"{needed} bytes")
        suffix = int.from_bytes(view[needed - CHECKSUM_BYTES : needed], "little")
        view.release()
        values = np.frombuffer(buffer, dtype=info.dtype, count=math.prod(info.chunks))
        values.flags.writeable = False
        # Every view of the values keeps this array alive, so the buffer is free when it dies.
        weakref.finalize(values, self._pool.release, buffer)
        return values.reshape(info.chunks), suffix

    def _read(self, path: Path, needed: int, view: memoryview) -> int:
        try:
            with _opened(path, needed, self._flags) as descriptor:
                return _read_all(descriptor, needed, view)
        except OSError as error:
            if error.errno not in _NO_DIRECT or self._flags == READ_FLAGS:
                raise
        # This file system has no O_DIRECT: all further chunks are read as usual.
        self._flags = READ_FLAGS
        with _opened(path, needed, READ_FLAGS) as descriptor:
            return _read_all(descriptor, needed, view)


class BufferPool:
    """Page-aligned buffers of one process; at most ``MAX_IDLE_BUFFERS`` of them idle."""

    def __init__(self) -> None:
        self._idle: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def acquire(self, size: int) -> mmap.mmap:
        """A buffer of at least ``size`` bytes, whole pages."""
        # O_DIRECT reads whole pages into page-aligned memory, which an anonymous map is.
        pages = -(-size // PAGE) * PAGE
        with self._lock:
            for index, buffer in enumerate(self._idle):
                if len(buffer) == pages:
                    return self._idle.pop(index)
        return mmap.mmap(-1, pages)

    def release(self, buffer: mmap.mmap) -> None:
        """Make a buffer free for the next chunk; of too many, the longest idle one goes."""
        with self._lock:
            self._idle.append(buffer)
            del self._idle[:-MAX_IDLE_BUFFERS]


def choose_reader(info: ArrayInfo, direct_above: int | None) -> ChunkReader:
    """The reader for the chunks of one array.

    Args:
        info: of the array.
        direct_above: bytes of an array above which it is read past the page cache; None: never.
    """
    # O_DIRECT only where the page cache cannot hold the array, and where the system has it.
    size = math.prod(info.n_chunks) * info.chunk_bytes
    if direct_above is not None and size > direct_above and hasattr(os, "O_DIRECT"):
        return DirectReader()
    return MmapReader()


def chunk_path(folder: Path, at: tuple[int, ...]) -> Path:
    """File of one chunk of an array that krepes wrote."""
    return folder.joinpath("c", *map(str, at))


def damage_error(path: Path, what: str, expected: str) -> DamageError:
    """The error for a chunk that is not what was written."""
    return DamageError(
        what, where=str(path), expected=expected, advice="`krepes verify` lists all damage"
    )


@contextmanager
def _opened(path: Path, needed: int, flags: int) -> Iterator[int]:
    """The descriptor of a file of exactly this size; what goes wrong becomes one clear line."""
    try:
        descriptor = open_regular(path, flags)
        try:
            if (size := os.fstat(descriptor).st_size) != needed:
                raise damage_error(path, f"{size} bytes", f"{needed} bytes")
            yield descriptor
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise damage_error(path, "the chunk is missing", f"{needed} bytes") from None
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        # The caller reads again without O_DIRECT.
        if error.errno in _NO_DIRECT and flags != READ_FLAGS:
            raise
        if error.errno in _OUR_LIMITS:
            raise StageFailed(f"cannot map ({error.strerror})", where=str(path)) from error
        what = f"cannot be mapped ({error.strerror or error})"
        raise damage_error(path, what, f"a file of {needed} bytes") from error
    except ValueError as error:
        raise damage_error(path, f"cannot be mapped ({error})", f"{needed} bytes") from error


def _read_all(descriptor: int, needed: int, view: memoryview) -> int:
    """Read a file from its start; a direct read must ask for whole pages and gets the odd tail."""
    n_read = 0
    while n_read < needed:
        # Only the last piece of a file is short, so ``n_read`` stays a multiple of the page.
        count = os.preadv(descriptor, [view[n_read:]], n_read)
        if not count:
            break
        n_read += count
        if n_read % PAGE:
            break
    return n_read
