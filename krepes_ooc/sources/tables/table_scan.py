"""Scan of a table in one pass: kinds, categories, means, spreads, quantiles, marginal rows.

Views draw from the marginal rows; quantiles are estimated from them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from krepes_ooc.errors import DataError
from krepes_ooc.sources.arrays.array_rows import MarginalSample
from krepes_ooc.sources.base import Column, ColumnKind, Float64
from krepes_ooc.sources.cache import cache_file, find_cached, read_scan_result, write_scan_result
from krepes_ooc.sources.tables.arrow_columns import (
    MISSING,
    is_number,
    to_numbers,
    to_text,
)
from krepes_ooc.sources.tables.column_checks import (
    TextCounts,
    all_numbers,
    check_label,
    check_numbers,
    is_null_word,
    too_many_categories,
)
from krepes_ooc.sources.tables.csv_batches import CsvFormat
from krepes_ooc.sources.tables.parquet import TableFile

SCAN_VERSION = 4
MARGINALS_FILE = "bank.npy"
MAX_CATEGORIES = 1_024
# Fields of a column that JSON holds as lists.
_COLUMN_LISTS = ("categories", "counts", "words")
# Float64 holds every whole number up to here.
EXACT = 2.0**53


@dataclass(frozen=True)
class TableColumns:
    """Columns to read, in file order, resolved from the recipe and the schema.

    Args:
        kinds: (name, kind, shown) of every column that is read, labels excepted.
        label: column of labels, or "".
        n_samples: rows that are used.
        declared: columns whose kind the recipe states.
        warnings: columns that are left out although the recipe does not say so.
        fillable: numeric columns whose missing numbers are kept as NaN.
    """

    kinds: tuple[tuple[str, ColumnKind, bool], ...]
    label: str
    n_samples: int
    declared: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    fillable: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """Columns to read, the label last."""
        shown = [name for name, _, _ in self.kinds]
        return shown + [self.label] * bool(self.label and self.label not in shown)


@dataclass(frozen=True)
class Scan:
    """Result of one pass over a table; ``marginal_rows`` float64 [row, column].

    ``class_counts`` holds the rows of each class; the others have no label.
    """

    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...]
    marginal_rows: Float64
    class_counts: tuple[int, ...] = ()


def scan_table(parquet: TableFile, table_columns: TableColumns, where: str) -> Scan:
    """Read every used row once.

    Args:
        parquet: the table.
        table_columns: columns and rows to use.
        where: the user's file, for messages.

    Raises:
        DataError: a number that is missing, NaN or infinite.
        SourceError: too many categories.
        DamageError: the converted table is damaged.
    """
    running = RunningScan(table_columns, where, parquet.csv)
    with parquet.open() as file:
        for group in range(file.metadata.num_row_groups):
            # Row groups behind the limit are not read.
            if running.n_rows >= table_columns.n_samples:
                break
            try:
                table = parquet.read(file, group, table_columns.names)
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"row group {group} cannot be read: {error}", where=where
                ) from error
            running.add(table)
    return running.finish()


class RunningScan:
    """Scan of a table whose rows come group by group.

    Args:
        table_columns: columns to read; rows behind ``n_samples`` are passed over.
        where: the user's file, for messages.
        csv: format of the CSV file that the table was converted from, or None.
    """

    def __init__(self, table_columns: TableColumns, where: str, csv: CsvFormat | None) -> None:
        self.table_columns = table_columns
        self.n_rows = 0
        self._statistics = [
            ColumnStatistics(name, kind, where, name in table_columns.fillable)
            for name, kind, _ in table_columns.kinds
        ]
        name = table_columns.label
        self._label = ColumnStatistics(name, "categorical", where) if name else None
        for column in [*self._statistics, *([self._label] if self._label else [])]:
            column.is_label = column is self._label
            column.from_csv = csv is not None
            column.texts.decimal = csv.decimal if csv else "."
        self._sample = MarginalSample()

    def add(self, table: Any) -> None:
        """Add a row group.

        Raises:
            DataError: a number that is missing, NaN or infinite.
            SourceError: too many categories.
        """
        table = table.slice(0, self.table_columns.n_samples - self.n_rows)
        if not table.num_rows:
            return
        columns = [
            column.update(table.column(column.name), self.n_rows) for column in self._statistics
        ]
        self._sample.add(self.n_rows, columns)
        if self._label:
            self._label.update(table.column(self._label.name), self.n_rows)
        self.n_rows += table.num_rows

    def finish(self) -> Scan:
        """The scan of all rows that were added.

        Raises:
            DataError: numbers that are too large.
            SourceError: numbers among words that may stand for missing ones.
        """
        return _finish(self.table_columns, self._statistics, self._label, self._sample.rows())


def load_scan(folder: Path) -> Scan | None:
    """Scan that an earlier run saved, or None if it is missing or damaged."""
    try:
        result = read_scan_result(folder / "scan.json")
        columns = tuple(
            Column(**(entry | {key: tuple(entry[key]) for key in _COLUMN_LISTS}))
            for entry in result["columns"]
        )
        # All pieces are checked here: the file is read whole.
        cached = find_cached(folder / MARGINALS_FILE)
        if cached is None or cached.problem():
            return None
        marginal_rows = np.load(cached.path, allow_pickle=False)
        return Scan(
            columns,
            tuple(result["classes"]),
            tuple(result["warnings"]),
            marginal_rows,
            tuple(result["class_counts"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_scan(folder: Path, scan: Scan) -> None:
    """Save a scan for later runs; the JSON, written last, completes it."""
    stream = io.BytesIO()
    np.save(stream, scan.marginal_rows, allow_pickle=False)
    cache_file(folder / MARGINALS_FILE, stream.getvalue())
    result = {
        "columns": [asdict(column) for column in scan.columns],
        "classes": list(scan.classes),
        "warnings": list(scan.warnings),
        "class_counts": list(scan.class_counts),
    }
    write_scan_result(folder / "scan.json", result)


class ColumnStatistics:
    """Running statistics of one column; categories get provisional codes as they appear."""

    def __init__(self, name: str, kind: str, where: str, keep_missing: bool = False) -> None:
        self.name = name
        self.kind = kind
        self.where = where
        self._keep_missing = keep_missing
        # Rows whose number is missing.
        self._missing_numbers = 0
        self.codes: dict[str, int] = {}
        self.count = 0
        self.mean = 0.0
        # Sum of squared deviations from the mean.
        self.squares = 0.0
        self.as_numbers = False
        # Whole numbers that float64 rounds.
        self.rounded = False
        self.is_label = False
        self.from_csv = False
        self.texts = TextCounts()
        self._content = hashlib.sha256()

    def update(self, values: Any, first_row: int) -> Float64:
        """Add consecutive rows; their numbers, or provisional codes [row].

        Raises:
            DataError: a number is missing, NaN or infinite.
            SourceError: too many categories.
        """
        if self.kind == "categorical":
            self.as_numbers = is_number(values.type)
            return self._update_text(to_text(values.combine_chunks()), first_row)
        # The hash sees the values as float64: the file format does not matter.
        numbers = to_numbers(
            values.combine_chunks(),
            self.name,
            first_row,
            self.where,
            keep_missing=self._keep_missing,
        )
        self._content.update(np.ascontiguousarray(numbers).data)
        present = numbers[~np.isnan(numbers)] if self._keep_missing else numbers
        self._missing_numbers += numbers.size - present.size
        if present.size:
            self._merge(present)
            whole = is_number(values.type) and not pa.types.is_floating(values.type)
            self.rounded |= whole and bool(np.abs(present).max() > EXACT)
        return numbers

    def _merge(self, numbers: Float64) -> None:
        """Chan, Golub and LeVeque (1979): merge means and sums of squared deviations."""
        mean = float(numbers.mean())
        squares = float(np.square(numbers - mean).sum())
        total = self.count + numbers.size
        shift = mean - self.mean
        # M2 = M2_a + M2_b + shift^2 n_a n_b / n, mean = mean_a + shift n_b / n.
        self.squares += squares + shift * shift * self.count * numbers.size / total
        self.mean += shift * numbers.size / total
        self.count = total

    def _update_text(self, text: Any, first_row: int) -> Float64:
        # One lookup for each distinct text, not for each row.
        encoded = text.dictionary_encode()
        try:
            values = encoded.dictionary.to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(
                f"column {self.name!r} holds bytes that are not UTF-8",
                where=self.where,
                expected="text in UTF-8",
                advice="write the column again, or list it under source.exclude",
            ) from error
        indices = np.asarray(encoded.indices, dtype=np.int64)
        for index, value in enumerate(values):
            # Codes in the order of first appearance, the same for any division into row groups.
            if value not in self.codes:
                self.codes[value] = len(self.codes)
                self.texts.first[value] = first_row + int(np.argmax(indices == index))
        counts = np.bincount(indices, minlength=len(values)).tolist()
        for value, count in zip(values, counts, strict=True):
            self.texts.rows[value] = self.texts.rows.get(value, 0) + count
        if len(self.codes) > MAX_CATEGORIES:
            raise too_many_categories(
                self.name, self.texts, self.where, MAX_CATEGORIES, label=self.is_label
            )
        codes = np.asarray([self.codes[value] for value in values], dtype=np.float64)
        row_codes = codes[indices]
        self._content.update(row_codes.data)
        return row_codes

    def rows_of(self, categories: tuple[str, ...]) -> tuple[int, ...]:
        """Number of rows of each category."""
        rows: Counter[str] = Counter()
        for text, count in self.texts.rows.items():
            rows[self.category(text)] += count
        return tuple(rows[name] for name in categories)

    def missing(self) -> int:
        """Number of rows without a value."""
        return self._missing_numbers if self.kind == "numeric" else self.rows_of((MISSING,))[0]

    def sha256(self) -> str:
        """sha256 of all values in order; categories enter in the order of first appearance."""
        content = self._content.copy()
        content.update(json.dumps([self.category(value) for value in self.codes]).encode())
        return content.hexdigest()

    def spread(self) -> float:
        """Population standard deviation; 0 for a constant column.

        Raises:
            DataError: it overflows float64.
        """
        # A column without a single number has no spread.
        spread = float(np.sqrt(self.squares / max(1, self.count)))
        # The square of a number above 1e154 overflows.
        if not np.isfinite(spread):
            raise DataError(
                f"numbers of column {self.name!r} are too large to standardise",
                where=self.where,
                expected="a finite standard deviation",
                advice="rescale the column or list it under source.exclude",
            )
        return spread

    def categories(self) -> tuple[str, ...]:
        """All categories, sorted as numbers where the column holds numbers; missing last."""
        values = [self.category(value) for value in self.codes]
        known = sorted({value for value in values if value != MISSING})
        if self.as_numbers or self._numbers_as_text():
            known = sorted(known, key=float)
        return (*known, *([MISSING] if MISSING in values else []))

    def category(self, text: str) -> str:
        """Category of a text: NA and its like are missing where all others are numbers."""
        blank = is_null_word(text) and self._numbers_as_text()
        return MISSING if blank else text

    def _numbers_as_text(self) -> bool:
        """Whether a CSV file holds numbers here that are read as texts, as the recipe declares."""
        return self.from_csv and all_numbers(text for text in self.codes if not is_null_word(text))


def _finish(
    table_columns: TableColumns,
    statistics: list[ColumnStatistics],
    label: ColumnStatistics | None,
    marginal_rows: Float64,
) -> Scan:
    columns: list[Column] = []
    warnings = list(check_label(label.name, label.texts)) if label else []
    for index, (column, (name, kind, shown)) in enumerate(
        zip(statistics, table_columns.kinds, strict=True)
    ):
        if kind == "categorical":
            categories = column.categories()
            # Provisional codes follow first appearance, final ones the sorted categories.
            final = np.asarray(
                [categories.index(column.category(value)) for value in column.codes],
                dtype=np.float64,
            )
            marginal_rows[:, index] = final[marginal_rows[:, index].astype(np.int64)]
            known = Column(name, kind, shown, categories, sha256=column.sha256())
            counts = column.rows_of(categories)
            columns.append(replace(known, missing=column.missing(), counts=counts))
            constant = len(categories) < 2
            if name not in table_columns.declared:
                warnings += check_numbers(
                    name, column.texts, column.where, from_csv=column.from_csv
                )
        else:
            spread = column.spread()
            drawn = marginal_rows[~np.isnan(marginal_rows[:, index]), index]
            low, high = np.quantile(drawn, [0.01, 0.99]) if drawn.size else (0.0, 0.0)
            constant = spread == 0.0
            # A constant column is divided by 1, not by 0.
            numbers = (column.mean, spread or 1.0, float(low), float(high), column.sha256())
            columns.append(Column(name, kind, shown, (), *numbers, column.missing()))
        # Allowed, but worth a warning: the network learns nothing from it.
        if constant:
            warnings.append(f"column {name!r} is constant")
        if column.rounded:
            warnings.append(
                f"column {name!r} holds whole numbers beyond 2**53, which lose their last digits: "
                "list it under source.categorical, name or exclude if they are codes"
            )
    classes = tuple(c for c in label.categories() if c != MISSING) if label else ()
    class_counts = label.rows_of(classes) if label else ()
    return Scan(tuple(columns), classes, tuple(warnings), marginal_rows, class_counts)
