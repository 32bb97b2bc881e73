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
    """Arrow column as text without nulls; null and NaN become ``(missing)``."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    # Categories that are numbers: NaN is one more way to say "missing".
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return pc.fill_null(values.cast(pa.string()), MISSING)


def to_codes(values: Any, categories: Any) -> npt.NDArray[np.int64]:
    """Index of each entry in ``categories``, an Arrow text array; -1 where there is none."""
    codes = pc.fill_null(pc.index_in(to_text(values), value_set=categories), -1)
    return np.asarray(codes, dtype=np.int64)


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
