"""Table columns whose values differ between the samples of a concept and all samples.

    numeric column       (mean of the concept - mean of all) / deviation of all
    level of a category  (share in the concept - share in all) / sqrt(share (1 - share))

so that both are differences in standard deviations; a categorical column is told by the level that
differs most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Deviations below this share of the largest value are rounding: the column is constant.
CONSTANT = 1e-9


@dataclass(frozen=True)
class ColumnCodes:
    """Columns as sums see them.

    Args:
        levels: levels of every column; 0: a number [column].
        shift: value that numbers are summed about [column].
    """

    levels: tuple[int, ...]
    shift: tuple[float, ...]

    @property
    def first(self) -> Index:
        """Place of each column's first level among all levels [column + 1]."""
        return np.concatenate([[0], np.cumsum(self.levels)]).astype(np.int64)


@dataclass
class ColumnSums:
    """Sums over the samples of every concept.

    Args:
        known: samples with a value [concept, column].
        total: of the numbers about the shift [concept, column].
        square: of their squares [concept, column].
        level: samples of every level [concept, level].
    """

    known: Float
    total: Float
    square: Float
    level: Float

    @classmethod
    def zeros(cls, n_concepts: int, codes: ColumnCodes) -> ColumnSums:
        """Empty sums."""
        shape = (n_concepts, len(codes.levels))
        level = np.zeros((n_concepts, int(codes.first[-1])))
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape), level)

    def add_rows(self, rows: Float, winners: Index, codes: ColumnCodes) -> None:
        """Add samples.

        Args:
            rows: values; a categorical value is its code, NaN or below 0 where missing
                [sample, column].
            winners: concept of every sample.
            codes: of the columns.
        """
        count = len(self.known)
        member = np.zeros((count, len(rows)))
        member[winners, np.arange(len(rows))] = 1.0
        for column, n_levels in enumerate(codes.levels):
            values = rows[:, column]
            if not n_levels:
                known = np.isfinite(values)
                about = np.where(known, values, codes.shift[column]) - codes.shift[column]
                self.total[:, column] += member @ about
                self.square[:, column] += member @ about**2
            else:
                known = np.isfinite(values) & (values >= 0) & (values < n_levels)
                place = codes.first[column] + values[known].astype(np.int64)
                np.add.at(self.level, (winners[known], place), 1.0)
            self.known[:, column] += member @ known


@dataclass(frozen=True)
class ColumnDifferences:
    """Differences of concepts from all samples.

    Args:
        difference: in standard deviations; 0 for a constant column or one that is left out
            [concept, column].
        value: mean of the concept, or its share of the level [concept, column].
        overall: the same of all samples [concept, column].
        level: code of the level that differs most; -1 for numbers [concept, column].
    """

    difference: Float
    value: Float
    overall: Float
    level: Index


def column_differences(sums: ColumnSums, codes: ColumnCodes) -> ColumnDifferences:
    """Differences of every concept in every column."""
    shape = sums.known.shape
    found = ColumnDifferences(
        np.zeros(shape), np.zeros(shape), np.zeros(shape), np.full(shape, -1, dtype=np.int64)
    )
    concepts = np.arange(shape[0])
    for column, n_levels in enumerate(codes.levels):
        own = np.maximum(sums.known[:, column], 1.0)
        everyone = max(float(sums.known[:, column].sum()), 1.0)
        if n_levels:
            counts = sums.level[:, codes.first[column] : codes.first[column] + n_levels]
            share = counts / own[:, None]
            overall = counts.sum(axis=0) / everyone
            deviation = np.sqrt(overall * (1.0 - overall))
            scaled = _scaled(share - overall, deviation, 1.0)
            most = np.argmax(np.abs(scaled), axis=1)
            found.difference[:, column] = scaled[concepts, most]
            found.value[:, column] = share[concepts, most]
            found.overall[:, column] = overall[most]
            found.level[:, column] = most
        else:
            mean = sums.total[:, column] / own
            overall_mean = sums.total[:, column].sum() / everyone
            variance = sums.square[:, column].sum() / everyone - overall_mean**2
            size = abs(codes.shift[column]) + float(np.sqrt(max(variance, 0.0)))
            deviation = np.array(np.sqrt(max(float(variance), 0.0)))
            found.difference[:, column] = _scaled(mean - overall_mean, deviation, size)
            found.value[:, column] = mean + codes.shift[column]
            found.overall[:, column] = overall_mean + codes.shift[column]
        # A concept without known values differs in nothing.
        found.difference[sums.known[:, column] == 0, column] = 0.0
    return found


def columns_of_levels(
    kinds: Sequence[str], levels: Sequence[int], most_levels: int
) -> tuple[tuple[int, ...], npt.NDArray[np.bool_]]:
    """Levels of every column as sums count them, and which columns are compared [column].

    A categorical column with more than ``most_levels`` levels, such as a name, is left out; its
    codes are summed as numbers, which nobody reads.
    """
    compared = np.array(
        [kind == "numeric" or 2 <= n <= most_levels for kind, n in zip(kinds, levels, strict=True)]
    )
    counted = tuple(
        n if kind != "numeric" and told else 0
        for kind, n, told in zip(kinds, levels, compared, strict=True)
    )
    return counted, compared


def _scaled(difference: Float, deviation: Float, size: float) -> Float:
    varies = deviation > CONSTANT * size
    return np.asarray(np.where(varies, difference / np.where(varies, deviation, 1.0), 0.0))
