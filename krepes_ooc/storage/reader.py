"""Read one store: chunk files are mapped, checked on first touch, and never written through."""

from __future__ import annotations

import errno
import math
import mmap
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.blocks import Block
from krepes_ooc.errors import DamageError, StageFailed
from krepes_ooc.storage.checks import confine
from krepes_ooc.storage.files import CHECKSUM_BYTES, READ_FLAGS, checksum
from krepes_ooc.storage.metadata import DOCUMENT, ArrayInfo, read_document, read_info

_OUR_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class StoreReader:
    """Rows and arrays of one store, as read-only arrays; any number of threads may ask.

    A block is a fresh memory map of its chunk file, dropped after use, so that mapped pages never
    pile up; it holds one file descriptor while it lives. Sizes are checked before mapping, because
    a map beyond the end of a file kills the process. The crc32c is checked when this reader first
    touches a chunk: once in a process, because a workspace keeps one reader for each store.

    Args:
        path: the store's group inside ``audit.zarr``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, ArrayInfo] = {}
        self._verified: set[tuple[str, tuple[int, ...]]] = set()

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store.

        Raises:
            WorkspaceError: there is no such store.
            DamageError: its metadata cannot be read.
        """
        return dict(read_document(self.path).get("attributes", {}))

    def info(self, name: str) -> ArrayInfo:
        """Shape, chunks, dtype and dims of one array.

        Raises:
            WorkspaceError: there is no such array, or a link leads out of the store.
            DamageError: its metadata are not those of an array that krepes may read.
        """
        if name not in self._arrays:
            self._arrays[name] = read_info(confine(self.path / name, self.path))
        return self._arrays[name]

    def has(self, name: str) -> bool:
        """Whether the store holds this optional array."""
        return (self.path / name / DOCUMENT).exists()

    def names(self) -> list[str]:
        """Arrays that the store holds."""
        return sorted(path.parent.name for path in self.path.glob(f"*/{DOCUMENT}"))

    def block(self, name: str, block: Block, view: int = 0) -> npt.NDArray[Any]:
        """Rows of one block (of one view): [sample, ...] or [sample].

        Raises:
            StageFailed: the block is not one of the array's chunks.
            DamageError: the chunk is missing, of the wrong size, or fails its checksum.
        """
        info = self.info(name)
        if not info.is_chunk(block):
            raise StageFailed(
                f"block {block.index}, rows {block.start} to {block.stop}",
                where=str(self.path / name),
                expected=f"a chunk of dims {info.dims}, shape {info.shape}, chunks {info.chunks}",
            )
        chunk = self._chunk(name, info, info.chunk_of(block.index, view))
        return (chunk[0] if info.row_axis else chunk)[: block.rows]

    def array(self, name: str) -> npt.NDArray[Any]:
        """One whole array, copied into memory: for stores whose size does not grow with n.

        Raises:
            StageFailed: it does not fit the memory.
            DamageError: a chunk is missing, of the wrong size, or fails its checksum.
        """
        info = self.info(name)
        if 0 not in info.shape:
            # An impossible shape is found here, before anything is allocated.
            self._chunk(name, info, tuple(count - 1 for count in info.n_chunks))
        try:
            out = np.empty(info.shape, dtype=info.dtype)
        except (MemoryError, ValueError) as error:
            where = str(self.path / name)
            raise StageFailed(str(error), where=where, expected="an array that fits") from error
        for at in np.ndindex(*info.n_chunks):
            starts = [i * chunk for i, chunk in zip(at, info.chunks, strict=True)]
            cut: list[Any] = [slice(s, s + c) for s, c in zip(starts, info.chunks, strict=True)]
            piece = out[(*cut, ...)]
            piece[...] = self._chunk(name, info, at)[tuple(slice(size) for size in piece.shape)]
        return out

    def _chunk(self, name: str, info: ArrayInfo, at: tuple[int, ...]) -> npt.NDArray[Any]:
        path = self.path.joinpath(name, "c", *map(str, at))
        if not info.mappable:
            return self._decoded_chunk(name, info, at)
        values, suffix = map_chunk(path, info)
        if (name, at) not in self._verified:
            if (crc := checksum(values)) != suffix:
                raise _damaged(path, f"crc32c of the values is {crc:08x}", f"{suffix:08x}")
            self._verified.add((name, at))
        return values

    def _decoded_chunk(self, name: str, info: ArrayInfo, at: tuple[int, ...]) -> npt.NDArray[Any]:
        """Any other codec, of a copy that somebody compressed: Zarr decodes it, more slowly."""
        import zarr

        folder = self.path / name
        try:
            array = zarr.open_array(folder, mode="r", zarr_format=3)
            path = folder / array.metadata.encode_chunk_key(at)
            if not path.exists():
                raise _damaged(path, "the chunk is missing", "a file")
            starts = [i * chunk for i, chunk in zip(at, info.chunks, strict=True)]
            cut = tuple(slice(s, s + c) for s, c in zip(starts, info.chunks, strict=True))
            return np.asarray(array[cut])
        except (ValueError, RuntimeError, TypeError, KeyError, OSError) as error:
            raise _damaged(folder, f"chunk {list(at)}: {error}", "what Zarr can decode") from error


def map_chunk(path: Path, info: ArrayInfo) -> tuple[npt.NDArray[Any], int]:
    """Values of one chunk file, mapped read-only, its size checked first; and their crc32c on disk.

    Raises:
        DamageError: the file is missing or its size is wrong.
        StageFailed: this process has no more file descriptors or address space.
    """
    needed = info.chunk_bytes + CHECKSUM_BYTES
    try:
        descriptor = os.open(path, READ_FLAGS)
        try:
            if (size := os.fstat(descriptor).st_size) != needed:
                raise _damaged(path, f"{size} bytes", f"{needed} bytes")
            mapped = mmap.mmap(descriptor, needed, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise _damaged(path, "the chunk is missing", f"{needed} bytes") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _OUR_LIMITS:
            raise StageFailed(f"cannot map ({error.strerror})", where=str(path)) from error
        raise _damaged(path, f"cannot be mapped ({error})", f"{needed} bytes") from error
    values = np.frombuffer(mapped, dtype=info.dtype, count=math.prod(info.chunks))
    suffix = int.from_bytes(mapped[-CHECKSUM_BYTES:], "little")
    return values.reshape(info.chunks), suffix


def _damaged(path: Path, what: str, expected: str) -> DamageError:
    return DamageError(
        what,
        where=str(path),
        expected=expected,
        advice="`krepes verify` lists all damage",
    )
