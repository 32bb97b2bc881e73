"""Encoding files applied to a table: its columns and categories compared with those of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.base import Column, Float64, SourceSpec, locate
from krepes_ooc.sources.tables.encoding_file import read_encoding
from krepes_ooc.sources.tables.table_encoding import TableEncoding, merge_categories
from krepes_ooc.sources.tables.table_scan import Scan, TableColumns

MAX_LISTED = 5
ZERO = "zero"


@dataclass(frozen=True)
class EncodingFile:
    """An encoding that the recipe names.

    Args:
        encoding: what the file states.
        path: the file.
        unseen: recipe key ``source.unseen``.
    """

    encoding: TableEncoding
    path: Path
    unseen: str

    @property
    def name(self) -> str:
        """Name of the file, for people."""
        return self.path.name

    @property
    def fillable(self) -> frozenset[str]:
        """Numeric columns whose missing numbers get a fill."""
        columns = self.encoding.columns
        return frozenset(c.name for c in columns if c.kind == "numeric" and c.fill is not None)

    def declared(self, spec: SourceSpec) -> SourceSpec:
        """The source with the kinds that columns have in the encoding.

        Raises:
            SourceError: the recipe declares another kind.
        """
        kinds = {column.name: column.kind for column in self.encoding.columns}
        for key, other in (("categorical", "numeric"), ("numeric", "categorical")):
            wrong = [name for name in getattr(spec, key) if kinds.get(name) == other]
            if wrong:
                raise SourceError(
                    f"column {wrong[0]!r} is {other} in {self.name}",
                    where=f"source.{key}",
                    expected="the kind that it had when the network was trained",
                )
        named = {
            kind: tuple(name for name, is_kind in kinds.items() if is_kind == kind)
            for kind in ("categorical", "numeric")
        }
        return replace(
            spec,
            categorical=tuple(dict.fromkeys((*spec.categorical, *named["categorical"]))),
            numeric=tuple(dict.fromkeys((*spec.numeric, *named["numeric"]))),
        )

    def check_columns(self, spec: SourceSpec, names: Sequence[str], where: str) -> None:
        """Compare the columns of the encoding with those of the table.

        Raises:
            SourceError: a column is not in the table, or the recipe hides it from the network.
        """
        encoded = [column.name for column in self.encoding.columns]
        absent = [name for name in encoded if name not in names]
        if absent:
            raise SourceError(
                f"no column {absent[0]!r}, an input of {self.name}"
                + (f" ({len(absent)} such columns)" if len(absent) > 1 else ""),
                where=where,
                expected="the columns " + listed(encoded),
            )
        hidden = {spec.label, spec.name, *spec.exclude, *spec.audit_only}
        inside = [name for name in encoded if name in hidden]
        if inside:
            raise SourceError(
                f"column {inside[0]!r} is an input of {self.name}, and the recipe hides it",
                where="source",
                expected="a column that is no label, name, exclude or audit_only",
                advice="show it to the network, which was trained on it",
            )

    def hide_unknown(self, table_columns: TableColumns, where: str) -> TableColumns:
        """The columns to read: those that the encoding does not know are audited only.

        Raises:
            SourceError: there is one, and ``source.unseen`` refuses it.
        """
        unknown = self.unknown(table_columns)
        if unknown and self.unseen != ZERO:
            raise SourceError(
                f"{self.name} does not know column {unknown[0]!r}"
                + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""),
                where=where,
                expected="the columns " + listed([c.name for c in self.encoding.columns]),
                advice="list it under source.exclude or source.audit_only, or set source.unseen: "
                "zero",
            )
        kinds = [(n, kind, shown and n not in unknown) for n, kind, shown in table_columns.kinds]
        return replace(table_columns, kinds=tuple(kinds), fillable=self.fillable)

    def unknown(self, table_columns: TableColumns) -> list[str]:
        """Columns of the table that the network would see and the encoding does not know."""
        encoded = {column.name for column in self.encoding.columns}
        return [n for n, _, shown in table_columns.kinds if shown and n not in encoded]

    def apply(self, scan: Scan, where: str) -> tuple[tuple[Column, ...], Float64]:
        """Columns with the categories of the encoding first, and marginal rows with their codes.

        Raises:
            DataError: categories that the encoding does not know, and ``source.unseen`` refuses.
        """
        encoded = {column.name: column for column in self.encoding.columns}
        columns = list(scan.columns)
        marginal_rows = scan.marginal_rows.copy()
        for index, column in enumerate(scan.columns):
            if column.kind != "categorical" or column.name not in encoded:
                continue
            categories, known = merge_categories(encoded[column.name], column.categories)
            counts = dict(zip(column.categories, column.counts, strict=True))
            unseen = categories[known:]
            if unseen and self.unseen != ZERO:
                raise self._unseen(column.name, {name: counts[name] for name in unseen}, where)
            # Codes of the scan become codes of the merged categories.
            codes = np.asarray([categories.index(name) for name in column.categories], np.float64)
            marginal_rows[:, index] = codes[scan.marginal_rows[:, index].astype(np.int64)]
            counted = tuple(counts.get(name, 0) for name in categories)
            columns[index] = replace(column, categories=categories, counts=counted)
        return tuple(columns), marginal_rows

    def _unseen(self, column: str, rows: dict[str, int], where: str) -> DataError:
        total = sum(rows.values())
        return DataError(
            f"{self.name} does not know {listed([repr(name) for name in rows])} "
            f"({total:,} row{'s' * (total != 1)}) in column {column!r}",
            where=where,
            expected="the categories that the network was trained with",
            advice="set source.unseen: zero to encode them as zeros, or leave out these rows",
        )

    def counted(self, columns: Sequence[Column]) -> dict[str, dict[str, int]]:
        """Counts of what the encoding fills or encodes as zeros, for people and records.

        Returns:
            ``unseen``: rows of categories without an input, by column; ``filled``: missing numbers
            by column. Columns without such rows are left out.
        """
        encoded = {column.name: column for column in self.encoding.columns}
        unseen = {}
        filled = {}
        for column in columns:
            if column.name not in encoded:
                continue
            if column.kind == "numeric":
                filled[column.name] = column.missing
            else:
                _, known = merge_categories(encoded[column.name], column.categories)
                unseen[column.name] = sum(column.counts[known:])
        return {
            "unseen": {name: count for name, count in unseen.items() if count},
            "filled": {name: count for name, count in filled.items() if count},
        }

    def warnings(self, columns: Sequence[Column], unknown: Sequence[str]) -> list[str]:
        """Lines for log and report: what was encoded as zeros or filled.

        Args:
            columns: of the table.
            unknown: columns that the encoding does not know.
        """
        counted = self.counted(columns)
        encoded = {column.name: column for column in self.encoding.columns}
        lines = [
            f"{self.name} does not know column {name!r}: it is not shown to the network"
            for name in unknown
        ]
        for column in columns:
            rows = counted["unseen"].get(column.name)
            if rows:
                _, known = merge_categories(encoded[column.name], column.categories)
                names = listed([repr(name) for name in column.categories[known:]])
                lines.append(
                    f"{self.name} does not know {names} in column {column.name!r}: "
                    f"{rows:,} row{'s' * (rows != 1)} encoded as zeros"
                )
            rows = counted["filled"].get(column.name)
            if rows:
                lines.append(
                    f"column {column.name!r}: {rows:,} missing number{'s' * (rows != 1)} "
                    f"filled with {encoded[column.name].fill:g}"
                )
        constant = [c.name for c in self.encoding.columns if c.kind == "numeric" and not c.scale]
        if constant:
            lines.append(f"the scale of {listed(constant)} in {self.name} is 0: divided by 1")
        return lines


def open_encoding(spec: SourceSpec, base: Path) -> EncodingFile | None:
    """The encoding that a recipe names, or None if it names none.

    Raises:
        SourceError: no such file, or no encoding in it; ``unseen`` without a file.
    """
    if spec.encoding:
        path = locate(spec.encoding, base, "encoding")
        return EncodingFile(read_encoding(path), path, spec.unseen)
    if spec.unseen == ZERO:
        raise SourceError(
            "unseen means nothing without source.encoding",
            where="source.unseen",
            expected="source.encoding, the file of the encoding that the network was trained with",
        )
    return None


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
