"""Tables as a source: rows read by row group, never whole."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from krepes_ooc.core.digests import canonical_digest, remembered_sha256
from krepes_ooc.errors import DataError
from krepes_ooc.sources.arrow_columns import to_codes, to_numbers, to_text
from krepes_ooc.sources.base import (
    BUFFER_BYTES,
    Float32,
    Float64,
    Int64,
    SampleKind,
    SourceSpec,
    check_positions,
    locate,
)
from krepes_ooc.sources.parquet import TableFile, as_parquet
from krepes_ooc.sources.table_scan import (
    SCAN_VERSION,
    Scan,
    TableColumns,
    load_scan,
    resolve_columns,
    save_scan,
    scan_table,
)


def open_table(
    spec: SourceSpec, base: Path, cache: Path, *, buffer_bytes: int = BUFFER_BYTES
) -> TableSource:
    """Open a table; the first time it is scanned once and the findings are kept in ``cache``.

    Args:
        spec: the declared source.
        base: folder of the recipe.
        cache: folder for converted files and findings.
        buffer_bytes: most bytes of decoded row groups to keep; a table that fits has random access.

    Raises:
        SourceError: no such file or column, a column of a type or with more categories than can be
            used, or no rows.
        DataError: a number that is missing, NaN or infinite.
    """
    path = locate(spec.path, base)
    sha256 = remembered_sha256(path, cache)
    parquet = as_parquet(path, spec, sha256, cache)
    with parquet.open() as file:
        schema, metadata = file.schema_arrow, file.metadata
    rows = min(metadata.num_rows, spec.limit or metadata.num_rows)
    reading = resolve_columns(spec, schema, rows, str(path))
    key = canonical_digest(
        [SCAN_VERSION, sha256, parquet.path.name, reading.kinds, reading.label, rows]
    )
    folder = cache / f"scan-{key[:16]}"
    scan = load_scan(folder)
    if scan is None:
        scan = scan_table(parquet, reading, str(path))
        save_scan(folder, scan)
    groups = _group_rows(metadata, rows)
    return TableSource(spec, path, parquet, sha256, reading, scan, groups, buffer_bytes)


class TableSource:
    """Rows of a table, float64 [sample, column]; the code of a category is its index.

    Made by ``open_table``. A table whose decoded rows fit the buffer has random access; a larger
    one tells its row groups, so that rows are read in shuffled windows of them.
    """

    kind: SampleKind = "table"

    def __init__(
        self,
        spec: SourceSpec,
        path: Path,
        parquet: TableFile,
        sha256: str,
        reading: TableColumns,
        scan: Scan,
        groups: tuple[int, ...],
        buffer_bytes: int,
    ) -> None:
        self._spec, self._path, self._parquet, self._sha256 = spec, path, parquet, sha256
        self._reading, self._scan = reading, scan
        self._seal = parquet.seal()
        self.n_samples = reading.n_samples
        self.columns, self.classes, self.warnings = scan.columns, scan.classes, scan.warnings
        self.marginal_rows = scan.marginal_rows
        self.spread = np.asarray([c.std if c.kind == "numeric" else 0.0 for c in scan.columns])
        width = 8 * (len(scan.columns) + bool(scan.classes))
        self.row_groups = groups if self.n_samples * width > buffer_bytes else None
        self.resident_bytes = min(buffer_bytes, self.n_samples * width) + scan.marginal_rows.nbytes
        self._ends = np.cumsum(groups)
        self._buffer = _GroupBuffer(buffer_bytes)
        shown = [c for c in scan.columns if c.shown]
        self.input_shape: tuple[int, ...] = (sum(len(c.categories) or 1 for c in shown),)

    def read(self, positions: Int64) -> Float64:
        """Raw rows [sample, column] at these positions.

        Raises:
            DataError: the file changed or is damaged.
            UsageError: a position lies outside the table.
        """
        return self._gather(positions)[:, : len(self.columns)]

    def labels(self, positions: Int64) -> Int64:
        """Codes of ``classes`` [sample], -1 where the label is missing or none is declared."""
        if not self._reading.label:
            return np.full(check_positions(positions, self.n_samples).shape, -1, dtype=np.int64)
        return self._gather(positions)[:, -1].astype(np.int64)

    def names(self, positions: Int64) -> list[str]:
        """The declared name column as text, else the positions."""
        positions = check_positions(positions, self.n_samples)
        if not self._spec.name:
            return [str(position) for position in positions.tolist()]
        names = np.empty(positions.size, dtype=object)
        groups = np.searchsorted(self._ends, positions, side="right")
        for group in np.unique(groups).tolist():
            text = to_text(self._table(group, [self._spec.name]).column(0).combine_chunks())
            here = np.flatnonzero(groups == group)
            inside = positions[here] - self._first(group)
            names[here] = text.take(pa.array(inside)).to_pylist()
        return [str(name) for name in names]

    def encode(self, raw: npt.NDArray[Any]) -> Float32:
        """Shown columns as float32 [sample, input]: standardised numbers, then one-hot codes."""
        raw = np.asarray(raw, dtype=np.float64)
        encoded = np.zeros((raw.shape[0], self.input_shape[0]), dtype=np.float32)
        shown = [(i, c) for i, c in enumerate(self.columns) if c.shown]
        numeric = [(i, c) for i, c in shown if c.kind == "numeric"]
        for place, (index, column) in enumerate(numeric):
            encoded[:, place] = (raw[:, index] - column.mean) / column.std
        place, rows = len(numeric), np.arange(raw.shape[0])
        for index, column in shown:
            if column.kind == "categorical":
                encoded[rows, place + raw[:, index].astype(np.int64)] = 1.0
                place += len(column.categories)
        return encoded

    def fingerprint(self) -> dict[str, Any]:
        """Rows used and, of every column that the network sees, place, kind and content.

        A column more in the file, such as a label, changes no feature: the file itself is no part.
        """
        return {
            "kind": "table",
            "rows": self.n_samples,
            "columns": [
                [place, c.name, c.kind, list(c.categories), c.mean, c.std, c.sha256]
                for place, c in enumerate(self.columns)
                if c.shown
            ],
            "row_groups": self.row_groups and list(self.row_groups),
        }

    def label_fingerprint(self) -> dict[str, Any]:
        """The whole file, the label and name columns, and all columns with their kinds."""
        return {
            "sha256": self._sha256,
            "label": self._reading.label,
            "name": self._spec.name,
            "classes": list(self.classes),
            "columns": [[c.name, c.kind, c.shown, list(c.categories)] for c in self.columns],
        }

    def _gather(self, positions: Int64) -> Float64:
        positions = check_positions(positions, self.n_samples)
        gathered = np.empty((positions.size, len(self._reading.kinds) + bool(self._reading.label)))
        groups = np.searchsorted(self._ends, positions, side="right")
        for group in np.unique(groups).tolist():
            here = np.flatnonzero(groups == group)
            decoded = self._buffer.get(group, self._decode)
            gathered[here] = decoded[positions[here] - self._first(group)]
        return gathered

    def _first(self, group: int) -> int:
        return int(self._ends[group - 1]) if group else 0

    def _decode(self, group: int) -> Float64:
        """One row group as float64 [sample, column], the label last."""
        table, first = self._table(group, self._reading.names), self._first(group)
        decoded = np.empty((table.num_rows, len(self.columns) + bool(self._reading.label)))
        for index, column in enumerate(self.columns):
            values = table.column(column.name).combine_chunks()
            if column.kind == "numeric":
                decoded[:, index] = to_numbers(values, column.name, first, str(self._path))
                continue
            decoded[:, index] = codes = to_codes(values, pa.array(column.categories, pa.string()))
            if codes.size and codes.min() < 0:
                raise self._changed()
        if self._reading.label:
            values = table.column(self._reading.label).combine_chunks()
            decoded[:, -1] = to_codes(values, pa.array(self.classes, pa.string()))
        return decoded

    def _table(self, group: int, columns: list[str]) -> Any:
        if self._parquet.seal() != self._seal:
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
        return DataError(
            "the table changed while it was read",
            where=str(self._path),
            advice="start again with the table as it is now",
        )


class _GroupBuffer:
    """Decoded row groups, least recently used out first; one thread decodes, others wait."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._held: OrderedDict[int, Float64] = OrderedDict()
        self._decoding: dict[int, threading.Lock] = {}

    def get(self, group: int, decode: Any) -> Float64:
        with self._lock:
            turn = self._decoding.setdefault(group, threading.Lock())
        with turn:
            with self._lock:
                if group in self._held:
                    self._held.move_to_end(group)
                    return self._held[group]
            decoded: Float64 = decode(group)
            with self._lock:
                self._held[group] = decoded
                while sum(part.nbytes for part in self._held.values()) > self._capacity:
                    self._held.popitem(last=False)
        return decoded

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process empty."""
        return (_GroupBuffer, (self._capacity,))


def _group_rows(metadata: Any, rows: int) -> tuple[int, ...]:
    """Rows of each row group, as far as they are used."""
    groups: list[int] = []
    for index in range(metadata.num_row_groups):
        groups.append(min(metadata.row_group(index).num_rows, rows - sum(groups)))
    return tuple(rows for rows in groups if rows)
