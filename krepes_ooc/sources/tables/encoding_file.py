"""The file of a table encoding: versioned JSON, written by ``krepes encode`` and ``pretrain``."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.tables.arrow_columns import MISSING
from krepes_ooc.sources.tables.table_encoding import FORMAT, VERSION, EncodedColumn, TableEncoding

MAX_BYTES = 64 * 2**20
EXPECTED = "a table encoding as krepes encode writes it"
_KEYS = {
    "numeric": {"name", "kind", "mean", "scale", "fill"},
    "categorical": {"name", "kind", "categories", "dropped"},
}


def encoding_bytes(encoding: TableEncoding) -> bytes:
    """The bytes of the file, one column after the other."""
    mapping = encoding.to_mapping()
    # Numbers are written with all their digits: they are read back as the same float64.
    columns = [json.dumps(column, ensure_ascii=False) for column in mapping.pop("columns")]
    head = json.dumps(mapping, ensure_ascii=False)[:-1]
    return (head + ', "columns": [\n' + ",\n".join(columns) + "\n]}\n").encode()


def read_encoding(path: Path) -> TableEncoding:
    """The encoding that a file states.

    Categories may be texts, whole numbers, booleans, or null for a missing one.

    Raises:
        SourceError: the file cannot be read, is damaged, no encoding, of a later version, or states
            what cannot be: a number that is not finite, a negative scale, a name twice.
    """
    where = str(path)
    document = _load(path)
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise SourceError("is no table encoding", where=where, expected=EXPECTED)
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        newer = isinstance(version, int) and version > VERSION
        raise SourceError(
            f"version {version!r} of a table encoding",
            where=where,
            expected=f"version {VERSION}",
            advice="read it with the krepes that wrote it" if newer else "write it again",
        )
    _check_keys(document, {"format", "version", "columns"}, where)
    entries = document.get("columns")
    if not isinstance(entries, list) or not entries:
        raise SourceError("'columns' is no list of columns", where=where, expected=EXPECTED)
    columns = tuple(_column(entry, i, where) for i, entry in enumerate(entries))
    _check_unique([column.name for column in columns], "two columns are named", where)
    return TableEncoding(columns)


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES // 2**20} MiB")
        return json.loads(data.decode("utf-8"))
    except OSError as error:
        raise unreadable(path, error, source=True) from error
    except (ValueError, RecursionError) as error:
        # Weights, pickles, and a file that was cut short.
        raise SourceError(f"is no JSON: {error}", where=str(path), expected=EXPECTED) from error


def _column(entry: Any, index: int, where: str) -> EncodedColumn:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise SourceError(
            f"column {index} (from 0) has no name", where=where, expected='{"name": TEXT, ...}'
        )
    name = entry["name"]
    where = f"{where}, column {name!r}"
    kind = entry.get("kind")
    if kind == "numeric":
        _check_keys(entry, _KEYS["numeric"], where)
        fill = entry.get("fill")
        scale = _number(entry, "scale", where)
        if scale < 0:
            raise SourceError(f"scale {scale:g}", where=where, expected="0 or more")
        mean = _number(entry, "mean", where)
        filled = None if fill is None else _number(entry, "fill", where)
        return EncodedColumn(name, "numeric", mean, scale, filled)
    if kind == "categorical":
        _check_keys(entry, _KEYS["categorical"], where)
        categories = _texts(entry, "categories", where)
        dropped = _texts(entry, "dropped", where) if "dropped" in entry else ()
        if not categories and not dropped:
            raise SourceError("no categories", where=where, expected="one or more")
        _check_unique([*categories, *dropped], "two categories are named", where)
        return EncodedColumn(name, "categorical", categories=categories, dropped=dropped)
    raise SourceError(f"kind {kind!r}", where=where, expected="numeric or categorical")


def _check_keys(entry: Mapping[str, Any], known: set[str], where: str) -> None:
    # A key that is silently ignored would be taken for one that works.
    unknown = sorted(set(entry) - known)
    if unknown:
        expected = "only " + ", ".join(sorted(known))
        raise SourceError(f"unknown key {unknown[0]!r}", where=where, expected=expected)


def _check_unique(names: list[str], what: str, where: str) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise SourceError(f"{what} {twice[0]!r}", where=where, expected="different names")


def _number(entry: Mapping[str, Any], key: str, where: str) -> float:
    value = entry.get(key)
    try:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        shown = "is missing" if key not in entry else f"is {value!r}"
        raise SourceError(f"{key} {shown}", where=where, expected="a finite number") from None
    return number


def _texts(entry: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = entry.get(key)
    if not isinstance(values, list):
        raise SourceError(f"{key} is no list", where=where, expected="a list of categories")
    return tuple(_text(value, where) for value in values)


def _text(value: Any, where: str) -> str:
    """A category as tables spell it."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | str):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise SourceError(
        f"category {value!r}", where=where, expected="a text, a number, true, false or null"
    )
