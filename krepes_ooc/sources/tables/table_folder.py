"""Folders of tables: part files, and hive folders whose names key=value are columns."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from krepes_ooc.core.digests import canonical_digest, stat_signature
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import SourceSpec, locate
from krepes_ooc.sources.cache import find_cached
from krepes_ooc.sources.tables.arrow_columns import is_number
from krepes_ooc.sources.tables.parquet import (
    RowGroupScan,
    TableFile,
    as_parquet,
    changed_table,
    find_converted,
    table_format,
    write_parquet,
)

FOLDER_VERSION = 1
# Apache Hive writes this folder for rows without a value.
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True)
class TablePart:
    """One file of a folder.

    Args:
        path: the file.
        name: its path inside the folder.
        values: (column, value) of the folders it lies in; None for no value.
    """

    path: Path
    name: str
    values: tuple[tuple[str, str | None], ...]


def locate_table(path: str, base: Path) -> Path:
    """The file or folder that a recipe names as a table.

    Raises:
        SourceError: the key is empty, or there is neither.
    """
    is_folder = bool(path) and (base / Path(path).expanduser()).is_dir()
    return locate(path, base, folder=is_folder)


def open_parts(
    path: Path, spec: SourceSpec, cache: Path, scan: RowGroupScan | None = None
) -> tuple[str, TableFile, list[str]]:
    """A table as a Parquet file, with its sha256 and lines about what a folder holds.

    Args:
        path: a file, or a folder of files of one format.
        spec: the declared source.
        cache: folder for converted files.
        scan: sees the rows of a single CSV file that is converted.

    Raises:
        SourceError: a file that cannot be read, no table in the folder, or files that differ in
            format, columns or types.
        DataError: a file changed while it was read.
    """
    if not path.is_dir():
        return *as_parquet(path, spec, cache, scan), []
    parts, left_out = _list_parts(path)
    signatures = [stat_signature(part.path) for part in parts]
    opened = [as_parquet(part.path, spec, cache) for part in parts]
    files = [file for _, file in opened]
    sha256 = canonical_digest(
        [(part.name, digest) for part, (digest, _) in zip(parts, opened, strict=True)]
    )
    texts = {spec.label, spec.name, *spec.categorical}
    # Each part has its own name in the cache, by its content and options.
    key = [FOLDER_VERSION, sha256, [file.path.name for file in files], sorted(texts)]
    target = cache / f"rows-{canonical_digest(key)[:16]}.parquet"
    cached = find_converted(target)

    def named() -> Path:
        for part, signature in zip(parts, signatures, strict=True):
            if stat_signature(part.path) != signature:
                raise changed_table(part.path)
        return target

    if cached is None:
        schema = _common_schema(path, parts, files)
        columns = _folder_columns(path, parts, schema, texts)
        try:
            write_parquet(_batches(parts, files, schema, columns), path, target, named)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"cannot be brought together in the cache: {' '.join(str(error).split())}",
                where=str(path),
                expected="files of one table and a writable workspace",
            ) from error
        cached = find_cached(target)
    return sha256, replace(files[0], path=target, cached=cached), _notes(parts, left_out)


def _list_parts(folder: Path) -> tuple[list[TablePart], Counter[str]]:
    """Files of tables in the order of their names, and what else there is, by suffix.

    Raises:
        SourceError: no table, several formats, or folders with other keys.
    """
    parts: list[TablePart] = []
    left_out: Counter[str] = Counter()
    formats: dict[str, str] = {}
    for name in sorted(_walk(folder)):
        path = folder / name
        try:
            formats.setdefault(table_format(path), name)
        except SourceError:
            left_out[path.suffix or "no suffix"] += 1
            continue
        parts.append(TablePart(path, name, _folder_values(name)))
    if not parts:
        raise SourceError(
            "no table in this folder",
            where=str(folder),
            expected="files named .parquet, .csv, .tsv, .arrow or .feather",
        )
    if len(formats) > 1:
        raise SourceError(
            f"several formats: {' and '.join(formats.values())}",
            where=str(folder),
            expected="files of one format",
        )
    for part in parts:
        keys = [[key for key, _ in p.values] for p in (parts[0], part)]
        if keys[0] != keys[1]:
            raise SourceError(
                f"{parts[0].name} lies in folders of {keys[0]}, {part.name} in those of {keys[1]}",
                where=str(folder),
                expected="the same key=value folders around every file",
            )
    return parts, left_out


def _walk(folder: Path) -> Iterator[str]:
    """Paths of files inside a folder; links are followed once, hidden names skipped."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        # Names with a dot or an underscore in front are notes of the writing program.
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [n for n in folders if n[0] not in "._"]
        files = [] if real in seen else files
        seen.add(real)
        for name in files:
            if name[0] not in "._":
                yield (Path(root) / name).relative_to(folder).as_posix()


def _folder_values(name: str) -> tuple[tuple[str, str | None], ...]:
    values = []
    for part in PurePosixPath(name).parts[:-1]:
        key, sign, value = part.partition("=")
        if sign and key:
            values.append((unquote(key), None if value == NO_VALUE else unquote(value)))
    return tuple(values)


def _common_schema(folder: Path, parts: list[TablePart], files: list[TableFile]) -> Any:
    """Schema of all files, in the order of columns of the first.

    Raises:
        SourceError: a file lacks a column, has another one or another type.
    """
    common: Any = None
    for part, table in zip(parts, files, strict=True):
        with table.open() as file:
            schema = file.schema_arrow
        common = common or schema
        if other := sorted(set(common.names) ^ set(schema.names)):
            raise SourceError(
                f"{parts[0].name} and {part.name}: only one of them has the column {other[0]!r}",
                where=str(folder),
                expected="files with the same columns",
            )
        for index, field in enumerate(common):
            kind = _common_type(field.type, schema.field(field.name).type)
            if kind is None:
                raise SourceError(
                    f"column {field.name!r} is {field.type} in {parts[0].name}, "
                    f"{schema.field(field.name).type} in {part.name}",
                    where=str(folder),
                    expected="one type in all files",
                    advice="list it under source.categorical if it is text in a CSV file",
                )
            common = common.set(index, field.with_type(kind))
    return common


def _common_type(one: Any, other: Any) -> Any:
    """The wider of two Arrow types, or None: numbers and texts do not mix."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if is_number(one) and is_number(other):
        both_whole = pa.types.is_integer(one) and pa.types.is_integer(other)
        return pa.int64() if both_whole else pa.float64()
    plain = [t.value_type if pa.types.is_dictionary(t) else t for t in (one, other)]
    texts = all(pa.types.is_string(t) or pa.types.is_large_string(t) for t in plain)
    return pa.string() if texts else None


def _folder_columns(
    folder: Path, parts: list[TablePart], schema: Any, texts: set[str]
) -> dict[str, Any]:
    """Arrow types of the columns that the folders name: whole numbers, or text.

    Raises:
        SourceError: a column is in the files as well.
    """
    columns: dict[str, Any] = {}
    for index, (key, _) in enumerate(parts[0].values):
        if key in schema.names or key in columns:
            raise SourceError(
                f"column {key!r} is in the files and in the names of folders",
                where=str(folder),
                expected="each column once",
            )
        values = [part.values[index][1] for part in parts]
        whole = all(value is None or _WHOLE.fullmatch(value) for value in values)
        columns[key] = pa.int64() if whole and key not in texts else pa.string()
    return columns


def _batches(
    parts: list[TablePart], files: list[TableFile], schema: Any, columns: dict[str, Any]
) -> Iterator[Any]:
    """Record batches of all files, with the columns that the folders name behind the others."""
    for key, kind in columns.items():
        schema = schema.append(pa.field(key, kind))
    for part, table in zip(parts, files, strict=True):
        with table.open() as file:
            for group in range(file.metadata.num_row_groups):
                rows = table.read(file, group, [n for n in schema.names if n not in columns])
                for key, value in part.values:
                    whole = pa.types.is_integer(columns[key])
                    held = int(value) if whole and value is not None else value
                    rows = rows.append_column(key, pa.array([held] * len(rows), columns[key]))
                yield from rows.select(schema.names).cast(schema).to_batches()


def _notes(parts: list[TablePart], left_out: Counter[str]) -> list[str]:
    notes = []
    # Folders that name no column may still mean something to their owner.
    plain = {
        folder
        for part in parts
        for folder in PurePosixPath(part.name).parts[:-1]
        if "=" not in folder
    }
    if plain:
        notes.append(
            f"the names of {len(plain)} folders, such as {min(plain)!r}, are no column: "
            "expected key=value"
        )
    if left_out:
        counts = ", ".join(f"{suffix} {count:,}" for suffix, count in sorted(left_out.items()))
        notes.append(f"{sum(left_out.values()):,} other files are left out: {counts}")
    return notes
