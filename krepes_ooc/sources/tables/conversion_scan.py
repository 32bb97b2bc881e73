"""Scan of a table while it is converted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from krepes_ooc.errors import KrepesError
from krepes_ooc.sources.tables.arrow_columns import blank_missing
from krepes_ooc.sources.tables.csv_batches import CsvFormat
from krepes_ooc.sources.tables.table_scan import RunningScan, Scan, TableColumns


class ConversionScan:
    """Scan of a table while it is converted, so that its rows are passed once.

    What cannot be scanned yet, such as a column whose type changes later on, ends the scan and not
    the conversion: the converted table is scanned then.

    Args:
        resolve: columns to read, from the schema of the table and the file's character encoding.
        where: the user's file, for messages.
    """

    def __init__(self, resolve: Callable[[Any, str], TableColumns], where: str) -> None:
        self._resolve = resolve
        self._where = where
        self._running: RunningScan | None = None
        self._missing: tuple[str, ...] = ()

    def start(self, schema: Any, csv: CsvFormat, missing: tuple[str, ...]) -> None:
        """Begin with the first row, also of a conversion that is begun again."""
        self._missing = missing
        try:
            columns = self._resolve(schema, csv.charset)
            self._running = RunningScan(columns, self._where, csv)
        except KrepesError:
            self._running = None

    def add(self, table: Any) -> None:
        """Add a row group."""
        if self._running is None:
            return
        try:
            names = self._running.table_columns.names
            self._running.add(blank_missing(table.select(names), self._missing))
        except (KrepesError, pa.ArrowException):
            self._running = None

    def result(self, table_columns: TableColumns) -> Scan | None:
        """Scan of these columns; None if they, or all their rows, were not scanned.

        Raises:
            DataError: as ``RunningScan.finish``.
            SourceError: as ``RunningScan.finish``.
        """
        running = self._running
        if running is None or running.n_rows != table_columns.n_samples:
            return None
        scanned = replace(running.table_columns, n_samples=table_columns.n_samples)
        return running.finish() if scanned == table_columns else None
