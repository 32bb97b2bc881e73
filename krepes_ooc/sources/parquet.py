"""Tables as Parquet with small row groups; other files are converted once into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from krepes_ooc.core.digests import canonical_digest, stat_signature
from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import DamageError, SourceError
from krepes_ooc.sources.arrow_columns import is_number
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.cache import CachedFile, find_cached, writing_cached

CONVERTER_VERSION = 1
GROUP_ROWS = 8_192
MAX_GROUP_ROWS = 65_536
MIN_GROUP_ROWS = 1_024
CSV_BLOCK_BYTES = 8 * 2**20
READ_BUFFER_BYTES = 64 * 2**10
_PARQUET = {".parquet", ".pq"}
_ARROW = {".arrow", ".feather", ".ipc"}
_CSV = {".csv", ".tsv"}


@dataclass(frozen=True)
class TableFile:
    """A Parquet file; a converted one is checksummed.

    Args:
        path: the file.
        cached: its checksums, or None for a file of the user.
    """

    path: Path
    cached: CachedFile | None = None

    def open(self) -> Any:
        """Opened Parquet file.

        Raises:
            SourceError: the file is missing, truncated or no Parquet.
            DamageError: its footer fails the checksum.
        """
        try:
            if self.cached is not None:
                # The footer locates everything else, so it is checked before it is parsed.
                self.cached.check(self._footer(self.cached.size), self.cached.size)
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.path, error, source=True) from error

    def read(self, file: Any, group: int, columns: list[str]) -> Any:
        """One row group of the opened file.

        Raises:
            ArrowException, OSError: it cannot be read.
            DamageError: its bytes fail their checksums.
        """
        if self.cached is not None:
            # Check exactly the bytes of this row group: its column chunks lie next to each other.
            row_group = file.metadata.row_group(group)
            parts = [row_group.column(i) for i in range(row_group.num_columns)]
            start = min(p.dictionary_page_offset or p.data_page_offset for p in parts)
            self.cached.check(start, start + sum(p.total_compressed_size for p in parts))
        return file.read_row_group(group, columns=columns, use_threads=False)

    def signature(self) -> tuple[int, ...]:
        """``stat_signature`` of a file of the user; () for a converted one, which is checksummed.

        Raises:
            SourceError: the file is missing.
        """
        return stat_signature(self.path) if self.cached is None else ()

    def _footer(self, size: int) -> int:
        """Offset of the metadata in bytes, from the length field before the closing magic."""
        with self.path.open("rb") as file:
            file.seek(max(0, size - 8))
            return max(0, size - 8 - int.from_bytes(file.read(4), "little"))


def as_parquet(path: Path, spec: SourceSpec, sha256: str, cache: Path) -> TableFile:
    """Table as a Parquet file whose row groups fit a bounded buffer.

    Parquet with row groups of at most ``MAX_GROUP_ROWS`` rows is used as it is; everything else is
    streamed once into the cache folder.

    Args:
        path: the user's file.
        spec: the declared source.
        sha256: of the user's file; names the converted file.
        cache: folder for converted files.

    Raises:
        SourceError: unknown or damaged format, or the cache folder cannot be written.
    """
    file_format = _file_format(path)
    if file_format == "parquet" and _groups_fit(path):
        return TableFile(path)
    # A converted file is named by the content and the options that it depends on.
    options: list[Any] = []
    if file_format == "csv":
        options = [CONVERTER_VERSION, file_format, spec.header, spec.delimiter]
    target = cache / f"rows-{canonical_digest([CONVERTER_VERSION, sha256, options])[:16]}.parquet"
    if (converted := _find_converted(target)) is not None:
        return converted
    try:
        if file_format == "csv":
            _convert_csv(path, spec, target)
        else:
            parquet = file_format == "parquet"
            batches = _parquet_batches(path) if parquet else _arrow_batches(path)
            _write(batches, path, target)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"cannot be converted into the cache: {error}",
            where=str(path),
            expected="a readable table and a writable workspace",
        ) from error
    return TableFile(target, find_cached(target))


def _find_converted(target: Path) -> TableFile | None:
    """File that an earlier run converted, or None if it must be converted again."""
    cached = find_cached(target)
    if cached is not None:
        try:
            TableFile(target, cached).open().close()
        except (SourceError, DamageError):
            return None
    return TableFile(target, cached) if cached is not None else None


def _file_format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PARQUET:
        return "parquet"
    if suffixes and suffixes[-1] in _ARROW:
        return "arrow"
    if _CSV & set(suffixes[-1:]) or (suffixes[-1:] == [".gz"] and _CSV & set(suffixes[-2:])):
        return "csv"
    raise SourceError(
        "unknown kind of table",
        where=str(path),
        expected="a file named .parquet, .csv, .tsv, .csv.gz, .arrow or .feather",
    )


def _groups_fit(path: Path) -> bool:
    with TableFile(path).open() as file:
        metadata = file.metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if not rows:
        return True
    # Thousands of tiny row groups cost more in metadata than in data: write them again.
    tiny = len(rows) > 64 and sum(rows) < MIN_GROUP_ROWS * len(rows)
    return max(rows) <= MAX_GROUP_ROWS and not tiny


def _parquet_batches(path: Path) -> Iterator[Any]:
    # One row group at a time through a small buffer: else Arrow keeps what it has passed.
    with pq.ParquetFile(path, buffer_size=READ_BUFFER_BYTES) as file:
        for group in range(file.metadata.num_row_groups):
            yield from file.iter_batches(GROUP_ROWS, row_groups=[group], use_threads=False)


def _arrow_batches(path: Path) -> Iterator[Any]:
    with pa.OSFile(str(path)) as stream:
        try:
            # Arrow files come in two formats; the stream format has no footer.
            reader = pa.ipc.open_file(stream)
        except pa.ArrowInvalid:
            stream.seek(0)
            yield from pa.ipc.open_stream(stream)
        else:
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _convert_csv(path: Path, spec: SourceSpec, target: Path) -> None:
    """Convert a CSV file; widen a column whose later rows do not fit its inferred type."""
    types: dict[str, Any] = {}
    while True:
        batches = _CsvBatches(path, spec, types)
        try:
            _write(batches, path, target)
            return
        except pa.ArrowInvalid as error:
            # Arrow infers types from the first block: widen integer to float, then to text.
            name = batches.misread_column(str(error))
            # Text accepts everything: another failure is an error of the file.
            if name is None or types.get(name) == pa.string():
                raise
            integer = pa.types.is_integer(batches.type_of(name))
            types[name] = pa.float64() if integer and name not in types else pa.string()


class _CsvBatches:
    """Record batches of a CSV file; text is trimmed and empty text is null."""

    def __init__(self, path: Path, spec: SourceSpec, types: dict[str, Any]) -> None:
        delimiter = spec.delimiter or ("\t" if ".tsv" in path.suffixes else ",")
        self._path = path
        self._types = types
        self._read = pa.csv.ReadOptions(
            use_threads=False,
            block_size=CSV_BLOCK_BYTES,
            autogenerate_column_names=not spec.header,
        )
        self._parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        self._schema: Any = None

    def __iter__(self) -> Iterator[Any]:
        convert = pa.csv.ConvertOptions(column_types=self._types)
        with (
            pa.input_stream(str(self._path), compression="detect") as stream,
            pa.csv.open_csv(stream, self._read, self._parse, convert) as reader,
        ):
            self._schema = reader.schema
            for batch in reader:
                columns = [_trim(column) for column in batch.columns]
                yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)

    def type_of(self, name: str) -> Any:
        return self._schema.field(name).type

    def misread_column(self, message: str) -> str | None:
        """Column that Arrow's conversion error names: ``In CSV column #3: ...``."""
        marker = "In CSV column #"
        if marker not in message or self._schema is None:
            return None
        index = int(message.split(marker)[1].split(":")[0])
        return str(self._schema.names[index]) if index < len(self._schema.names) else None


def _trim(column: Any) -> Any:
    if not pa.types.is_string(column.type):
        return column
    text = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _write(batches: Any, path: Path, target: Path) -> None:
    """Write batches as row groups of ``GROUP_ROWS`` rows; published by rename."""
    with writing_cached(target) as temporary:
        writer: Any = None
        pending: list[Any] = []
        for batch in batches:
            # The schema is known with the first batch.
            writer = writer or _writer(temporary, batch.schema)
            pending.append(batch)
            if sum(part.num_rows for part in pending) >= GROUP_ROWS:
                pending = _write_groups(writer, pending, last=False)
        if writer is None:
            raise SourceError("no rows", where=str(path), expected="at least one row")
        if pending:
            _write_groups(writer, pending, last=True)
        writer.close()


def _writer(target: Path, schema: Any) -> Any:
    # Numbers are rarely repeated: a dictionary would only cost time.
    text = [field.name for field in schema if not is_number(field.type)]
    return pq.ParquetWriter(
        target, schema, compression="lz4", use_dictionary=text, write_statistics=False
    )


def _write_groups(writer: Any, pending: list[Any], *, last: bool) -> list[Any]:
    """Write all full row groups of the pending batches; return the rest."""
    # Row groups of equal size, whatever the batches were: random access costs the same.
    table = pa.Table.from_batches(pending)
    n_written = table.num_rows if last else table.num_rows - table.num_rows % GROUP_ROWS
    if n_written:
        writer.write_table(table.slice(0, n_written), row_group_size=GROUP_ROWS)
    return list(table.slice(n_written).to_batches())
