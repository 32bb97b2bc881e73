"""Tables as Parquet with small row groups; other files are converted once into the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from krepes_ooc.core.digests import (
    canonical_digest,
    recall_sha256,
    remember_sha256,
    remembered_sha256,
    stat_signature,
)
from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import DamageError, DataError, SourceError
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.cache import CachedFile, find_cached, writing_cached
from krepes_ooc.sources.tables.arrow_columns import blank_missing, is_number
from krepes_ooc.sources.tables.arrow_files import arrow_batches, unknown_type
from krepes_ooc.sources.tables.csv_batches import (
    COMPRESSED,
    CSV_BLOCK_BYTES,
    CsvBatches,
    CsvFormat,
    CsvHead,
    csv_format,
    csv_problem,
)

CONVERTER_VERSION = 1
CSV_VERSION = 2
GROUP_ROWS = 8_192
MAX_GROUP_ROWS = 65_536
MIN_GROUP_ROWS = 1_024
READ_BUFFER_BYTES = 64 * 2**10
PARQUET = {".parquet", ".pq"}
ARROW = {".arrow", ".feather", ".ipc"}
_CSV = {".csv", ".tsv"}


@dataclass(frozen=True)
class TableFile:
    """A Parquet file; a converted one is checksummed.

    Args:
        path: the file.
        cached: its checksums, or None for a file of the user.
        missing: texts and numbers that stand for no value.
        csv: format of the CSV file that it was converted from, or None.
    """

    path: Path
    cached: CachedFile | None = None
    missing: tuple[str, ...] = ()
    csv: CsvFormat | None = None

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
        table = file.read_row_group(group, columns=columns, use_threads=False)
        return blank_missing(table, self.missing)

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


class RowGroupScan(Protocol):
    """Scan that sees every row group that is written while a CSV file is converted."""

    def start(self, schema: Any, csv: CsvFormat, missing: tuple[str, ...]) -> None:
        """The file is read from its first row; some texts and numbers stand for no value."""

    def add(self, table: Any) -> None:
        """The next row group."""


def as_parquet(
    path: Path, spec: SourceSpec, cache: Path, scan: RowGroupScan | None = None
) -> tuple[str, TableFile]:
    """sha256 of a table, and the table as a Parquet file whose row groups fit a bounded buffer.

    Parquet with row groups of at most ``MAX_GROUP_ROWS`` rows is used as it is; everything else is
    streamed once into the cache folder.

    Args:
        path: the user's file.
        spec: the declared source.
        cache: folder for converted files.
        scan: sees the rows of a CSV file that is converted.

    Raises:
        SourceError: unknown or damaged format, or the cache folder cannot be written.
        DataError: the file changed while it was read.
    """
    file_format = table_format(path)
    missing = tuple(map(str, spec.missing))
    if file_format == "parquet" and _groups_fit(path):
        return remembered_sha256(path, cache), TableFile(path, missing=missing)
    form = csv_format(path, spec) if file_format == "csv" else None
    signature = stat_signature(path)
    sha256 = recall_sha256(path, cache)
    # Where nothing can have been converted yet, a CSV file is hashed while it is parsed.
    if sha256 is None and (form is None or any(cache.glob("rows-*.parquet"))):
        sha256 = remembered_sha256(path, cache)

    def target() -> Path:
        return cache / f"rows-{_conversion_digest(spec, str(sha256), form)[:16]}.parquet"

    if sha256 is not None and (cached := find_converted(target())) is not None:
        return sha256, TableFile(target(), cached, missing, form)

    def named(read: str | None) -> Path:
        nonlocal sha256
        # Rows of two versions of a file are rows of none.
        if stat_signature(path) != signature or (sha256 and read and sha256 != read):
            raise changed_table(path)
        if sha256 is None:
            sha256 = str(read)
            remember_sha256(path, cache, sha256)
        return target()

    try:
        if form is not None:
            _convert_csv(path, spec, form, cache, named, scan)
        else:
            parquet = file_format == "parquet"
            batches = _parquet_batches(path) if parquet else arrow_batches(path)
            write_parquet(batches, path, target(), lambda: named(None))
    except pa.ArrowNotImplementedError as error:
        raise unknown_type(path, error) from error
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"cannot be converted into the cache: {error}",
            where=str(path),
            expected="a readable table and a writable workspace",
        ) from error
    return str(sha256), TableFile(target(), find_cached(target()), missing, form)


def changed_table(path: Path) -> DataError:
    """The error for a table of which one part is older than another."""
    return DataError(
        "the table changed while it was read",
        where=str(path),
        advice="start again with the table as it is now",
    )


def _conversion_digest(spec: SourceSpec, sha256: str, form: CsvFormat | None) -> str:
    """Digest of the content and of the options that a converted file depends on."""
    options: list[Any] = []
    if form is not None:
        texts = [sorted(spec.categorical), spec.label, spec.name, sorted(spec.audit_only)]
        options = [CSV_VERSION, dataclasses.astuple(form), texts]
    return canonical_digest([CONVERTER_VERSION, sha256, options])


def find_converted(target: Path) -> CachedFile | None:
    """File that an earlier run converted, or None if it must be converted again."""
    cached = find_cached(target)
    if cached is not None:
        try:
            TableFile(target, cached).open().close()
        except (SourceError, DamageError):
            return None
    return cached


def table_format(path: Path) -> str:
    """Format by the suffix: parquet, arrow or csv.

    Raises:
        SourceError: the suffix is that of no table.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PARQUET:
        return "parquet"
    if suffixes and suffixes[-1] in ARROW:
        return "arrow"
    plain = suffixes[:-1] if suffixes and suffixes[-1] in COMPRESSED else suffixes
    if _CSV & set(plain[-1:]):
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
    # Row groups are found by their rows, which an empty one has not.
    return min(rows) > 0 and max(rows) <= MAX_GROUP_ROWS and not tiny


def _parquet_batches(path: Path) -> Iterator[Any]:
    # One row group at a time through a small buffer: else Arrow keeps what it has passed.
    with pq.ParquetFile(path, buffer_size=READ_BUFFER_BYTES) as file:
        for group in range(file.metadata.num_row_groups):
            yield from file.iter_batches(GROUP_ROWS, row_groups=[group], use_threads=False)


def _convert_csv(
    path: Path,
    spec: SourceSpec,
    form: CsvFormat,
    cache: Path,
    named: Callable[[str | None], Path],
    scan: RowGroupScan | None,
) -> None:
    """Convert a CSV file; widen a column whose later rows do not fit its inferred type.

    Raises:
        SourceError: a line with another number of fields than the first, or nothing in the file.
    """
    types: dict[str, Any] = {}
    missing = tuple(map(str, spec.missing))

    def scanned(batches: Iterable[Any]) -> Iterator[Any]:
        for index, batch in enumerate(batches):
            if scan is not None and index == 0:
                scan.start(batch.schema, form, missing)
            yield batch

    while True:
        batches = CsvBatches(path, form, types, CSV_BLOCK_BYTES)
        for column in text_columns(spec, batches.head):
            types.setdefault(column, pa.string())
        try:
            write_parquet(
                scanned(one_ahead(batches)),
                path,
                cache / "rows.parquet",
                lambda batches=batches: named(batches.sha256),  # type: ignore[misc]
                _pass_over if scan is None else scan.add,
            )
            return
        except pa.ArrowInvalid as error:
            # Arrow infers types from the first block.
            name = batches.misread_column(str(error))
            if name is None:
                problem, advice = csv_problem(batches.head, error)
                raise SourceError(
                    f"cannot be converted into the cache: {problem}",
                    where=str(path),
                    expected="a readable table",
                    advice=advice,
                ) from error
            wider = wider_type(batches.type_of(name), str(error))
            # Text and bytes accept everything: another failure is an error of the file.
            if types.get(name) == wider:
                raise
            types[name] = wider


def one_ahead(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches, the next of which is read while one is used."""
    iterator = iter(batches)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, iterator, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, iterator, None)
            yield batch


def text_columns(spec: SourceSpec, head: CsvHead) -> set[str]:
    """Columns of a CSV file that are read as text, as the recipe declares them.

    A label or name that is audited too stays a number, unless it would lose digits.
    """
    codes = head.codes()
    named = {name for name in (spec.label, spec.name) if name}
    return {*spec.categorical, *(n for n in named if n not in spec.audit_only or n in codes)}


def wider_type(narrow: Any, message: str) -> Any:
    """The next type for a column: numbers, then text, then bytes that are no text."""
    if "UTF8" in message:
        return pa.binary()
    # A first block without values says nothing about the type.
    whole = narrow is not None and (pa.types.is_integer(narrow) or pa.types.is_null(narrow))
    return pa.float64() if whole else pa.string()


def _pass_over(table: Any) -> None:
    """For row groups that nobody looks at."""


def write_parquet(
    batches: Iterable[Any],
    path: Path,
    target: Path,
    named: Callable[[], Path] | None = None,
    observe: Callable[[Any], None] = _pass_over,
) -> None:
    """Write batches as row groups of ``GROUP_ROWS`` rows; published by rename.

    Args:
        batches: record batches of one schema.
        path: the user's file, for messages.
        target: the file in the cache.
        named: gives it another name, once all batches are read.
        observe: is called with every row group.

    Raises:
        SourceError: there is no row.
    """
    with writing_cached(target, named) as temporary:
        writer: Any = None
        pending: list[Any] = []
        for batch in batches:
            # The schema is known with the first batch.
            writer = writer or _writer(temporary, batch.schema)
            pending.append(batch)
            if sum(part.num_rows for part in pending) >= GROUP_ROWS:
                pending = _write_groups(writer, pending, observe, last=False)
        if writer is None:
            raise SourceError("no rows", where=str(path), expected="at least one row")
        if pending:
            _write_groups(writer, pending, observe, last=True)
        writer.close()


def _writer(target: Path, schema: Any) -> Any:
    # Numbers are rarely repeated: a dictionary would only cost time.
    text = [field.name for field in schema if not is_number(field.type)]
    return pq.ParquetWriter(
        target, schema, compression="lz4", use_dictionary=text, write_statistics=False
    )


def _write_groups(
    writer: Any, pending: list[Any], observe: Callable[[Any], None], *, last: bool
) -> list[Any]:
    """Write all full row groups of the pending batches; return the rest."""
    # Row groups of equal size, whatever the batches were: random access costs the same.
    table = pa.Table.from_batches(pending)
    n_written = table.num_rows if last else table.num_rows - table.num_rows % GROUP_ROWS
    if n_written:
        writer.write_table(table.slice(0, n_written), row_group_size=GROUP_ROWS)
    for first in range(0, n_written, GROUP_ROWS):
        observe(table.slice(first, min(GROUP_ROWS, n_written - first)))
    return list(table.slice(n_written).to_batches())
