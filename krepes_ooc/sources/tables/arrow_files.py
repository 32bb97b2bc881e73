"""Arrow files of either format, and the columns in them that cannot be converted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from krepes_ooc.errors import SourceError

# First bytes of Feather before version 2.
FEATHER_1 = b"FEA1"


def arrow_batches(path: Path) -> Iterator[Any]:
    """Record batches of an Arrow file of either format.

    Raises:
        SourceError: the format of Feather before version 2.
    """
    with pa.OSFile(str(path)) as stream:
        if stream.read(len(FEATHER_1)) == FEATHER_1:
            raise SourceError(
                "version 1 of Feather, which is no Arrow file",
                where=str(path),
                expected="version 2 of Feather, or Parquet",
                advice="write it again: pyarrow.feather.write_feather(table, path)",
            )
        reader = _open(stream)
        if isinstance(reader, pa.RecordBatchFileReader):
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from reader


def unknown_type(path: Path, error: Exception) -> SourceError:
    """The error for an Arrow file with a column whose type Parquet does not hold.

    Args:
        path: the file.
        error: what Arrow said, for a file whose column is not found.
    """
    found = str(error)
    with contextlib.suppress(pa.ArrowException, OSError), pa.OSFile(str(path)) as stream:
        for field in _open(stream).schema:
            try:
                pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
            except pa.ArrowNotImplementedError:
                found = f"column {field.name!r} has type {field.type}"
                break
    return SourceError(
        found,
        where=str(path),
        expected="numbers, text or true/false",
        advice="write the table without it, or convert the column",
    )


def _open(stream: Any) -> Any:
    """Reader of record batches; the stream format, unlike that of files, has no footer."""
    stream.seek(0)
    try:
        return pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        return pa.ipc.open_stream(stream)
