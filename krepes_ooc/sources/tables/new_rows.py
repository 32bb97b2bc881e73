"""New rows of a table, with the separator, trimming, missing values and types of the source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from krepes_ooc.errors import DataError
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.tables.arrow_columns import blank_missing, is_number, is_temporal, kind_of
from krepes_ooc.sources.tables.arrow_files import arrow_batches
from krepes_ooc.sources.tables.column_checks import null_words
from krepes_ooc.sources.tables.csv_batches import NULL_WORDS, CsvBatches, csv_format, csv_problem
from krepes_ooc.sources.tables.parquet import table_format
from krepes_ooc.sources.tables.table import TableSource


def read_new_rows(source: TableSource, spec: SourceSpec, path: Path, rows: Any = None) -> Any:
    """Arrow table of new rows, as the source reads its own.

    Args:
        source: the opened table.
        spec: its declaration.
        path: the file with the new rows.
        rows: what a JSON file holds: one row or a list of them; None for a file of a table.

    Raises:
        SourceError: the declared separator does not fit the file.
        DataError: the file cannot be read, or holds something that is no row.
    """
    with source.table_file.open() as file:
        schema = file.schema_arrow
    numeric = {column.name for column in source.columns if column.kind == "numeric"}
    types = {field.name: _read_type(field, numeric) for field in schema}
    if rows is not None:
        table = _json_rows(source, spec, path, rows, types)
    elif table_format(path) == "csv":
        table = _csv_rows(source, spec, path, types)
    else:
        table = _typed_rows(source, path, types)
    return _blank_null_words(source, spec, table)


def _read_type(field: Any, numeric: set[str]) -> Any:
    """Arrow type by which a column of the source is read again."""
    if field.name in numeric:
        return pa.float64()
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    plain = is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind)
    return kind if plain else pa.string()


def _csv_rows(source: TableSource, spec: SourceSpec, path: Path, types: dict[str, Any]) -> Any:
    # Texts of a Parquet file are taken as they are, so those of new rows are too.
    form = dataclasses.replace(csv_format(path, spec), trim=source.table_file.csv is not None)
    try:
        while True:
            batches = CsvBatches(path, form, types)
            if not form.header and len(batches.head.names) != len(types):
                raise DataError(
                    f"{len(batches.head.names)} columns",
                    where=str(path),
                    expected=f"{len(types)} as in the source, which has no names",
                )
            try:
                return pa.Table.from_batches(list(batches))
            except pa.ArrowInvalid as error:
                name = batches.misread_column(str(error))
                if name is None or types.get(name) == pa.string() or "UTF8" in str(error):
                    problem, advice = csv_problem(batches.head, error)
                    where = f"{path}{f', column {name!r}' if name else ''}"
                    raise DataError(
                        f"cannot be read: {problem}",
                        where=where,
                        expected=f"rows as in the source, text in {form.charset}",
                        advice=advice,
                    ) from error
                # As text, so that the entry is named when it is taken as a number or category.
                types = types | {name: pa.string()}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path)) from error


def _typed_rows(source: TableSource, path: Path, types: dict[str, Any]) -> Any:
    """Rows of a Parquet or Arrow file, whose columns have types of their own."""
    try:
        if table_format(path) == "parquet":
            # The file itself: a folder key=value above it is no column.
            table = pq.ParquetFile(path).read(use_threads=False)
        else:
            table = pa.Table.from_batches(list(arrow_batches(path)))
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"cannot be read: {problem}", where=str(path)) from error
    columns = {}
    for name in [name for name in types if name in table.column_names]:
        column = table.column(name).combine_chunks()
        if kind_of(column.type) is None and not is_temporal(column.type):
            raise DataError(
                f"column {name!r} has type {column.type}",
                where=str(path),
                expected=f"{types[name]} as in the source",
            )
        columns[name] = _retyped(column, types[name], trim=source.table_file.csv is not None)
    return blank_missing(pa.table(columns), source.table_file.missing)


def _retyped(column: Any, kind: Any, *, trim: bool) -> Any:
    """A column in the type of the source's; as text where its values do not fit."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind == pa.float64() and is_number(column.type):
        return column
    try:
        # A whole number that is stored as a float is spelled as a whole number.
        column = column.cast(kind)
    except pa.ArrowException:
        column = column.cast(pa.string())
    if trim and pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    return column


def _json_rows(
    source: TableSource, spec: SourceSpec, path: Path, rows: Any, types: dict[str, Any]
) -> Any:
    # One object is one row.
    rows = [rows] if isinstance(rows, dict) else rows
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise DataError("holds no row", where=str(path), expected='{"column": value, ...}')
    # Texts of a CSV file are trimmed, and some stand for no value.
    form = source.table_file.csv
    missing = {*source.table_file.missing, *([""] if form else [])}

    def clean(value: Any) -> Any:
        value = value.strip() if form and isinstance(value, str) else value
        return None if isinstance(value, str) and value in missing else value

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    # Each column as its type in the source, nothing guessed from a single row.
    for name in names:
        values = [clean(row.get(name)) for row in rows]
        nested = next((value for value in values if isinstance(value, list | dict)), None)
        if nested is not None:
            raise DataError(
                f"{nested!r:.60} in column {name!r}",
                where=str(path),
                expected="a number, a text, true, false or null",
            )
        number = types.get(name) == pa.float64()
        columns[name] = _numbers(values, spec) if number else _texts(values)
    return pa.table(columns)


def _numbers(values: list[Any], spec: SourceSpec) -> Any:
    """Numbers; as texts if one of them is written as text, which is parsed later."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        value = value.strip()
        return None if value in NULL_WORDS else value.replace(spec.decimal, ".")

    parsed = [parse(value) for value in values]
    if any(isinstance(value, str) for value in parsed):
        return pa.array([None if v is None else str(v) for v in parsed], pa.string())
    return pa.array([None if v is None else float(v) for v in parsed], pa.float64())


def _texts(values: list[Any]) -> Any:
    """Texts; numbers and booleans are spelled as Arrow spells them."""
    spell: dict[type, Callable[[Any], str]] = {
        bool: lambda value: str(value).lower(),
        int: str,
        float: lambda value: str(pa.scalar(value).cast(pa.string()).as_py()),
    }
    return pa.array([v if v is None else spell.get(type(v), str)(v) for v in values], pa.string())


def _blank_null_words(source: TableSource, spec: SourceSpec, table: Any) -> Any:
    """Table with nulls for NA and its like in text columns that otherwise hold numbers."""
    if source.table_file.csv is None:
        return table
    categories = {c.name: c.categories for c in source.columns if c.kind == "categorical"}
    if spec.label:
        categories[spec.label] = source.label_values
    for index, name in enumerate(table.column_names):
        words = null_words(categories.get(name, ()))
        column = table.column(index)
        if words and pa.types.is_string(column.type):
            blank = pc.is_in(column, value_set=pa.array(words, pa.string()))
            column = pc.if_else(blank, pa.scalar(None, pa.string()), column)
            table = table.set_column(index, name, column)
    return table
