"""Index of a Zarr shard: which of its chunks are in the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from krepes_ooc.errors import DataError, SourceError

_ENTRY_BYTES = 16
_CHECKSUM_BYTES = 4
_ABSENT = np.iinfo(np.uint64).max


def shard_holes(
    path: Path, codecs: Sequence[Any], shape: tuple[int, ...], inside: tuple[int, ...]
) -> Iterator[slice]:
    """Samples, counted from the first one of the shard, of the chunks that a shard lacks.

    Args:
        path: file of the shard.
        codecs: of the array; sharding is the only one.
        shape: of the shard [sample, ...].
        inside: part of the shard that lies within the array, from its first corner.

    Raises:
        SourceError: the index is coded in a way that is not known here.
        DataError: the shard is too short for its index.
    """
    with path.open("rb") as file:
        yield from _holes(file, path, codecs, shape, inside, (0, path.stat().st_size))


def _holes(
    file: BinaryIO,
    path: Path,
    codecs: Sequence[Any],
    shape: tuple[int, ...],
    inside: tuple[int, ...],
    span: tuple[int, int],
) -> Iterator[slice]:
    """Holes of a shard in ``span`` (offset, length) of a file, which may be a chunk of another."""
    (codec,) = _only_sharding(codecs, path)
    edges = tuple(map(int, codec.chunk_shape))
    counts = [-(-size // edge) for size, edge in zip(shape, edges, strict=True)]
    index = _read_index(file, path, codec, math.prod(counts), span).reshape(*counts, 2)
    # At the edge of the array whole chunks of a shard lie outside and are never written.
    used = [
        min(count, -(-size // edge))
        for count, size, edge in zip(counts, inside, edges, strict=True)
    ]
    nested = any(hasattr(inner, "chunk_shape") for inner in codec.codecs)
    for place in np.ndindex(*used):
        offset, length = (int(number) for number in index[place])
        first = place[0] * edges[0]
        if offset == _ABSENT and length == _ABSENT:
            yield slice(first, first + edges[0])
        elif nested:
            rest = tuple(n - p * e for n, p, e in zip(inside, place, edges, strict=True))
            start = (span[0] + offset, length)
            for hole in _holes(file, path, codec.codecs, edges, rest, start):
                yield slice(first + hole.start, first + hole.stop)


def _only_sharding(codecs: Sequence[Any], path: Path) -> Sequence[Any]:
    if len(codecs) != 1 or not hasattr(codecs[0], "index_codecs"):
        raise SourceError(
            "shards behind another codec, whose missing chunks cannot be found",
            where=str(path),
            expected="sharding as the only codec",
            advice="set source.missing_chunks: fill if no chunk is missing",
        )
    return codecs


def _read_index(file: BinaryIO, path: Path, codec: Any, count: int, span: tuple[int, int]) -> Any:
    """Offset and length of each chunk, uint64 [chunk, 2]; the largest number for an absent one."""
    names = [type(inner).__name__ for inner in codec.index_codecs]
    if names not in (["BytesCodec"], ["BytesCodec", "Crc32cCodec"]):
        raise SourceError(
            f"the shard index is coded by {', '.join(names)}",
            where=str(path),
            expected="bytes, with or without a checksum",
            advice="set source.missing_chunks: fill if no chunk is missing",
        )
    size = _ENTRY_BYTES * count
    total = size + _CHECKSUM_BYTES * (len(names) - 1)
    at_end = getattr(codec.index_location, "value", codec.index_location) == "end"
    if span[1] < total:
        raise DataError("the shard is cut short", where=str(path), expected=f"{total} bytes")
    file.seek(span[0] + (span[1] - total if at_end else 0))
    endian = getattr(codec.index_codecs[0].endian, "value", codec.index_codecs[0].endian)
    return np.frombuffer(file.read(size), ">u8" if endian == "big" else "<u8")
