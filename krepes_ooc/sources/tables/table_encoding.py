"""Encoding of table rows for a network: means, scales, categories and their order.

The inputs of a row are those of its columns, one after the other, in the order of the encoding:

    number x        (x - mean) / scale; a missing one is replaced by the column's fill
    category        one-hot over the column's categories; a dropped one and an unseen one are zeros

These are the conventions of StandardScaler and OneHotEncoder of scikit-learn, so that an encoding
can be written from a fitted pipeline. An encoding belongs to the network: learned from the table
that it was trained on, it is applied to every table that is audited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import canonical_digest
from krepes_ooc.sources.base import Column, ColumnKind, Float32, Int64

FORMAT = "krepes table encoding"
VERSION = 1


@dataclass(frozen=True)
class EncodedColumn:
    """One column of an encoding.

    Args:
        name: the column's name in tables.
        kind: numeric or categorical.
        mean: subtracted from a number.
        scale: divides a number after that; 0, of a column that was constant, divides by 1.
        fill: replaces a missing number; None: a missing number is refused.
        categories: one input each, in order.
        dropped: further categories that are known and encoded as zeros (a reference level).
    """

    name: str
    kind: ColumnKind
    mean: float = 0.0
    scale: float = 1.0
    fill: float | None = None
    categories: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of inputs."""
        return 1 if self.kind == "numeric" else len(self.categories)

    def to_mapping(self) -> dict[str, Any]:
        """The column as the file states it."""
        if self.kind == "numeric":
            numbers = {"mean": self.mean, "scale": self.scale, "fill": self.fill}
            return {"name": self.name, "kind": self.kind, **numbers}
        listed = {"name": self.name, "kind": self.kind, "categories": list(self.categories)}
        return listed | ({"dropped": list(self.dropped)} if self.dropped else {})


@dataclass(frozen=True)
class TableEncoding:
    """Columns of a table in the order of the network's inputs."""

    columns: tuple[EncodedColumn, ...]

    @property
    def width(self) -> int:
        """Number of inputs of the network."""
        return sum(column.width for column in self.columns)

    @property
    def layout(self) -> str:
        """The inputs in words: ``101 = 6 numbers + 95 one-hot of 8 columns``."""
        numbers = sum(column.kind == "numeric" for column in self.columns)
        categorical = len(self.columns) - numbers
        parts = [f"{numbers} number{'s' * (numbers != 1)}"] if numbers else []
        if categorical:
            plural = "s" * (categorical != 1)
            parts.append(f"{self.width - numbers} one-hot of {categorical} column{plural}")
        return f"{self.width:,} = {' + '.join(parts)}"

    @property
    def digest(self) -> str:
        """sha256 of the content; white space and the order of keys in a file do not matter."""
        return canonical_digest(self.to_mapping())

    def to_mapping(self) -> dict[str, Any]:
        """The encoding as the file states it."""
        columns = [column.to_mapping() for column in self.columns]
        return {"format": FORMAT, "version": VERSION, "columns": columns}


def learn_encoding(columns: Sequence[Column]) -> TableEncoding:
    """Encoding of the scanned columns that the network sees: numbers first, then categories.

    A number is standardised by the mean and the population standard deviation of its column, and
    filled with the mean.
    """
    shown = [column for column in columns if column.shown]
    numbers = [
        EncodedColumn(c.name, "numeric", c.mean, c.std, c.mean)
        for c in shown
        if c.kind == "numeric"
    ]
    categorical = [
        EncodedColumn(c.name, "categorical", categories=c.categories)
        for c in shown
        if c.kind == "categorical"
    ]
    return TableEncoding((*numbers, *categorical))


class RowEncoder:
    """Network inputs of raw rows, by an encoding whose columns the table has.

    Args:
        encoding: means, scales and categories.
        columns: of the table; a categorical one begins with what ``merge_categories`` gave.
        fills: whether missing numbers get their fill; else they stay NaN.
        zeros: whether a code of no category is encoded as zeros; else its inputs are NaN.
    """

    def __init__(
        self,
        encoding: TableEncoding,
        columns: Sequence[Column],
        *,
        fills: bool = False,
        zeros: bool = False,
    ) -> None:
        self._fills = fills
        self._zeros = zeros
        place = {column.name: index for index, column in enumerate(columns)}
        self.width = encoding.width
        self._numbers: list[tuple[int, int, EncodedColumn]] = []
        self._categorical: list[tuple[int, int, Int64]] = []
        first = 0
        for column in encoding.columns:
            index = place[column.name]
            if column.kind == "numeric":
                self._numbers.append((first, index, column))
            else:
                # Input of each code; -1 for dropped and unseen ones, last for no category.
                inputs = np.full(len(columns[index].categories) + 1, -1, dtype=np.int64)
                inputs[: column.width] = np.arange(first, first + column.width)
                self._categorical.append((index, first, inputs))
            first += column.width

    def __call__(self, raw: npt.NDArray[Any]) -> Float32:
        """Inputs float32 [sample, input] of raw rows [sample, column].

        What has no encoding becomes NaN, which is refused wherever inputs are checked.
        """
        raw = np.asarray(raw, dtype=np.float64)
        encoded = np.zeros((raw.shape[0], self.width), dtype=np.float32)
        for entry, index, column in self._numbers:
            values = raw[:, index]
            if self._fills and column.fill is not None:
                values = np.where(np.isnan(values), column.fill, values)
            # What float32 cannot hold becomes infinite, and is refused with its sample.
            with np.errstate(over="ignore"):
                encoded[:, entry] = (values - column.mean) / (column.scale or 1.0)
        # One-hot: one 1 in the input of the code.
        rows = np.arange(raw.shape[0])
        for index, first, inputs in self._categorical:
            nameless = ~((raw[:, index] >= 0) & (raw[:, index] < len(inputs) - 1))
            entries = inputs[np.where(nameless, -1, raw[:, index]).astype(np.int64)]
            encoded[rows[entries >= 0], entries[entries >= 0]] = 1.0
            if not self._zeros and nameless.any():
                encoded[nameless, first] = np.nan
        return encoded


def merge_categories(column: EncodedColumn, found: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Categories of a table's column, those of the encoding first.

    Args:
        column: of the encoding.
        found: categories in the table.

    Returns:
        The encoding's categories in its order, then the dropped ones, each spelled as the table
        does, then the unseen ones; and the number of known ones.
    """
    known = dict.fromkeys((*column.categories, *column.dropped), "")
    known |= {name: name for name in found if name in known}
    unseen = []
    for name in found:
        # Another spelling of a known category that the table does not spell exactly.
        same = [variant for variant in _spellings(name) if known.get(variant) == ""]
        if name in known:
            continue
        if same:
            known[same[0]] = name
        else:
            unseen.append(name)
    return (*(spelled or name for name, spelled in known.items()), *unseen), len(known)


def _spellings(name: str) -> list[str]:
    """Other spellings of a whole number or a boolean."""
    lower = name.lower()
    if lower in ("true", "false"):
        # pandas and Python: True, Arrow: true.
        return [lower, lower.capitalize(), lower.upper()]
    # A column of whole numbers with gaps is stored as floats: 1 and 1.0.
    return [name.removesuffix(".0") if name.endswith(".0") else f"{name}.0"]
