"""Words for codes in tables: ``source.decode`` of columns and ``source.classes`` of labels.

Words are for people. Codes that are read, stored and shown to the network stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import Column, Int64, SourceSpec


def check_decode(spec: SourceSpec, names: Sequence[str], where: str) -> None:
    """Refuse words for columns that the table does not have, and words that are no texts.

    Raises:
        SourceError: naming the key.
    """
    for name, words in spec.decode.items():
        key = f"source.decode.{name}"
        if name not in names:
            raise SourceError(
                f"no column {name!r} (source.decode)",
                where=where,
                expected="one of " + ", ".join(map(repr, names)),
            )
        if not isinstance(words, Mapping) or not words:
            raise SourceError(f"{words!r} is no mapping", where=key, expected="{1: red, 2: blue}")
        for code, word in words.items():
            if isinstance(word, Mapping | list) or word is None:
                raise SourceError(f"{word!r} for code {code}", where=key, expected="a word")
        texts = [str(word) for word in words.values()]
        twice = [text for text in texts if texts.count(text) > 1]
        if twice:
            # Two groups of one name could not be told apart.
            raise SourceError(
                f"two codes are called {twice[0]!r}", where=key, expected="different words"
            )
    if spec.classes and not spec.label:
        raise SourceError(
            "classes name labels, and there is no label",
            where="source.classes",
            expected="source.label, the column of labels",
        )
    if spec.classes and spec.label in spec.decode:
        raise SourceError(
            f"classes and decode.{spec.label} both name the labels",
            where="source",
            expected="one of them",
        )


def decode_columns(
    spec: SourceSpec, columns: Sequence[Column]
) -> tuple[tuple[Column, ...], list[str]]:
    """Columns with their words, and warnings about codes that have none.

    Raises:
        SourceError: a code that is no number, of a column of numbers.
    """
    decoded = []
    warnings = []
    for column in columns:
        given = spec.decode.get(column.name, {})
        texts = [code for code in given if number_of(code) is None]
        if texts and column.kind == "numeric":
            raise SourceError(
                f"code {texts[0]!r} for the numbers of column {column.name!r}",
                where=f"source.decode.{column.name}",
                expected="numbers as codes, or the column under source.categorical",
            )
        words = _words(given, column)
        decoded.append(replace(column, words=tuple(words.items())))
        wordless = [c for c in column.categories if words and c not in words]
        if wordless:
            warnings.append(_wordless(column.name, wordless))
    return tuple(decoded), warnings


def _wordless(name: str, codes: Sequence[str]) -> str:
    more = f" and {len(codes) - 3} more" if len(codes) > 3 else ""
    return f"column {name!r}: source.decode has no word for {', '.join(codes[:3])}{more}"


def _words(given: Mapping[str, Any], column: Column) -> dict[str, str]:
    """Words by code, each code as the column spells it."""
    if column.kind == "numeric":
        return {code: str(word) for code, word in given.items()}
    words = {}
    for category in column.categories:
        word = find_word(given, category)
        if word is not None:
            words[category] = word
    return words


def find_word(given: Mapping[str, Any], code: str) -> str | None:
    """The word for a code: of the same spelling, the same number, or the same boolean."""
    if code in given:
        return str(given[code])
    number = number_of(code)
    for other, word in given.items():
        same = number is not None and number == number_of(other)
        # YAML's true arrives as True.
        if same or (code in ("true", "false") and other.lower() == code):
            return str(word)
    return None


def number_of(code: str) -> float | None:
    """A code as a number, or None; codes with leading zeros are texts."""
    try:
        number = float(code)
    except ValueError:
        return None
    digits = code.lstrip("+-")
    leading = len(digits) > 1 and digits[0] == "0" and digits[1] not in ".eE"
    return None if leading or not np.isfinite(number) else number


def decode_classes(
    spec: SourceSpec, found: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], Int64]:
    """Class names as people see them.

    Args:
        spec: the declared source.
        found: label values in the table, sorted.
        where: the table, for messages.

    Returns:
        Names of the classes, and the class code of every label value.

    Raises:
        SourceError: a label value without a class, or a class twice.
    """
    codes = np.arange(len(found), dtype=np.int64)
    if spec.classes:
        return spec.classes, _class_codes(spec.classes, found, where)
    words = spec.decode.get(spec.label, {})
    names = tuple(find_word(words, value) or value for value in found)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(
            f"two labels are called {twice!r}", where=where, expected="different words"
        )
    return names, codes


def _class_codes(classes: tuple[str, ...], found: tuple[str, ...], where: str) -> Int64:
    """Index into ``classes`` of each label value: its name, or the whole numbers 0, 1, 2 ..."""
    if len(set(classes)) < len(classes):
        raise SourceError(
            "source.classes names a class twice", where=where, expected="different names"
        )
    if set(found) <= set(classes):
        return np.asarray([classes.index(value) for value in found], dtype=np.int64)
    booleans = {"false": 0.0, "true": 1.0}
    codes = []
    for value in found:
        number = booleans.get(value.lower(), number_of(value))
        if number is None or number not in range(len(classes)):
            raise SourceError(
                f"label {value!r} has no name",
                where=where,
                expected=f"labels from 0 to {len(classes) - 1}, as many as source.classes names, "
                "or these names",
            )
        codes.append(int(number))
    return np.asarray(codes, dtype=np.int64)
