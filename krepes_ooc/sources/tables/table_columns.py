"""Columns of a table that are read, with their kinds; indices of data frames are left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pyarrow as pa

from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import ColumnKind, SourceSpec
from krepes_ooc.sources.pictures.parquet_pictures import holds_bytes
from krepes_ooc.sources.tables.arrow_columns import is_temporal, kind_of
from krepes_ooc.sources.tables.table_scan import TableColumns

# Names that pandas gives to indices in Parquet files, and to CSV columns without a name.
_INDEX = re.compile(r"__index_level_\d+__")
_NAMELESS = re.compile(r"|Unnamed: \d+")
_LISTS = ("exclude", "audit_only", "categorical", "numeric")


def resolve_columns(
    spec: SourceSpec, schema: Any, rows: int, where: str, charset: str = ""
) -> TableColumns:
    """Columns to read, with their kinds.

    Args:
        spec: the declared source.
        schema: Arrow schema of the table.
        rows: rows that are used.
        where: the user's file, for messages.
        charset: character encoding of a CSV file, in which bytes are texts that it cannot decode.

    Raises:
        SourceError: no rows, no such column, or a column of a type that cannot be used.
    """
    _check_names(spec, schema.names, where)
    if not rows:
        raise SourceError("no rows", where=where, expected="at least one row")
    beside = {name for name in (spec.label, spec.name) if name}
    # The label and the name are read beside the columns; audit_only brings them back as columns.
    hidden = {*beside, *spec.exclude} - set(spec.audit_only)
    for name in beside:
        _check_type(schema.field(name), "label" if name == spec.label else "name", where, charset)
    declared = {*beside, *(name for key in _LISTS for name in getattr(spec, key))}
    indices = _frame_indices(schema) - declared
    kinds = []
    for name in schema.names:
        if name in hidden or name in indices:
            continue
        # The recipe overrides the kind that the file suggests.
        if name in spec.categorical:
            _check_type(schema.field(name), "categorical", where, charset)
            kind: ColumnKind = "categorical"
        else:
            suggested = _check_type(schema.field(name), "", where, charset)
            kind = "numeric" if name in spec.numeric else suggested
        kinds.append((name, kind, name not in {*spec.audit_only, *spec.exclude, *beside}))
    if not any(shown for _, _, shown in kinds):
        raise SourceError("no column is left for the network", where=where, expected="one or more")
    warnings = tuple(
        f"column {name!r} is left out as {'a column without a name' if not name else 'an index'}: "
        "to use it, list it under source.numeric, categorical or audit_only"
        for name in schema.names
        if name in indices
    )
    stated = frozenset((*spec.categorical, *spec.numeric))
    return TableColumns(tuple(kinds), spec.label, rows, stated, warnings)


def _frame_indices(schema: Any) -> set[str]:
    """Columns that were indices of a data frame: pandas says so, or they have no name."""
    found = {n for n in schema.names if _INDEX.fullmatch(n) or _NAMELESS.fullmatch(n)}
    try:
        stated = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        # A range that is not stored is a mapping, a stored index a name.
        found |= {name for name in stated if isinstance(name, str)}
    except (KeyError, TypeError, ValueError):
        pass
    return found & set(schema.names)


def _check_type(field: Any, key: str, where: str, charset: str) -> ColumnKind:
    """Kind of a column by its Arrow type.

    Args:
        field: name and type.
        key: recipe key that declares the column as text, or "".
        where: the file.
        charset: character encoding of a CSV file.

    Raises:
        SourceError: the type cannot be used.
    """
    kind = kind_of(field.type)
    # Dates and times can be taken as they are written, not as numbers.
    if kind is None and key and is_temporal(field.type):
        kind = "categorical"
    if kind is not None:
        return kind
    stated = f" (source.{key})" if key else ""
    if charset and pa.types.is_binary(field.type):
        raise SourceError(
            f"column {field.name!r}{stated} holds bytes that are not {charset}",
            where=where,
            expected=f"text in {charset}",
            advice="set source.charset to the encoding of the file, such as latin-1 or cp1252",
        )
    advice = "list it under source.exclude or convert it"
    if holds_bytes(field.type):
        advice += f"; if it holds pictures, set source.kind: images and source.key: {field.name}"
    if is_temporal(field.type):
        advice = "list it under source.categorical or exclude, or convert it to numbers"
    raise SourceError(
        f"column {field.name!r}{stated} has type {field.type}",
        where=where,
        expected="numbers, text or true/false",
        advice="convert it" if key in ("label", "name") else advice,
    )


def _check_names(spec: SourceSpec, names: list[str], where: str) -> None:
    # Columns are looked up by name.
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise SourceError(
            f"two columns are named {twice[0]!r}", where=where, expected="unique names"
        )
    # A misspelled column name must not be ignored.
    for key in ("label", "name", *_LISTS):
        value = getattr(spec, key)
        for name in [value] * bool(value) if isinstance(value, str) else value:
            if name not in names:
                raise SourceError(
                    f"no column {name!r} (source.{key})",
                    where=where,
                    expected="one of " + ", ".join(map(repr, names)),
                )
    both = sorted(set(spec.categorical) & set(spec.numeric))
    if both:
        raise SourceError(f"column {both[0]!r} is both categorical and numeric", where=where)
