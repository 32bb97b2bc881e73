"""Zarr arrays of the user as a source: decoded once into the cache, slab by slab."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import stat_signature
from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.arrays.array_rows import MemoryRows, Rows, choose_array, mapped_rows
from krepes_ooc.sources.arrays.packed import Packing, find_packing
from krepes_ooc.sources.arrays.zarr_shards import shard_holes
from krepes_ooc.sources.cache import find_cached, folder_sha256, writing_cached

SUFFIX = ".zarr"
SLAB_BYTES = 128 * 2**20
MAX_CHUNK_BYTES = 2**30
MAX_CHUNKS = 2**20
# Metadata files of formats 3 and 2, and their keys that name codecs.
_METADATA = ("zarr.json", ".zarray")
_CODECS = ("codecs", "filters", "compressor")
_DAMAGE = (OSError, ValueError, TypeError, KeyError, RuntimeError)


def is_zarr(path: Path) -> bool:
    """Whether a path names a Zarr store, or an array or group inside one."""
    return path.suffix.lower() == SUFFIX or any(
        (path / name).is_file() for name in (*_METADATA, ".zgroup")
    )


def zarr_sha256(path: Path, array: str, cache: Path) -> str:
    """sha256 over the files of one array, read again only if their listing changed.

    Args:
        path: folder of an array or a group.
        array: its name in the group; empty if there is but one.
        cache: where the digest is cached.

    Raises:
        SourceError: no such array, or a file that cannot be read.
    """
    folder, _ = _open(path, array)
    paths = (file for file in folder.rglob("*") if file.is_file())
    files = sorted(file.relative_to(folder).as_posix() for file in paths)
    signatures = tuple(stat_signature(folder / name) for name in files)
    return folder_sha256(folder, files, signatures, cache)


def zarr_rows(path: Path, sha256: str, array: str, cache: Path, *, fill: bool = False) -> Rows:
    """Rows of one array, Zarr format 2 or 3; texts stay in memory.

    Chunks of many samples would be decoded again for every sample of a shuffled block, so the
    array is written uncompressed into the cache, once. With ``fill`` chunks that are not on disk
    are read as the fill value.

    Raises:
        SourceError: no such array, a chunk that is not on disk, cannot be decoded or is too large.
        DataError: a value is missing by the attributes of the array.
    """
    folder, data = _open(path, array)
    # Format 2 may state no fill value: what is missing then has no values at all.
    fill = fill and data.fill_value is not None
    if data.dtype.kind not in "uif":
        return MemoryRows(_texts(folder, data, fill))
    packing = _packing(folder, data)
    # Names of their own for what earlier versions copied otherwise: they may be there already.
    variant = ("-decoded" if packing else "") + ("-filled" if fill else "")
    variant += "-shards" if data.shards else ""
    target = cache / f"unpacked-{sha256[:16]}{variant}.raw"
    # Named by the content, so a changed array is unpacked again.
    cached = find_cached(target)
    if cached is None:
        try:
            with writing_cached(target) as temporary, temporary.open("wb") as stream:
                first = 0
                for slab in _slabs(folder, data, fill):
                    positions = np.arange(first, first + len(slab))
                    meant = packing.decode(slab, positions, str(folder)) if packing else slab
                    stream.write(np.ascontiguousarray(meant).data)
                    first += len(slab)
        except OSError as error:
            raise SourceError(
                f"cannot be unpacked into the cache: {error}",
                where=str(folder),
                expected="a readable array and a writable workspace",
            ) from error
        cached = find_cached(target)
    shape = tuple(map(int, data.shape))
    # Grey pictures: add the channel axis.
    if len(shape) == 3 and data.dtype == np.uint8:
        shape = (*shape, 1)
    native = data.dtype.newbyteorder("=")
    return mapped_rows(target, 0, packing.dtype(native) if packing else native, shape, cached)


def _packing(folder: Path, data: Any) -> Packing | None:
    attributes = dict(data.attrs)
    # In format 2 xarray, which names the dimensions, writes what is missing as the fill value of
    # the array itself. Zero is the default of other writers.
    packed = {"scale_factor", "add_offset", "_ARRAY_DIMENSIONS"} & set(attributes)
    if packed and data.metadata.zarr_format == 2 and data.fill_value is not None:
        attributes.setdefault("_FillValue", data.fill_value)
    return find_packing(attributes, data.dtype, str(folder))


def _open(path: Path, array: str) -> tuple[Path, Any]:
    """Folder and zarr.Array of the array to read."""
    import zarr

    try:
        if _is_array(path):
            choose_array([""], array, path)
            # Checked before zarr builds the codecs.
            return path, zarr.open_array(_without_pickle(path), mode="r")
        # Consolidated metadata may be older than the arrays.
        group = zarr.open_group(path, mode="r", use_consolidated=False)
        arrays = {
            name: item
            for name, item in group.members(max_depth=None)
            if isinstance(item, zarr.Array)
        }
    except _DAMAGE as error:
        raise unreadable(path, error, source=True) from error
    name = choose_array(list(arrays), array, path)
    return _without_pickle(path / name), arrays[name]


def _is_array(path: Path) -> bool:
    if (path / ".zarray").is_file():
        return True
    document = path / "zarr.json"
    if not document.is_file():
        return False
    metadata = json.loads(document.read_bytes())
    return isinstance(metadata, dict) and metadata.get("node_type") == "array"


def _without_pickle(folder: Path) -> Path:
    """The folder; raise if a codec of its array would run code."""
    for name in (name for name in _METADATA if (folder / name).is_file()):
        metadata = json.loads((folder / name).read_bytes())
        if "pickle" in json.dumps([metadata.get(key) for key in _CODECS]).lower():
            raise SourceError(
                "holds Python objects, which are never loaded",
                where=str(folder),
                expected="numbers",
            )
    return folder


def _texts(folder: Path, data: Any, fill: bool) -> npt.NDArray[Any]:
    if data.ndim != 1 or data.dtype.kind not in "USTb":
        raise SourceError(
            f"{data.dtype} values of shape {list(data.shape)}",
            where=str(folder),
            expected="numbers [sample, ...], or texts [sample] as labels",
        )
    # Labels are few: they stay in memory.
    slabs = list(_slabs(folder, data, fill))
    # NumPy's variable-length strings have no plain bytes.
    if data.dtype.kind == "T":
        return np.asarray([text for slab in slabs for text in slab.tolist()], dtype=np.str_)
    return np.concatenate([np.empty(0, data.dtype), *slabs])


def _slabs(folder: Path, data: Any, fill: bool) -> Iterator[npt.NDArray[Any]]:
    """Slabs of consecutive samples, each within the rows of one chunk."""
    # A shard is read whole: it is the chunk that counts.
    grid = tuple(max(1, int(edge)) for edge in data.shards or data.chunks)
    itemsize = data.dtype.itemsize
    if itemsize * math.prod(grid) > MAX_CHUNK_BYTES:
        raise SourceError(
            f"a chunk of {itemsize * math.prod(grid):,} bytes",
            where=str(folder),
            expected=f"chunks of at most {MAX_CHUNK_BYTES:,} bytes",
            advice="write the array again in smaller chunks",
        )
    row_bytes = itemsize * math.prod(data.shape[1:])
    # Bounded memory: a part of a chunk if its rows are many.
    step = min(grid[0], max(1, SLAB_BYTES // max(1, row_bytes)))
    native = data.dtype.newbyteorder("=") if data.dtype.kind in "uif" else None
    for start in range(0, data.shape[0], grid[0]):
        # Only the chunks of these rows: a missing one is found before it is read.
        if not fill:
            _check_chunks(folder, data, grid, start // grid[0])
        stop = min(start + grid[0], data.shape[0])
        for first in range(start, stop, step):
            values = _decode(folder, data, first, min(first + step, stop))
            yield np.ascontiguousarray(values, native)


def _decode(folder: Path, data: Any, start: int, stop: int) -> npt.NDArray[Any]:
    try:
        return np.asarray(data[start:stop])
    # Codecs raise whatever their many libraries raise.
    except Exception as error:
        raise DataError(
            f"samples {start} to {stop - 1} cannot be decoded: {type(error).__name__}: {error}",
            where=str(folder),
            expected="undamaged chunks",
            advice="restore the array from where it came",
        ) from error


def _check_chunks(folder: Path, data: Any, grid: tuple[int, ...], row: int) -> None:
    """Raise if a chunk is not on disk: it would read as the fill value."""
    for words in _holes(folder, data, grid, row):
        if data.fill_value is None:
            raise SourceError(
                f"{words} is not on disk, and the array states no fill value",
                where=str(folder),
                expected="every chunk on disk",
                advice="write or restore it",
            )
        raise SourceError(
            f"{words} is not on disk and would read as the fill value {data.fill_value}",
            where=str(folder),
            expected="every chunk on disk",
            advice="set source.missing_chunks: fill if that value is meant, "
            "or write the array with write_empty_chunks=True",
        )


def _holes(folder: Path, data: Any, grid: tuple[int, ...], row: int) -> Iterator[str]:
    """Chunks of one row of chunks that are not on disk, in words."""
    # Chunks along each axis of one sample.
    counts = [-(-size // edge) for size, edge in zip(data.shape[1:], grid[1:], strict=True)]
    if math.prod(counts) > MAX_CHUNKS:
        raise SourceError(
            f"one sample lies in {math.prod(counts):,} chunks",
            where=str(folder),
            expected=f"at most {MAX_CHUNKS:,}",
            advice="write the array again in larger chunks",
        )
    for rest in itertools.product(*map(range, counts)):
        place = (row, *rest)
        key = data.metadata.encode_chunk_key(place)
        if not (folder / key).is_file():
            yield f"chunk {key}"
        elif data.shards:
            corner = tuple(index * edge for index, edge in zip(place, grid, strict=True))
            shape = tuple(n - c for n, c in zip(data.shape, corner, strict=True))
            for inner in shard_holes(folder / key, data.metadata.codecs, grid, shape):
                first = corner[0] + inner.start
                last = min(corner[0] + inner.stop, data.shape[0]) - 1
                yield f"a chunk of shard {key} with values of samples {first} to {last}"


def filled_words(path: Path, array: str) -> list[str]:
    """Number of chunks that are not on disk and read as the fill value, in words."""
    folder, data = _open(path, array)
    grid = tuple(max(1, int(edge)) for edge in data.shards or data.chunks)
    rows = range(-(-data.shape[0] // grid[0]))
    count = sum(1 for row in rows for _ in _holes(folder, data, grid, row))
    return [f"{count:,} chunks are read as the fill value {data.fill_value}"] if count else []
