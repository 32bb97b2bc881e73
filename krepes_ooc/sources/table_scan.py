"""One pass over a table: kinds, categories, means, spreads, quantiles and the bank of rows.

Views draw from the bank of rows; quantiles are read off it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.array_rows import marginal_positions
from krepes_ooc.sources.arrow_columns import MISSING, is_number, kind_of, to_numbers, to_text
from krepes_ooc.sources.base import Column, SourceSpec
from krepes_ooc.sources.cache import cache_file, find_cached, read_scan_result, write_scan_result
from krepes_ooc.sources.parquet import TableFile

Float64 = npt.NDArray[np.float64]
SCAN_VERSION = 2
MAX_CATEGORIES = 1_024


@dataclass(frozen=True)
class TableColumns:
    """What to read of a table: kinds in file order, resolved from the recipe and the schema.

    Args:
        kinds: (name, kind, shown) of every column that is read, labels excepted.
        label: column of labels, or "".
        n_samples: rows that are used.
    """

    kinds: tuple[tuple[str, Literal["numeric", "categorical"], bool], ...]
    label: str
    n_samples: int

    @property
    def names(self) -> list[str]:
        """Columns to read, the label last."""
        shown = [name for name, _, _ in self.kinds]
        return shown + [self.label] * bool(self.label and self.label not in shown)


@dataclass(frozen=True)
class Scan:
    """What one pass over a table found; ``bank`` float64 [row, column]."""

    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...]
    marginal_rows: Float64


def resolve_columns(spec: SourceSpec, schema: Any, rows: int, where: str) -> TableColumns:
    """Which columns are read, and as what.

    Raises:
        SourceError: no rows, no such column, or a column of a type that cannot be used.
    """
    _check_columns(spec, schema.names, where)
    if not rows:
        raise SourceError("no rows", where=where, expected="at least one row")
    hidden = {spec.label, spec.name, *spec.exclude} - set(spec.audit_only)
    kinds = []
    for name in schema.names:
        if name in hidden:
            continue
        kind = kind_of(schema.field(name).type)
        if kind is None:
            raise SourceError(
                f"column {name!r} has type {schema.field(name).type}",
                where=where,
                expected="numbers, text or true/false",
                advice="list it under source.exclude or convert it",
            )
        if name in spec.numeric:
            kind = "numeric"
        elif name in spec.categorical:
            kind = "categorical"
        kinds.append(
            (name, kind, name not in {*spec.audit_only, *spec.exclude, spec.label, spec.name})
        )
    if not any(shown for _, _, shown in kinds):
        raise SourceError("no column is left for the network", where=where, expected="one or more")
    return TableColumns(tuple(kinds), spec.label, rows)


def scan_table(parquet: TableFile, reading: TableColumns, where: str) -> Scan:
    """Read every used row once.

    Args:
        parquet: the table.
        reading: columns and rows to use.
        where: the user's file, for messages.

    Raises:
        DataError: a number that is missing, NaN or infinite.
        SourceError: too many categories.
        DamageError: the converted table is damaged.
    """
    tallies = [ColumnStatistics(name, kind, where) for name, kind, _ in reading.kinds]
    label = ColumnStatistics(reading.label, "categorical", where) if reading.label else None
    wanted = marginal_positions(reading.n_samples)
    bank = np.empty((wanted.size, len(tallies)))
    first = 0
    with parquet.open() as file:
        for group in range(file.metadata.num_row_groups):
            if first >= reading.n_samples:
                break
            try:
                table = parquet.read(file, group, reading.names)
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"row group {group} cannot be read: {error}", where=where
                ) from error
            table = table.slice(0, reading.n_samples - first)
            here = slice(*np.searchsorted(wanted, [first, first + table.num_rows]))
            for index, tally in enumerate(tallies):
                values = tally.update(table.column(tally.name), first)
                bank[here, index] = values[wanted[here] - first]
            if label:
                label.update(table.column(label.name), first)
            first += table.num_rows
    return _finish(reading, tallies, label, bank)


def load_scan(folder: Path) -> Scan | None:
    """The scan that an earlier run kept, or None if there is none that is what was written."""
    try:
        found = read_scan_result(folder / "scan.json")
        columns = tuple(
            Column(**(entry | {"categories": tuple(entry["categories"])}))
            for entry in found["columns"]
        )
        kept = find_cached(folder / "bank.npy")
        if kept is None or kept.damage():
            return None
        bank = np.load(kept.path, allow_pickle=False)
        return Scan(columns, tuple(found["classes"]), tuple(found["warnings"]), bank)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_scan(folder: Path, scan: Scan) -> None:
    """Keep a scan for later runs; the JSON, written last, completes it."""
    stream = io.BytesIO()
    np.save(stream, scan.marginal_rows, allow_pickle=False)
    cache_file(folder / "bank.npy", stream.getvalue())
    findings = {
        "columns": [asdict(column) for column in scan.columns],
        "classes": list(scan.classes),
        "warnings": list(scan.warnings),
    }
    write_scan_result(folder / "scan.json", findings)


class ColumnStatistics:
    """Running statistics of one column; categories get provisional codes as they appear."""

    def __init__(self, name: str, kind: str, where: str) -> None:
        self.name, self.kind, self._where = name, kind, where
        self.codes: dict[str, int] = {}
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.as_numbers = False
        self._content = hashlib.sha256()

    def update(self, values: Any, first_row: int) -> Float64:
        """Numbers, or provisional codes, of these rows."""
        if self.kind == "categorical":
            self.as_numbers = is_number(values.type)
            return self._update_text(to_text(values.combine_chunks()))
        numbers = to_numbers(values.combine_chunks(), self.name, first_row, self._where)
        self._content.update(np.ascontiguousarray(numbers).tobytes())
        if numbers.size:
            self._merge(numbers)
        return numbers

    def _merge(self, numbers: Float64) -> None:
        """Chan, Golub and LeVeque (1979): merge means and sums of squared deviations."""
        mean = float(numbers.mean())
        squares = float(np.square(numbers - mean).sum())
        total, apart = self.count + numbers.size, mean - self.mean
        self.squares += squares + apart * apart * self.count * numbers.size / total
        self.mean += apart * numbers.size / total
        self.count = total

    def _update_text(self, text: Any) -> Float64:
        encoded = text.dictionary_encode()
        for value in encoded.dictionary.to_pylist():
            self.codes.setdefault(value, len(self.codes))
        if len(self.codes) > MAX_CATEGORIES:
            raise SourceError(
                f"column {self.name!r} has more than {MAX_CATEGORIES} categories",
                where=self._where,
                expected=f"at most {MAX_CATEGORIES}",
                advice="list it under source.exclude, or under source.numeric if it holds numbers",
            )
        codes = [self.codes[value] for value in encoded.dictionary.to_pylist()]
        found = np.asarray(codes, dtype=np.float64)[np.asarray(encoded.indices, dtype=np.int64)]
        self._content.update(found.tobytes())
        return found

    def sha256(self) -> str:
        """Of all values in their order; of texts by the order in which they first appeared."""
        content = self._content.copy()
        content.update(json.dumps(list(self.codes)).encode())
        return content.hexdigest()

    def spread(self) -> float:
        """Population standard deviation; 0 for a constant column."""
        spread = float(np.sqrt(self.squares / self.count))
        if not np.isfinite(spread):
            raise DataError(
                f"numbers of column {self.name!r} are too large to standardise",
                where=self._where,
                expected="a finite standard deviation",
                advice="rescale the column or list it under source.exclude",
            )
        return spread

    def categories(self) -> tuple[str, ...]:
        """All categories in order: as numbers where the column holds numbers, missing last."""
        known = [value for value in self.codes if value != MISSING]
        ordered = sorted(known, key=float) if self.as_numbers else sorted(known)
        return (*ordered, *([MISSING] if MISSING in self.codes else []))


def _finish(
    reading: TableColumns,
    tallies: list[ColumnStatistics],
    label: ColumnStatistics | None,
    bank: Float64,
) -> Scan:
    columns, warnings = [], []
    for index, (tally, (name, kind, shown)) in enumerate(zip(tallies, reading.kinds, strict=True)):
        if kind == "categorical":
            categories = tally.categories()
            final = np.asarray([categories.index(value) for value in tally.codes], dtype=np.float64)
            bank[:, index] = final[bank[:, index].astype(np.int64)]
            columns.append(Column(name, kind, shown, categories, sha256=tally.sha256()))
            constant = len(categories) < 2
        else:
            spread, (low, high) = tally.spread(), np.quantile(bank[:, index], [0.01, 0.99])
            constant = spread == 0.0
            numbers = (tally.mean, spread or 1.0, float(low), float(high), tally.sha256())
            columns.append(Column(name, kind, shown, (), *numbers))
        if constant:
            warnings.append(f"column {name!r} is constant")
    classes = tuple(c for c in label.categories() if c != MISSING) if label else ()
    return Scan(tuple(columns), classes, tuple(warnings), bank)


def _check_columns(spec: SourceSpec, names: list[str], where: str) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise SourceError(
            f"two columns are named {twice[0]!r}", where=where, expected="unique names"
        )
    for key in ("label", "name", "exclude", "audit_only", "categorical", "numeric"):
        given = getattr(spec, key)
        for name in [given] if isinstance(given, str) else given:
            if name and name not in names:
                raise SourceError(
                    f"no column {name!r} (source.{key})",
                    where=where,
                    expected="one of " + ", ".join(map(repr, names)),
                )
    both = sorted(set(spec.categorical) & set(spec.numeric))
    if both:
        raise SourceError(f"column {both[0]!r} is both categorical and numeric", where=where)
