"""Decoding of Arrow columns into numbers, text or codes; errors name row and column."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from krepes_ooc.errors import DataError
from krepes_ooc.sources.base import ColumnKind, Float64

MISSING = "(missing)"


def kind_of(arrow_type: Any) -> ColumnKind | None:
    """Default kind of a column of this Arrow type; None if it cannot be used."""
    if pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type):
        return "numeric"
    if pa.types.is_decimal(arrow_type):
        return "numeric"
    if pa.types.is_dictionary(arrow_type):
        return "categorical" if kind_of(arrow_type.value_type) else None
    if _is_text(arrow_type) or pa.types.is_boolean(arrow_type) or pa.types.is_null(arrow_type):
        return "categorical"
    return None


def is_number(arrow_type: Any) -> bool:
    """Whether categories of this column are sorted as numbers."""
    if pa.types.is_dictionary(arrow_type):
        return is_number(arrow_type.value_type)
    return kind_of(arrow_type) == "numeric"


def is_temporal(arrow_type: Any) -> bool:
    """Whether a column holds dates or times, which can be read as text."""
    return bool(pa.types.is_temporal(arrow_type) and not pa.types.is_duration(arrow_type))


def blank_missing(table: Any, missing: tuple[str, ...]) -> Any:
    """Arrow table with nulls in place of texts, and of numbers, that stand for no value."""
    if not missing:
        return table
    texts = pa.array(missing, pa.string())
    numbers = pa.array([number for number in map(_parse, missing) if np.isfinite(number)])
    for index, name in enumerate(table.column_names):
        column = table.column(index)
        # Dictionary-encoded values behave like the values themselves.
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if _is_text(column.type):
            blank = pc.is_in(column.cast(pa.string()), value_set=texts)
        elif is_number(column.type) and len(numbers):
            blank = pc.is_in(column.cast(pa.float64(), safe=False), value_set=numbers)
        else:
            continue
        column = pc.if_else(blank, pa.scalar(None, column.type), column)
        table = table.set_column(index, name, column)
    return table


def to_numbers(
    values: Any, name: str, first_row: int, where: str, *, keep_missing: bool = False
) -> Float64:
    """Finite float64 numbers [sample] of an Arrow column.

    Args:
        values: the Arrow array.
        name: its column, for the message.
        first_row: position of its first row, for the message.
        where: its file, for the message.
        keep_missing: null and NaN become NaN and are not refused.

    Raises:
        DataError: an entry is missing, NaN, infinite or no number; row and column are named.
    """
    # Dictionary-encoded values behave like the values themselves.
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    try:
        # Integers beyond 2**53 lose their last digits, as every float64 column does.
        numbers = np.asarray(values.cast(pa.float64(), safe=False), dtype=np.float64)
    except pa.ArrowInvalid:
        # Text declared as numbers: parse each entry, so that the bad one can be named.
        numbers = np.asarray([_parse(text) for text in values.to_pylist()], dtype=np.float64)
    # A float cast turns null into NaN: one test finds missing, NaN and infinite entries.
    refused = ~np.isfinite(numbers)
    if keep_missing:
        # Text that is no number is NaN as well, and no missing value.
        refused &= ~np.asarray(pc.is_null(values, nan_is_null=True), dtype=bool)
        numbers = np.where(np.isnan(numbers), np.nan, numbers)
    bad = np.flatnonzero(refused)
    if bad.size:
        entry = values[int(bad[0])].as_py()
        raise DataError(
            f"{'a missing value' if entry is None else repr(entry)} in a numeric column",
            where=f"{where}, row {first_row + int(bad[0])} (from 0), column {name!r}",
            expected="a finite number",
            advice="repair the row, or list the column under categorical or exclude",
        )
    return numbers


def to_text(values: Any) -> Any:
    """Arrow column as text without nulls; null and NaN become ``(missing)``.

    Raises:
        ArrowInvalid: bytes that are not UTF-8.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    # Categories that are numbers: NaN is one more way to say "missing".
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return pc.fill_null(values.cast(pa.string()), MISSING)


def to_codes(
    values: Any, categories: Any, null_words: tuple[str, ...] = ()
) -> npt.NDArray[np.int64]:
    """Index of each entry in ``categories``; -1 where there is none.

    Args:
        values: the Arrow array.
        categories: names of the codes 0, 1, ..., an Arrow text array.
        null_words: texts that, where they are no category, are as good as missing.
    """
    text = to_text(values)
    codes = np.array(pc.fill_null(pc.index_in(text, value_set=categories), -1), dtype=np.int64)
    missing = pc.index(categories, MISSING).as_py()
    unknown = np.flatnonzero(codes < 0)
    if unknown.size and null_words and missing >= 0:
        words = pa.array(null_words, pa.string())
        blank = np.asarray(pc.is_in(text.take(pa.array(unknown)), value_set=words))
        codes[unknown[blank]] = missing
    return codes


def _is_text(arrow_type: Any) -> bool:
    # Older releases of pyarrow have no string views.
    is_view = getattr(pa.types, "is_string_view", lambda _: False)
    return bool(
        pa.types.is_string(arrow_type)
        or pa.types.is_large_string(arrow_type)
        or is_view(arrow_type)
    )


def _parse(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")
