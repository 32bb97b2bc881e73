"""Table files as Parquet with small row groups: opened, checked, converted once where needed."""

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
_PARQUET, _ARROW, _CSV = {".parquet", ".pq"}, {".arrow", ".feather", ".ipc"}, {".csv", ".tsv"}


@dataclass(frozen=True)
class TableFile:
    """A Parquet file; a converted one is checked before it is believed.

    Args:
        path: the file.
        kept: its checksums, or None for the user's own file.
    """

    path: Path
    kept: CachedFile | None = None

    def open(self) -> Any:
        """The opened Parquet file.

        Raises:
            SourceError: the file is missing, truncated or no Parquet.
            DamageError: what it says of itself is not what was written.
        """
        try:
            if self.kept is not None:
                self.kept.check(self._footer(self.kept.size), self.kept.size)
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self.path, error, source=True) from error

    def read(self, file: Any, group: int, columns: list[str]) -> Any:
        """One row group of the opened file.

        Raises:
            ArrowException, OSError: it cannot be read.
            DamageError: its bytes are not those that were written.
        """
        if self.kept is not None:
            found = file.metadata.row_group(group)
            parts = [found.column(i) for i in range(found.num_columns)]
            start = min(p.dictionary_page_offset or p.data_page_offset for p in parts)
            self.kept.check(start, start + sum(p.total_compressed_size for p in parts))
        return file.read_row_group(group, columns=columns, use_threads=False)

    def seal(self) -> tuple[int, ...]:
        """What changes when the user's file is written; a converted one has its checksums.

        Raises:
            SourceError: the file is gone.
        """
        return stat_signature(self.path) if self.kept is None else ()

    def _footer(self, size: int) -> int:
        """Where the description of the row groups begins; a wrong place is found by its bytes."""
        with self.path.open("rb") as file:
            file.seek(max(0, size - 8))
            return max(0, size - 8 - int.from_bytes(file.read(4), "little"))


def as_parquet(path: Path, spec: SourceSpec, sha256: str, cache: Path) -> TableFile:
    """The table as a Parquet file whose row groups fit a bounded buffer.

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
    sort = _sort(path)
    if sort == "parquet" and _groups_fit(path):
        return TableFile(path)
    options = [CONVERTER_VERSION, sort, spec.header, spec.delimiter] if sort == "csv" else []
    target = cache / f"rows-{canonical_digest([CONVERTER_VERSION, sha256, options])[:16]}.parquet"
    if (made := _find_made(target)) is not None:
        return made
    try:
        if sort == "csv":
            _convert_csv(path, spec, target)
        else:
            batches = _parquet_batches(path) if sort == "parquet" else _arrow_batches(path)
            _write(batches, path, target)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"cannot be converted into the cache: {error}",
            where=str(path),
            expected="a readable table and a writable workspace",
        ) from error
    return TableFile(target, find_cached(target))


def _find_made(target: Path) -> TableFile | None:
    """The file that an earlier run converted, or None if it must be made again."""
    kept = find_cached(target)
    if kept is not None:
        try:
            TableFile(target, kept).open().close()
        except (SourceError, DamageError):
            return None
    return TableFile(target, kept) if kept is not None else None


def _sort(path: Path) -> str:
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
            reader = pa.ipc.open_file(stream)
        except pa.ArrowInvalid:
            stream.seek(0)
            yield from pa.ipc.open_stream(stream)
        else:
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _convert_csv(path: Path, spec: SourceSpec, target: Path) -> None:
    """Convert, widening a column whose later rows do not fit the type of its first rows."""
    types: dict[str, Any] = {}
    while True:
        batches = _CsvBatches(path, spec, types)
        try:
            _write(batches, path, target)
            return
        except pa.ArrowInvalid as error:
            name = batches.misread_column(str(error))
            if name is None or types.get(name) == pa.string():
                raise
            integer = pa.types.is_integer(batches.type_of(name))
            types[name] = pa.float64() if integer and name not in types else pa.string()


class _CsvBatches:
    """Record batches of a CSV file; text is trimmed and empty text is null."""

    def __init__(self, path: Path, spec: SourceSpec, types: dict[str, Any]) -> None:
        delimiter = spec.delimiter or ("\t" if ".tsv" in path.suffixes else ",")
        self._path, self._types = path, types
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
        """The column that Arrow's conversion error names: ``In CSV column #3: ...``."""
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
        held: list[Any] = []
        for batch in batches:
            writer = writer or _writer(temporary, batch.schema)
            held.append(batch)
            if sum(part.num_rows for part in held) >= GROUP_ROWS:
                held = _write_groups(writer, held, last=False)
        if writer is None:
            raise SourceError("no rows", where=str(path), expected="at least one row")
        if held:
            _write_groups(writer, held, last=True)
        writer.close()


def _writer(target: Path, schema: Any) -> Any:
    text = [field.name for field in schema if not is_number(field.type)]
    return pq.ParquetWriter(
        target, schema, compression="lz4", use_dictionary=text, write_statistics=False
    )


def _write_groups(writer: Any, held: list[Any], *, last: bool) -> list[Any]:
    """Write all full row groups of the held batches; return what remains."""
    table = pa.Table.from_batches(held)
    whole = table.num_rows if last else table.num_rows - table.num_rows % GROUP_ROWS
    if whole:
        writer.write_table(table.slice(0, whole), row_group_size=GROUP_ROWS)
    return list(table.slice(whole).to_batches())
