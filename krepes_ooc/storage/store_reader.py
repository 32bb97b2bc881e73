"""Reader of one store: chunk files are mapped, checked on first touch, never written through."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import Files, checksum
from krepes_ooc.errors import StageFailed
from krepes_ooc.storage.chunk_readers import (
    ChunkReader,
    choose_reader,
    chunk_path,
    damage_error,
)
from krepes_ooc.storage.file_checks import confine, file_problem
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.zarr_metadata import DOCUMENT, ArrayInfo, read_document, read_info


class StoreReader:
    """Rows and arrays of one store, as read-only arrays; any number of threads may ask.

    A block is a fresh memory map of its chunk file, dropped after use, so that mapped pages never
    pile up; or a pooled buffer, where the store is too large for the page cache. Sizes are checked
    before mapping, because a map beyond the end of a file kills the process. The crc32c is checked
    when this reader first touches a chunk: once in a process, because a workspace keeps one reader
    for each store.

    A chunk must also be the one that was recorded: its crc32c is that of the stage's seal, or of
    its journal while it runs. So a chunk of an earlier run, or of another place in the array, which
    is whole by its own checksum, is refused. So is a document that is not the one that was sealed.

    Args:
        path: the store's group inside ``audit.zarr``.
        direct_above: bytes of an array above which it is read past the page cache; None: never.
        record: of the stage that writes the store; None: chunks are checked by their own checksum
            alone.
    """

    def __init__(
        self, path: Path, direct_above: int | None = None, record: StageRecord | None = None
    ) -> None:
        self.path = path
        self._record = record
        self._direct_above = direct_above
        self._chunk_readers: dict[str, ChunkReader] = {}
        self._arrays: dict[str, ArrayInfo] = {}
        self._verified: set[tuple[str, tuple[int, ...]]] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach another process as its folder: maps and buffers stay here."""
        return StoreReader, (self.path, self._direct_above, self._record)

    @cached_property
    def _recorded(self) -> tuple[Files, bool]:
        """Files of the seal or of the journals, and whether every file must be among them."""
        return ({}, False) if self._record is None else self._record.recorded_files()

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store.

        Raises:
            WorkspaceError: there is no such store.
            DamageError: its metadata cannot be read.
        """
        self._check_document(self.path)
        attributes = read_document(self.path).get("attributes", {})
        if not isinstance(attributes, dict):
            raise damage_error(self.path / DOCUMENT, "no attributes", "those that were written")
        return attributes

    def info(self, name: str) -> ArrayInfo:
        """Shape, chunks, dtype and dims of one array.

        Raises:
            WorkspaceError: there is no such array, or a link leads out of the store.
            DamageError: its metadata are not those of an array that krepes may read.
        """
        if name not in self._arrays:
            folder = confine(self.path / name, self.path)
            self._check_document(folder)
            self._arrays[name] = read_info(folder)
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
            raise self._no_chunk(name, f"block {block.index}, rows {block.start} to {block.stop}")
        chunk = self._chunk(name, info, info.chunk_of(block.index, view))
        # A view is one chunk thick; the last block is stored whole and is shorter than its chunk.
        return (chunk[0] if info.row_axis else chunk)[: block.rows]

    def array(self, name: str) -> npt.NDArray[Any]:
        """One whole array, copied into memory: for stores whose size does not grow with n.

        Raises:
            StageFailed: it does not fit the memory.
            DamageError: a chunk is missing, of the wrong size, or fails its checksum.
        """
        info = self.info(name)
        if 0 not in info.shape:
            # The last chunk exists only if the shape is true: checked before anything is allocated.
            self._chunk(name, info, tuple(count - 1 for count in info.n_chunks))
        try:
            out = np.empty(info.shape, dtype=info.dtype)
        except (MemoryError, ValueError) as error:
            where = str(self.path / name)
            raise StageFailed(str(error), where=where, expected="an array that fits") from error
        # Chunks at the end reach beyond the array: only the part inside is copied.
        for at in np.ndindex(*info.n_chunks):
            index: tuple[Any, ...] = (*info.slices_of(at), ...)
            piece = out[index]
            piece[...] = self._chunk(name, info, at)[tuple(slice(size) for size in piece.shape)]
        return out

    def tile(self, name: str, row: int, column: int) -> npt.NDArray[Any]:
        """One tile of an array in tiles [..., landmark, landmark_], read-only and not copied.

        Raises:
            StageFailed: the array has no such tile.
            DamageError: the chunk is missing, of the wrong size, or fails its checksum.
        """
        info = self.info(name)
        shape = info.tile_shape(row, column)
        if shape is None:
            raise self._no_chunk(name, f"tile {row}, {column}")
        # Leading dims are a single chunk each.
        chunk = self._chunk(name, info, (*(0,) * (len(shape) - 2), row, column))
        return chunk[tuple(map(slice, shape))]

    def whole(self, name: str) -> npt.NDArray[Any]:
        """One whole array, read-only where it is a single chunk, which is not copied.

        Raises:
            StageFailed: it does not fit the memory.
            DamageError: a chunk is missing, of the wrong size, or fails its checksum.
        """
        info = self.info(name)
        # Several chunks are never contiguous in one map.
        if info.chunks != info.shape:
            return self.array(name)
        return self._chunk(name, info, (0,) * len(info.shape))

    def _chunk(self, name: str, info: ArrayInfo, at: tuple[int, ...]) -> npt.NDArray[Any]:
        folder = self.path / name
        values, suffix = self._chunk_reader(name, info).chunk(folder, info, at)
        # Once a chunk was whole in this process it is trusted: the crc costs as much as a read.
        if suffix is not None and (name, at) not in self._verified:
            if (crc := checksum(values)) != suffix:
                where = chunk_path(folder, at)
                raise damage_error(where, f"crc32c of the values is {crc:08x}", f"{suffix:08x}")
            self._check_recorded(folder, at, crc)
            self._verified.add((name, at))
        return values

    def _check_document(self, folder: Path) -> None:
        """Raise for a document of a sealed store that is not the one that was sealed."""
        path = folder / DOCUMENT
        files, complete = self._recorded
        recorded = files.get(path.relative_to(self.path).as_posix())
        if not complete or not path.exists():
            return  # what is missing is named by its reader
        if recorded is None:
            raise damage_error(path, "a document that the seal does not list", "a file of the seal")
        if problem := file_problem(path, *recorded, suffixed=False):
            raise damage_error(path, problem, "what was written")

    def _check_recorded(self, folder: Path, at: tuple[int, ...], crc: int) -> None:
        """Raise for a whole chunk that is not the one that was written here."""
        path = chunk_path(folder, at)
        files, complete = self._recorded
        recorded = files.get(path.relative_to(self.path).as_posix())
        if recorded is not None and recorded[1] != crc:
            what = f"a whole chunk, but not the one written here (crc32c {crc:08x})"
            raise damage_error(path, what, f"{recorded[1]:08x}, as recorded")
        if recorded is None and complete:
            raise damage_error(path, "a chunk that the seal does not list", "a file of the seal")

    def _chunk_reader(self, name: str, info: ArrayInfo) -> ChunkReader:
        if name not in self._chunk_readers:
            self._chunk_readers[name] = choose_reader(info, self._direct_above)
        return self._chunk_readers[name]

    def _no_chunk(self, name: str, what: str) -> StageFailed:
        info = self.info(name)
        expected = f"a chunk of dims {info.dims}, shape {info.shape}, chunks {info.chunks}"
        return StageFailed(what, where=str(self.path / name), expected=expected)
