"""A user's Zarr folder as a source: rows are read chunk by chunk, and no chunk may be missing.

Zarr reads a chunk that is not there as its fill value, without a word. Writers leave out chunks
that hold nothing else, so a lost chunk cannot be told from such a one: both are refused.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.blocks import format_bytes
from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.network.digests import stat_seal, unreadable
from krepes_ooc.network.rows import MemoryRows, Rows, check_unchanged, choose_array
from krepes_ooc.network.samples import BUFFER_BYTES, Int64

# Metadata files of an array, of Zarr format 3 and 2, and of a group.
_ARRAY_FILES, _GROUP_FILES = ("zarr.json", ".zarray"), ("zarr.json", ".zgroup")
# What Zarr and its codecs raise for harmed metadata and chunks.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, zlib.error)


@dataclass(frozen=True)
class ZarrRows:
    """Rows of a Zarr array in a folder; the array is opened for every reading.

    Args:
        path: folder of the array.
        dtype: type of the values as they are stored.
        shape: size of every dimension, samples first; may be shorter than the stored array.
        metadata: the file that says how the array lies on the disk.
        seal: ``stat_seal`` of that file when the array was opened.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    metadata: Path
    seal: tuple[int, int, int, int]

    @property
    def resident_bytes(self) -> int:
        """The chunks of one range of rows, unpacked."""
        return _slab_bytes(_open(self.path))

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the rows at these positions, in native byte order.

        Raises:
            DataError: the array changed since it was opened, a chunk is missing or damaged.
        """
        check_unchanged(self.metadata, self.seal)
        found = np.empty((len(positions), *self.shape[1:]), self.dtype.newbyteorder("="))
        if not positions.size:
            return found
        array = _open(self.path)
        height, files = int(array.chunks[0]), _file_shape(array)[0]
        # One range of rows after the other, so that no more than its chunks is unpacked at once.
        for slab in np.unique(positions // height).tolist():
            places = np.flatnonzero(positions // height == slab)
            inside = slab * height // files
            _check_there(array, self.path, _coordinates(array, range(inside, inside + 1)))
            wanted, back = np.unique(positions[places], return_inverse=True)
            try:
                found[places] = np.asarray(array.oindex[wanted])[back]
            except _DAMAGE as error:
                words = " ".join(str(error).split()) or type(error).__name__
                raise DataError(
                    f"rows {wanted[0]} to {wanted[-1]} cannot be unpacked: {words}",
                    where=str(self.path),
                    expected="undamaged chunks",
                    advice="write the array again",
                ) from error
        return found


def is_zarr(path: Path | str) -> bool:
    """Whether a path is called like a Zarr folder."""
    return Path(path).suffix.lower() == ".zarr"


def files_under(folder: Path) -> list[str]:
    """Names of all files of a folder, relative to it, sorted."""
    found = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def open_zarr(folder: Path, array: str) -> Rows:
    """An array of a Zarr folder, format 2 or 3; texts are read whole.

    Args:
        folder: an array, or a group of arrays.
        array: name of the array inside a group; may be empty if there is one.

    Raises:
        SourceError: no such array, it holds Python objects, its chunks are too large, or one is
            missing.
    """
    path = folder / _choose(folder, array)
    metadata = next(path / name for name in _ARRAY_FILES if (path / name).is_file())
    _refuse_objects(metadata)
    found = _open(path)
    shape, dtype = tuple(int(size) for size in found.shape), found.dtype
    if not shape:
        raise SourceError(
            "a single value", where=str(path), expected="an array [sample, ...] of numbers"
        )
    needed = _slab_bytes(found)
    if needed > BUFFER_BYTES:
        raise SourceError(
            f"{format_bytes(needed)} are unpacked to read one row, chunks being {found.chunks}",
            where=str(path),
            expected=f"at most {format_bytes(BUFFER_BYTES)}",
            advice="write the array with fewer rows in a chunk",
        )
    _check_there(found, path, _coordinates(found))
    if dtype.kind in "OTUSb":
        return _texts(found, path)
    if len(shape) == 3 and dtype == np.uint8:
        return _Grey(path, dtype, (*shape, 1), metadata, stat_seal(metadata))
    return ZarrRows(path, dtype, shape, metadata, stat_seal(metadata))


class _Grey(ZarrRows):
    """Grey images [sample, y, x], shown with one channel."""

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the images [sample, y, x, 1] at these positions."""
        flat = ZarrRows(self.path, self.dtype, self.shape[:-1], self.metadata, self.seal)
        return flat.take(positions)[..., None]


def _choose(folder: Path, wanted: str) -> str:
    """Path of the wanted array below a folder."""
    arrays = sorted(
        Path(name).parent.as_posix()
        for name in files_under(folder)
        if Path(name).name in _ARRAY_FILES and _node_type(folder / name) == "array"
    )
    if "." in arrays and not wanted:
        return "."
    if not arrays and not any((folder / name).is_file() for name in _GROUP_FILES):
        raise SourceError("no Zarr array", where=str(folder), expected="a Zarr array or group")
    return choose_array([name for name in arrays if name != "."], wanted, folder)


def _node_type(metadata: Path) -> str:
    return "array" if metadata.name == ".zarray" else str(_read(metadata).get("node_type"))


def _read(metadata: Path) -> dict[str, Any]:
    try:
        value = json.loads(metadata.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise unreadable(metadata, error) from error


def _refuse_objects(metadata: Path) -> None:
    """Refuse codecs that would run code, before Zarr opens the array."""
    known = _read(metadata)
    codecs = [known.get("codecs"), known.get("filters"), known.get("compressor")]
    text = known.get("dtype") != "|O" or "vlen-utf8" in json.dumps(codecs)
    if "pickle" in json.dumps(codecs).lower() or not text:
        raise SourceError(
            "holds Python objects, which are never loaded",
            where=str(metadata.parent),
            expected="numbers",
        )


def _open(path: Path) -> Any:
    import zarr

    try:
        return zarr.open_array(path, mode="r")
    except _DAMAGE as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"cannot be read: {words}", where=str(path), expected="a Zarr array, format 2 or 3"
        ) from error


def _file_shape(array: Any) -> tuple[int, ...]:
    """Values of one file along every dimension: a shard holds many chunks."""
    return tuple(max(1, int(size)) for size in array.shards or array.chunks)


def _slab_bytes(array: Any) -> int:
    """Bytes of all chunks that hold one row."""
    height = min(max(1, int(array.chunks[0])), max(1, int(array.shape[0])))
    return int(array.dtype.itemsize) * height * math.prod(int(size) for size in array.shape[1:])


def _coordinates(array: Any, slabs: range | None = None) -> Iterator[tuple[int, ...]]:
    """Places of the files of an array, or of those ranges of rows."""
    sides = [-(-int(n) // size) for n, size in zip(array.shape, _file_shape(array), strict=True)]
    inside = math.prod(sides[1:])
    # One by one: a harmed shape may promise more files than memory holds.
    slabs = slabs or range(sides[0])
    for number in range(slabs.start * inside, slabs.stop * inside):
        place, left = [], number
        for side in reversed(sides):
            left, rest = divmod(left, side)
            place.append(rest)
        yield tuple(reversed(place))


def _check_there(array: Any, path: Path, coordinates: Iterator[tuple[int, ...]]) -> None:
    """Refuse an array of which a file is missing.

    Raises:
        DataError: names the first one.
    """
    for place in coordinates:
        key = array.metadata.encode_chunk_key(place)
        if not (path / key).is_file():
            rows = _file_shape(array)[0]
            raise DataError(
                f"chunk {key} is missing (rows {place[0] * rows} and on), "
                f"which Zarr reads as {array.fill_value}",
                where=str(path),
                expected="all chunks on the disk",
                advice="copy it again, or write the array with write_empty_chunks on",
            )


def _texts(array: Any, path: Path) -> MemoryRows:
    """All texts or truth values of an array, as labels are."""
    try:
        values = np.asarray(array[:])
    except _DAMAGE as error:
        raise unreadable(path, error) from error
    return MemoryRows(values.astype(np.str_) if values.dtype.kind in "OT" else values)
