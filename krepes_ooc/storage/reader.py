"""Read one store: chunk files are mapped, checked on first touch, and never written through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.blocks import Block
from krepes_ooc.errors import DamageError, WorkspaceError
from krepes_ooc.storage.files import CHECKSUM_BYTES, checksum

CODECS = ["bytes", "crc32c"]


@dataclass(frozen=True)
class ArrayInfo:
    """What the reader needs of one array's metadata."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    attributes: dict[str, Any]
    mappable: bool

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk's values, checksum not counted."""
        return int(np.prod(self.chunks, dtype=np.int64)) * self.dtype.itemsize


class StoreReader:
    """Rows and arrays of one store, as read-only arrays.

    A block is a fresh memory map of its chunk file, dropped after use, so that mapped pages never pile
    up; sizes are checked before mapping, because a map beyond the end of a file kills the process.

    Args:
        path: the store's group inside ``audit.zarr``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, ArrayInfo] = {}
        self._verified: set[Path] = set()

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store."""
        return dict(self._metadata(self.path)["attributes"])

    def info(self, name: str) -> ArrayInfo:
        """Shape, chunks, dtype and dims of one array."""
        if name not in self._arrays:
            self._arrays[name] = _parse(self._metadata(self.path / name))
        return self._arrays[name]

    def has(self, name: str) -> bool:
        """Whether the store holds this optional array."""
        return (self.path / name / "zarr.json").exists()

    def block(self, name: str, block: Block, view: int = 0) -> npt.NDArray[Any]:
        """Rows of one block (of one view): [sample, ...] or [sample].

        Raises:
            DamageError: the chunk is missing, of the wrong size, or fails its checksum.
        """
        info = self.info(name)
        index = {"view": view, "sample": block.index, "audited": block.index}
        chunk = self._chunk(name, tuple(index.get(dim, 0) for dim in info.dims))
        rows = chunk[0] if info.dims[0] == "view" else chunk
        return rows[: block.rows]

    def array(self, name: str) -> npt.NDArray[Any]:
        """One whole array, copied into memory: for stores whose size does not grow with n."""
        info = self.info(name)
        if 0 in info.shape:
            return np.empty(info.shape, dtype=info.dtype)
        out = np.empty(info.shape, dtype=info.dtype)
        counts = [-(-size // chunk) for size, chunk in zip(info.shape, info.chunks, strict=True)]
        for at in np.ndindex(*counts):
            starts = [i * chunk for i, chunk in zip(at, info.chunks, strict=True)]
            target = tuple(slice(s, s + c) for s, c in zip(starts, info.chunks, strict=True))
            piece = out[target]
            piece[...] = self._chunk(name, at)[tuple(slice(size) for size in piece.shape)]
        return out

    def _chunk(self, name: str, coordinates: tuple[int, ...]) -> npt.NDArray[Any]:
        info = self.info(name)
        path = self.path.joinpath(name, "c", *map(str, coordinates))
        if not info.mappable:
            return self._plain_chunk(name, info, coordinates)
        values = map_chunk(path, info)
        if path not in self._verified:
            check_chunk(path, values)
            self._verified.add(path)
        return values

    def _plain_chunk(
        self, name: str, info: ArrayInfo, coordinates: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """Any other codec: let Zarr decode it (slower; a missing chunk would read as fill)."""
        import zarr

        array = zarr.open_array(self.path / name, mode="r")
        start = [i * c for i, c in zip(coordinates, info.chunks, strict=True)]
        values = array[tuple(slice(s, s + c) for s, c in zip(start, info.chunks, strict=True))]
        return np.asarray(values)

    def _metadata(self, folder: Path) -> dict[str, Any]:
        path = folder / "zarr.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise WorkspaceError(
                "the store has no metadata",
                where=str(path),
                expected="a store written by krepes",
                advice="`krepes status` shows what the workspace holds",
            ) from None
        except ValueError as error:
            raise DamageError(f"the metadata is no JSON: {error}", where=str(path)) from error


def map_chunk(path: Path, info: ArrayInfo) -> npt.NDArray[Any]:
    """Map the values of one chunk file, read-only, its size checked first.

    Raises:
        DamageError: the file is missing or its size is wrong.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise damaged(path, "the chunk is missing", f"{info.chunk_bytes + CHECKSUM_BYTES} bytes") from None
    if size != info.chunk_bytes + CHECKSUM_BYTES:
        raise damaged(path, f"{size} bytes", f"{info.chunk_bytes + CHECKSUM_BYTES} bytes")
    return np.memmap(path, dtype=info.dtype, mode="r", shape=info.chunks)


def check_chunk(path: Path, values: npt.NDArray[Any]) -> int:
    """Compare a mapped chunk with the checksum behind it; returns the crc32c of the values.

    Raises:
        DamageError: the checksum does not match.
    """
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES, 2)
        expected = int.from_bytes(file.read(CHECKSUM_BYTES), "little")
    crc = checksum(values)
    if crc != expected:
        raise damaged(path, f"crc32c of the values is {crc:08x}", f"{expected:08x}")
    return crc


def damaged(path: Path, what: str, expected: str) -> DamageError:
    """The error for a chunk that is not what was written."""
    return DamageError(
        what,
        where=str(path),
        expected=expected,
        advice="`krepes verify` lists all damage",
    )


def _parse(metadata: dict[str, Any]) -> ArrayInfo:
    codecs = [codec["name"] for codec in metadata["codecs"]]
    grid = metadata["chunk_grid"]
    key = metadata["chunk_key_encoding"]
    plain_keys = key["name"] == "default" and key.get("configuration", {}).get("separator", "/") == "/"
    shape = tuple(int(size) for size in metadata["shape"])
    return ArrayInfo(
        shape=shape,
        chunks=tuple(int(size) for size in grid["configuration"]["chunk_shape"]),
        dtype=np.dtype(metadata["data_type"]).newbyteorder("<"),
        dims=tuple(metadata.get("dimension_names") or (str(i) for i in range(len(shape)))),
        attributes=dict(metadata["attributes"]),
        mappable=codecs == CODECS and grid["name"] == "regular" and plain_keys,
    )
