"""Summary of a table in lines for people: inputs, columns, what is hidden, missing, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from krepes_ooc.sources.base import SourceSpec

if TYPE_CHECKING:
    # Loads pyarrow, which other sources do without.
    from krepes_ooc.sources.tables.scanned_table import ScannedTable, ShownTable

MAX_COLUMNS = 12
MAX_CLASSES = 12
LEARNED = "learned from this table"
DIGEST_DIGITS = 12


def describe_table(spec: SourceSpec, table: ScannedTable, shown: ShownTable) -> tuple[str, ...]:
    """Lines about a table, from what the scan found: nothing is read.

    Args:
        spec: the declared source.
        table: the scanned table.
        shown: what network and people see of it.
    """
    lines = [f"inputs: {shown.encoding.layout}", f"encoding: {encoding_words(shown)}"]
    numbers = [c.name for c in shown.columns if c.shown and c.kind == "numeric"]
    if numbers:
        lines.append(f"numbers: {first(numbers, MAX_COLUMNS)}")
    categorical = [c for c in shown.columns if c.shown and c.kind == "categorical"]
    if categorical:
        counted = [f"{c.name} {len(c.categories)}" for c in categorical]
        lines.append(f"categories: {first(counted, MAX_COLUMNS)}")
    # What is in the file and not shown to the network.
    if hidden := _hidden(spec, table, shown):
        lines.append(f"not shown to the network: {first(hidden, MAX_COLUMNS)}")
    if table.all_rows > table.table_columns.n_samples:
        lines.append(
            f"limit: the first {table.table_columns.n_samples:,} of {table.all_rows:,} rows"
        )
    missing = {c.name: c.missing for c in shown.columns if c.missing}
    lines.append(f"missing values: {first(_counted(missing), MAX_COLUMNS) or 'none'}")
    if repeated := _repeated(shown, table.table_columns.n_samples):
        lines.append(repeated)
    decoded = [column.name for column in shown.columns if column.words]
    if decoded:
        lines.append(f"decoded: {first(decoded, MAX_COLUMNS)}")
    if spec.label:
        lines.append(_class_line(table, shown))
    return tuple(lines)


def encoding_words(shown: ShownTable) -> str:
    """Origin of the encoding in words."""
    file = shown.encoding_file
    if file is None:
        return LEARNED
    return f"{file.name}, sha256 {file.encoding.digest[:DIGEST_DIGITS]}"


def classes_line(classes: Sequence[str], counts: Sequence[int], unlabelled: int) -> str:
    """Classes with their counts, and how many samples have no label."""
    named = [f"{name} {count:,}" for name, count in zip(classes, counts, strict=True)]
    missing = f"; {unlabelled:,} without a label" if unlabelled else ""
    return f"{len(named)} classes: {first(named, MAX_CLASSES)}{missing}"


def first(words: Sequence[str], count: int) -> str:
    """The first words, and how many more there are."""
    more = f" and {len(words) - count} more" if len(words) > count else ""
    return ", ".join(words[:count]) + more


def _counted(counts: Mapping[str, int]) -> list[str]:
    return [f"{name} {count:,}" for name, count in counts.items()]


def _hidden(spec: SourceSpec, table: ScannedTable, shown: ShownTable) -> list[str]:
    """Columns of the file that the network does not see, each with the reason."""
    reasons = dict.fromkeys(table.unknown, "unknown to the encoding")
    audited = [column for column in shown.columns if not column.shown]
    names = [f"{c.name} ({reasons.get(c.name, 'audited only')})" for c in audited]
    # Label and name are read beside the columns.
    listed = {column.name for column in audited}
    beside = {"label": spec.label, "name": spec.name}
    names += [f"{name} ({role})" for role, name in beside.items() if name and name not in listed]
    return names + [f"{name} (not read)" for name in table.left_out if name not in beside.values()]


def _repeated(shown: ShownTable, n_samples: int) -> str:
    """Number of rows that are equal to another one in all columns that the network sees."""
    seen = [index for index, column in enumerate(shown.columns) if column.shown]
    # NaN stands for a missing number, and differs from itself.
    rows = np.nan_to_num(shown.marginal_rows[:, seen], nan=np.inf)
    repeated = len(rows) - len(np.unique(rows, axis=0))
    if not repeated:
        return ""
    drawn = "" if len(rows) == n_samples else f" of {len(rows):,} drawn at random"
    return f"rows that repeat another to the network: {repeated:,}{drawn}"


def _class_line(table: ScannedTable, shown: ShownTable) -> str:
    counts = np.zeros(len(shown.classes), dtype=np.int64)
    np.add.at(counts, shown.class_codes, np.asarray(table.scan.class_counts, dtype=np.int64))
    unlabelled = table.table_columns.n_samples - int(counts.sum())
    return classes_line(shown.classes, counts.tolist(), unlabelled)
