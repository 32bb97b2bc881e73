"""Zarr v3 documents of a store (``zarr.json``), written and read in one place.

They are written here and not by the Zarr library, so that the same store has the same bytes
whatever the library's version and the user's Zarr configuration.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import read_bytes, read_if_record, to_json, write_atomic
from krepes_ooc.errors import DamageError, WorkspaceError
from krepes_ooc.storage.contracts import DTYPES, ROW_DIMS
from krepes_ooc.storage.file_checks import MAX_CHUNK_BYTES

FORMAT = 1
DOCUMENT = "zarr.json"
MAX_LENGTH = 2**53
_CRC32C = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_SINGLE_BYTES = {"name": "bytes"}
_KEYS = {"name": "default", "configuration": {"separator": "/"}}

_MARGIN = 6 * " "  # of the copies in the root document
_SHORT_BYTES = 2**15  # documents whose text is kept


@dataclass(frozen=True)
class ArrayInfo:
    """Shape, chunks, dtype and dims of one array, from its document.

    Args:
        shape: lengths of the dims.
        chunks: chunk lengths.
        dtype: little-endian dtype of the values.
        dims: dimension names, outermost first.
        attributes: of the array alone.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk's values, checksum not counted."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def n_chunks(self) -> tuple[int, ...]:
        """Number of chunks along every dimension."""
        pairs = zip(self.shape, self.chunks, strict=True)
        return tuple(-(-size // chunk) for size, chunk in pairs)

    @property
    def row_axis(self) -> int | None:
        """Axis that blocks cut: the first, or the second behind ``view``; None if there is none."""
        # 1 behind a leading view, else 0.
        axis = self.dims[:1].count("view")
        return axis if self.dims[axis : axis + 1] and self.dims[axis] in ROW_DIMS else None

    def is_chunk(self, block: Block) -> bool:
        """Whether the rows of a block are one chunk."""
        axis = self.row_axis
        if axis is None or block.start != block.index * self.chunks[axis]:
            return False
        return 0 < block.rows <= self.chunks[axis] and block.stop <= self.shape[axis]

    def tile_shape(self, row: int, column: int) -> tuple[int, ...] | None:
        """Lengths of one tile of the last two dims, short at the end; None if there is none."""
        # Tiles cut the last two dims only.
        before = len(self.shape) - 2
        counts = self.n_chunks
        if before < 0 or any(count != 1 for count in counts[:before]):
            return None
        if not (0 <= row < counts[-2] and 0 <= column < counts[-1]):
            return None
        starts = (*(0,) * before, row * self.chunks[-2], column * self.chunks[-1])
        both = zip(self.shape, starts, self.chunks, strict=True)
        return tuple(min(size - start, chunk) for size, start, chunk in both)

    def slices_of(self, at: tuple[int, ...]) -> tuple[slice, ...]:
        """Index ranges of one chunk in the array; those at the end reach beyond it."""
        pairs = zip(at, self.chunks, strict=True)
        return tuple(slice(index * chunk, (index + 1) * chunk) for index, chunk in pairs)

    def chunk_of(self, block: int, view: int) -> tuple[int, ...]:
        """Coordinates of the chunk that holds one block of one view."""
        at = {"view": view} | dict.fromkeys(ROW_DIMS, block)
        return tuple(at.get(dim, 0) for dim in self.dims)


def array_document(info: ArrayInfo) -> dict[str, Any]:
    """The document of an array: little-endian values and a crc32c suffix, one file a chunk."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(info.shape),
        "data_type": info.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(info.chunks)}},
        "chunk_key_encoding": _KEYS,
        "fill_value": "NaN" if info.dtype.kind == "f" else fill_value(info.dtype),
        "codecs": _codecs(info.dtype),
        "attributes": info.attributes,
        "dimension_names": list(info.dims),
        "storage_transformers": [],
    }


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def root_document(copies: Mapping[str, Any]) -> dict[str, Any]:
    """The document of ``audit.zarr``, consolidated: with copies of all others by folder."""
    listing = {"kind": "inline", "must_understand": False, "metadata": dict(copies)}
    return group_document({"krepes_format": FORMAT}) | {"consolidated_metadata": listing}


def write_root(audit: Path, temp: Path) -> None:
    """Bring the document of ``audit.zarr`` up to date with the stores in it.

    It is consolidated from the start, because xarray warns of a root that is not.
    """
    # Groups and their arrays, relative to the root, as Zarr's own consolidation lists them.
    paths = sorted([*audit.glob(f"*/{DOCUMENT}"), *audit.glob(f"*/*/{DOCUMENT}")])
    copies: dict[str, str] = {}
    for folder in (path.parent for path in paths):
        found = read_if_record(folder / DOCUMENT)
        # A damaged document, or a stranger's, is in nobody's way: who reads its store names it.
        with contextlib.suppress(DamageError, WorkspaceError):
            copies[folder.relative_to(audit).as_posix()] = _indented_document(folder, found)
    # Written only where it differs: a run that changes nothing touches no file.
    data = _root_bytes(copies)
    if read_if_record(audit / DOCUMENT) != data:
        write_atomic(audit / DOCUMENT, data, temp, sync=True)


def _root_bytes(copies: Mapping[str, str]) -> bytes:
    """``to_bytes(root_document(...))`` from copies that are JSON already, by their folder."""
    text = to_bytes(root_document({})).decode()
    if copies:
        # The one empty object of that name; keys of objects are sorted.
        keys = sorted(copies)
        entries = ",\n".join(f"{_MARGIN}{json.dumps(key)}: {copies[key]}" for key in keys)
        text = text.replace('"metadata": {}', f'"metadata": {{\n{entries}\n{_MARGIN[2:]}}}')
    return text.encode()


def _indented_document(folder: Path, data: bytes | None) -> str:
    """The document of one folder as JSON, indented as the root document holds it.

    Raises:
        WorkspaceError: there is none.
        DamageError: it is no JSON object.
    """
    # A stage changes few of some hundred documents, and indenting costs more than reading.
    if data is not None and len(data) <= _SHORT_BYTES:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            return _remembered(data)
    return _indented(_parsed(folder, data))


@functools.lru_cache(maxsize=512)
def _remembered(data: bytes) -> str:
    document = json.loads(data)
    if not isinstance(document, dict):
        raise TypeError("no JSON object")
    return _indented(document)


def _indented(document: Mapping[str, Any]) -> str:
    return to_bytes(document).decode().rstrip("\n").replace("\n", f"\n{_MARGIN}")


def to_bytes(document: Mapping[str, Any]) -> bytes:
    """A document as it is written: keys sorted, NaN as null."""
    # Through canonical JSON, so that NumPy values and paths are plain before they are indented.
    return (json.dumps(json.loads(to_json(document)), indent=2) + "\n").encode()


def read_document(folder: Path) -> dict[str, Any]:
    """The document of one group or array.

    Raises:
        WorkspaceError: there is none.
        DamageError: it is no JSON object.
    """
    return _parsed(folder, read_bytes(folder / DOCUMENT))


def _parsed(folder: Path, data: bytes | None) -> dict[str, Any]:
    # A missing document is a missing store; one that does not parse is damage.
    path = folder / DOCUMENT
    if data is None:
        raise WorkspaceError(
            "the store has no metadata",
            where=str(path),
            expected="a store written by krepes",
            advice="`krepes status` shows what the workspace holds",
        )
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _unfit(path, f"the metadata is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise _unfit(path, "the metadata is no JSON object")
    return document


def read_info(folder: Path) -> ArrayInfo:
    """Shape, chunks, dtype and dims of one array.

    Raises:
        WorkspaceError: there is no such array.
        DamageError: the document is not that of an array which krepes may read.
    """
    document = read_document(folder)
    try:
        return _parse(document)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"the metadata has no usable {error}"
    except ValueError as error:
        what = str(error)
    raise _unfit(folder / DOCUMENT, what)


def fill_value(dtype: np.dtype[Any]) -> float | int:
    """NaN for floats, -1 for integers, 0 for pictures."""
    return float("nan") if dtype.kind == "f" else (0 if dtype.kind == "u" else -1)


def padded(values: npt.NDArray[Any], shape: tuple[int, ...], fill: float) -> npt.NDArray[Any]:
    """Values at the start of an array of this shape, which is filled up; the values if they fit."""
    if values.shape == shape:
        return values
    full = np.full(shape, fill, dtype=values.dtype)
    full[tuple(map(slice, values.shape))] = values
    return full


def _parse(document: Mapping[str, Any]) -> ArrayInfo:
    # The kind of node and of values.
    if document["node_type"] != "array" or document["zarr_format"] != 3:
        raise ValueError("the metadata is not that of a Zarr v3 array")
    if document["data_type"] not in DTYPES:
        raise ValueError(f"data type {document['data_type']!r}; known: {', '.join(DTYPES)}")
    # Lengths of the array and of its chunks; a document without dimension names gets numbers.
    grid = document["chunk_grid"]
    shape = document["shape"]
    chunks = grid["configuration"]["chunk_shape"]
    dims = document.get("dimension_names") or [str(axis) for axis in range(len(shape))]
    if not len(shape) == len(chunks) == len(dims) or not all(isinstance(d, str) for d in dims):
        raise ValueError(f"shape {shape}, chunks {chunks} and dims {dims} do not fit")
    for lengths, least in ((shape, 0), (chunks, 1)):
        if not all(type(size) is int and least <= size <= MAX_LENGTH for size in lengths):
            raise ValueError(f"impossible lengths {lengths}")
    # A chunk file is where the writer puts it and holds values and crc32c alone: whatever else
    # Zarr can decode may grow without a limit.
    dtype = np.dtype(document["data_type"]).newbyteorder("<")
    key = document["chunk_key_encoding"]
    separator = key.get("configuration", {}).get("separator", "/")
    if (grid["name"], key["name"], separator) != ("regular", "default", "/"):
        raise ValueError(f"chunks in files {key}; expected {_KEYS}")
    if document["codecs"] != _codecs(dtype):
        raise ValueError(f"codecs {document['codecs']}; expected {_codecs(dtype)}")
    attributes = dict(document.get("attributes", {}))
    info = ArrayInfo(tuple(shape), tuple(chunks), dtype, tuple(dims), attributes)
    if info.chunk_bytes > MAX_CHUNK_BYTES:
        raise ValueError(f"chunks of {info.chunk_bytes} bytes; at most {MAX_CHUNK_BYTES}")
    return info


def _codecs(dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    return [_LITTLE if dtype.itemsize > 1 else _SINGLE_BYTES, _CRC32C]


def _unfit(path: Path, what: str) -> DamageError:
    return DamageError(
        what,
        where=str(path),
        expected="metadata written by krepes",
        advice="`krepes verify` lists all damage",
    )
