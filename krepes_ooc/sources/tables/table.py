"""Tables as a source: rows read by row group, never whole."""

from __future__ import annotations

import functools
import sys
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from krepes_ooc.core.digests import canonical_digest, stat_signature
from krepes_ooc.errors import DataError
from krepes_ooc.sources.base import (
    BUFFER_BYTES,
    Float32,
    Float64,
    Int64,
    SampleKind,
    SourceSpec,
    check_positions,
)
from krepes_ooc.sources.decoding import check_decode, decode_classes, decode_columns
from krepes_ooc.sources.tables.arrow_columns import to_codes, to_numbers, to_text
from krepes_ooc.sources.tables.column_checks import null_words
from krepes_ooc.sources.tables.conversion_scan import ConversionScan
from krepes_ooc.sources.tables.csv_batches import head_warnings, read_head
from krepes_ooc.sources.tables.encoded_table import ZERO, EncodingFile, open_encoding
from krepes_ooc.sources.tables.parquet import TableFile, changed_table
from krepes_ooc.sources.tables.scanned_table import ScannedTable, ShownTable
from krepes_ooc.sources.tables.table_columns import resolve_columns
from krepes_ooc.sources.tables.table_encoding import RowEncoder, learn_encoding
from krepes_ooc.sources.tables.table_folder import locate_table, open_parts
from krepes_ooc.sources.tables.table_scan import (
    SCAN_VERSION,
    Scan,
    TableColumns,
    load_scan,
    save_scan,
    scan_table,
)
from krepes_ooc.sources.tables.table_summary import describe_table

# Memory of reading a row group: Arrow's copies of it, and what Parquet keeps of every column.
ARROW_COPIES = 1.5
COLUMN_BYTES = 8 * 2**10


def open_table(
    spec: SourceSpec, base: Path, cache: Path, *, buffer_bytes: int = BUFFER_BYTES
) -> TableSource:
    """Open a table; the first run scans it and keeps the result in ``cache``.

    Args:
        spec: the declared source.
        base: folder of the recipe.
        cache: folder for converted files and scan results.
        buffer_bytes: most bytes of decoded row groups in memory; a table that fits has random
            access.

    Raises:
        SourceError: no such file or column, a column of a type or with more categories than can be
            used, or no rows.
        DataError: a number that is missing, NaN or infinite.
    """
    file = open_encoding(spec, base)
    table = scan_source(spec, base, cache, file)
    where = str(table.path)
    columns = table.scan.columns
    marginal_rows = table.scan.marginal_rows
    warnings = list(table.scan.warnings)
    # The encoding of training, else the one that this table itself has.
    if file is not None:
        columns, marginal_rows = file.apply(table.scan, where)
        warnings += file.warnings(columns, table.unknown)
    encoding = learn_encoding(columns) if file is None else file.encoding
    columns, wordless = decode_columns(spec, columns)
    classes, class_codes = decode_classes(spec, table.scan.classes, where)
    shown = ShownTable(
        columns, classes, class_codes, marginal_rows, (*warnings, *wordless), encoding, file
    )
    return TableSource(spec, table, shown, buffer_bytes)


def scan_source(
    spec: SourceSpec,
    base: Path,
    cache: Path,
    file: EncodingFile | None = None,
    *,
    keep_missing: bool = False,
) -> ScannedTable:
    """Read a table once, or load what an earlier run found in it.

    Args:
        spec: the declared source.
        base: folder of the recipe.
        cache: folder for converted files and scan results.
        file: the encoding that the recipe names.
        keep_missing: missing numbers are kept in every column.

    Raises:
        SourceError: as ``open_table``.
        DataError: as ``open_table``, or the table changed while it was read.
    """
    path = locate_table(spec.path, base)
    where = str(path)
    spec = spec if file is None else file.declared(spec)
    resolve = functools.partial(_resolve, spec, file, where, keep_missing)
    # The number of rows is known once all are read.
    live = ConversionScan(
        lambda schema, charset: resolve(schema, spec.limit or sys.maxsize, charset), where
    )
    # Of a folder the signatures of its files are compared where they are brought together.
    signature = () if path.is_dir() else stat_signature(path)
    sha256, parquet, notes = open_parts(path, spec, cache, live)
    with parquet.open() as opened:
        schema = opened.schema_arrow
        metadata = opened.metadata
    if file is not None:
        file.check_columns(spec, schema.names, where)
    check_decode(spec, schema.names, where)
    rows = min(metadata.num_rows, spec.limit or metadata.num_rows)
    charset = parquet.csv.charset if parquet.csv else ""
    unknown: tuple[str, ...] = ()
    if file is not None:
        unknown = tuple(file.unknown(resolve_columns(spec, schema, rows, where, charset)))
    table_columns = resolve(schema, rows, charset)
    scan = _load_or_scan(path, parquet, table_columns, [sha256, notes], cache, live)
    # A file of the user was scanned as it is.
    if parquet.cached is None and stat_signature(path) != signature:
        raise changed_table(path)
    read = {*table_columns.names, spec.name}
    left_out = tuple(name for name in schema.names if name not in read)
    return ScannedTable(
        path,
        sha256,
        parquet,
        table_columns,
        scan,
        _group_rows(metadata, rows),
        metadata.num_rows,
        unknown,
        left_out,
    )


def _resolve(
    spec: SourceSpec,
    file: EncodingFile | None,
    where: str,
    keep_missing: bool,
    schema: Any,
    rows: int,
    charset: str,
) -> TableColumns:
    """Columns to read, as recipe and encoding file state them."""
    table_columns = resolve_columns(spec, schema, rows, where, charset)
    if file is not None:
        table_columns = file.hide_unknown(table_columns, where)
    if keep_missing:
        numeric = frozenset(name for name, kind, _ in table_columns.kinds if kind == "numeric")
        table_columns = replace(table_columns, fillable=numeric)
    return table_columns


def _load_or_scan(
    path: Path,
    parquet: TableFile,
    table_columns: TableColumns,
    content: list[Any],
    cache: Path,
    live: ConversionScan,
) -> Scan:
    # Everything that the result of a scan depends on names its folder.
    parts: list[Any] = [SCAN_VERSION, *content, parquet.path.name, list(parquet.missing)]
    parts += [table_columns.kinds, table_columns.label, table_columns.n_samples]
    parts += [sorted(table_columns.declared), list(table_columns.warnings)]
    parts += [sorted(table_columns.fillable)]
    folder = cache / f"scan-{canonical_digest(parts)[:16]}"
    scan = load_scan(folder)
    if scan is None:
        scan = live.result(table_columns) or scan_table(parquet, table_columns, str(path))
        found = [*content[1], *table_columns.warnings, *scan.warnings]
        if parquet.csv is not None and path.is_file():
            found += head_warnings(read_head(path, parquet.csv), table_columns.kinds)
        scan = replace(scan, warnings=tuple(found))
        save_scan(folder, scan)
    return scan


class TableSource:
    """Rows of a table, float64 [sample, column]; the code of a category is its index.

    Opened by ``open_table``. A table whose decoded rows fit the buffer has random access; a larger
    one publishes its row groups, so that rows are read in shuffled windows of them.
    """

    kind: SampleKind = "table"

    def __init__(
        self, spec: SourceSpec, table: ScannedTable, shown: ShownTable, buffer_bytes: int
    ) -> None:
        self._spec = spec
        self._table_file = table
        self._shown = shown
        self._path = table.path
        self._parquet = table.parquet
        self._table_columns = table.table_columns
        self._signature = table.parquet.signature()
        self.n_samples = table.table_columns.n_samples
        self.columns = shown.columns
        self.classes = shown.classes
        self.warnings = shown.warnings
        self.marginal_rows = shown.marginal_rows
        self.encoding = shown.encoding
        self.encoding_file = shown.encoding_file
        file = shown.encoding_file
        self._encoder = RowEncoder(
            shown.encoding,
            shown.columns,
            fills=file is not None,
            zeros=file is not None and file.unseen == ZERO,
        )
        self.input_shape: tuple[int, ...] = (shown.encoding.width,)
        self.spread = np.asarray([c.std if c.kind == "numeric" else 0.0 for c in shown.columns])
        # float64 columns, and one for the label codes.
        width = 8 * (len(shown.columns) + bool(table.scan.classes))
        # Too large for the buffer: rows are read window by window.
        self.row_groups = table.groups if self.n_samples * width > buffer_bytes else None
        # Beside the decoded rows: the largest group as Arrow reads it, and what every column takes.
        reading = int(ARROW_COPIES * width * max(table.groups, default=0))
        reading += COLUMN_BYTES * len(shown.columns)
        self.resident_bytes = min(buffer_bytes, self.n_samples * width) + reading
        self.resident_bytes += self.marginal_rows.nbytes
        self._ends = np.cumsum(table.groups)
        self._buffer = _GroupBuffer(buffer_bytes)

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines for people that a plan shows: columns, encoding, missing values, classes."""
        return describe_table(self._spec, self._table_file, self._shown)

    @property
    def keeps_missing(self) -> frozenset[str]:
        """Numeric columns whose missing numbers are read as NaN."""
        return self._table_columns.fillable

    @property
    def label_values(self) -> tuple[str, ...]:
        """Labels as the table spells them."""
        return self._table_file.scan.classes

    def label_codes(self, values: Any) -> Int64:
        """Codes of ``classes`` [sample] of an Arrow column of labels, -1 where there is none."""
        found = to_codes(values, pa.array(self._table_file.scan.classes, pa.string()))
        # A missing label has code -1, which indexes the last entry.
        return np.append(self._shown.class_codes, -1)[found]

    @property
    def table_file(self) -> TableFile:
        """The Parquet file that the rows are read from."""
        return self._parquet

    def read(self, positions: Int64) -> Float64:
        """Raw rows [sample, column] at these positions.

        Raises:
            DataError: the file changed or is damaged.
            UsageError: a position lies outside the table.
        """
        return self._gather(positions)[:, : len(self.columns)]

    def labels(self, positions: Int64) -> Int64:
        """Codes of ``classes`` [sample], -1 where the label is missing or none is declared."""
        if not self._table_columns.label:
            return np.full(check_positions(positions, self.n_samples).shape, -1, dtype=np.int64)
        return self._gather(positions)[:, -1].astype(np.int64)

    def names(self, positions: Int64) -> list[str]:
        """The declared name column as text, else the positions.

        Raises:
            DataError: a name is not UTF-8, or the file changed or is damaged.
        """
        positions = check_positions(positions, self.n_samples)
        if not self._spec.name:
            return [str(position) for position in positions.tolist()]
        names = np.empty(positions.size, dtype=object)
        # Positions of one row group together: each group is opened once.
        groups = np.searchsorted(self._ends, positions, side="right")
        for group in np.unique(groups).tolist():
            text = to_text(self._table(group, [self._spec.name]).column(0).combine_chunks())
            selected = np.flatnonzero(groups == group)
            inside = positions[selected] - self._first(group)
            try:
                names[selected] = text.take(pa.array(inside)).to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"column {self._spec.name!r} (source.name) holds bytes that are not UTF-8",
                    where=str(self._path),
                    expected="text in UTF-8",
                ) from error
        return [str(name) for name in names]

    def encode(self, raw: npt.NDArray[Any]) -> Float32:
        """Network inputs float32 [sample, input]: standardised numbers and one-hot categories."""
        return self._encoder(raw)

    def fingerprint(self) -> dict[str, Any]:
        """Rows used and, of every column that the network sees, position, kind and content.

        A column more in the file, such as a label, changes no feature: the file itself is no part.
        An encoding file is a part of its own.
        """
        file = self.encoding_file
        encoded = {} if file is None else {"encoding": file.encoding.digest}
        return encoded | {
            "kind": "table",
            "rows": self.n_samples,
            "columns": [
                [index, c.name, c.kind, list(c.categories), c.mean, c.std, c.sha256]
                for index, c in enumerate(self._table_file.scan.columns)
                if c.shown
            ],
            "row_groups": self.row_groups and list(self.row_groups),
        }

    def label_fingerprint(self) -> dict[str, Any]:
        """sha256 of the whole file, label and name columns, and all columns with their kinds."""
        decode = self._spec.decode
        return ({"decode": decode} if decode else {}) | {
            "sha256": self._table_file.sha256,
            "label": self._table_columns.label,
            "name": self._spec.name,
            "classes": list(self.classes),
            "columns": [[c.name, c.kind, c.shown, list(c.categories)] for c in self.columns],
        }

    def _gather(self, positions: Int64) -> Float64:
        positions = check_positions(positions, self.n_samples)
        gathered = np.empty(
            (positions.size, len(self._table_columns.kinds) + bool(self._table_columns.label))
        )
        # As above: each row group is decoded once for all its positions.
        groups = np.searchsorted(self._ends, positions, side="right")
        for group in np.unique(groups).tolist():
            selected = np.flatnonzero(groups == group)
            decoded = self._buffer.get(group, self._decode)
            gathered[selected] = decoded[positions[selected] - self._first(group)]
        return gathered

    def _first(self, group: int) -> int:
        return int(self._ends[group - 1]) if group else 0

    def _decode(self, group: int) -> Float64:
        """One row group as float64 [sample, column], the label last."""
        table = self._table(group, self._table_columns.names)
        first = self._first(group)
        decoded = np.empty((table.num_rows, len(self.columns) + bool(self._table_columns.label)))
        for index, column in enumerate(self.columns):
            values = table.column(column.name).combine_chunks()
            if column.kind == "numeric":
                keep = column.name in self._table_columns.fillable
                decoded[:, index] = to_numbers(
                    values, column.name, first, str(self._path), keep_missing=keep
                )
                continue
            names = pa.array(column.categories, pa.string())
            words = null_words(column.categories) if self._parquet.csv else ()
            decoded[:, index] = codes = to_codes(values, names, words)
            # The scan saw every category, so an unknown one means that the file changed.
            if codes.size and codes.min() < 0:
                raise self._changed()
        if self._table_columns.label:
            values = table.column(self._table_columns.label).combine_chunks()
            decoded[:, -1] = self.label_codes(values)
        # Arrow keeps what it freed.
        del table
        pa.default_memory_pool().release_unused()
        return decoded

    def _table(self, group: int, columns: list[str]) -> Any:
        # A file of the user is compared with the one that was scanned.
        if self._parquet.signature() != self._signature:
            raise self._changed()
        try:
            with self._parquet.open() as file:
                table = self._parquet.read(file, group, columns)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"row group {group} cannot be read: {error}", where=str(self._path)
            ) from error
        return table.slice(0, self.n_samples - self._first(group))

    def _changed(self) -> DataError:
        return changed_table(self._path)


class _GroupBuffer:
    """LRU cache of decoded row groups; one thread decodes a group, the others wait."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, Float64] = OrderedDict()
        self._group_locks: dict[int, threading.Lock] = {}

    def get(self, group: int, decode: Any) -> Float64:
        with self._lock:
            group_lock = self._group_locks.setdefault(group, threading.Lock())
        # Decoding happens outside the lock of the buffer: other groups stay available.
        with group_lock:
            with self._lock:
                if group in self._groups:
                    self._groups.move_to_end(group)
                    return self._groups[group]
            decoded: Float64 = decode(group)
            with self._lock:
                self._groups[group] = decoded
                # The group just decoded may leave at once: it is returned all the same.
                while sum(part.nbytes for part in self._groups.values()) > self._capacity:
                    self._groups.popitem(last=False)
        return decoded

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the row groups."""
        return (_GroupBuffer, (self._capacity,))


def _group_rows(metadata: Any, rows: int) -> tuple[int, ...]:
    """Number of used rows in each row group."""
    groups: list[int] = []
    for index in range(metadata.num_row_groups):
        # A limit cuts the last row group that is used.
        groups.append(min(metadata.row_group(index).num_rows, rows - sum(groups)))
    return tuple(rows for rows in groups if rows)
