"""A table that was read once, and the same table as the network and people see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from krepes_ooc.sources.base import Column, Float64, Int64
from krepes_ooc.sources.tables.encoded_table import EncodingFile
from krepes_ooc.sources.tables.parquet import TableFile
from krepes_ooc.sources.tables.table_encoding import TableEncoding
from krepes_ooc.sources.tables.table_scan import Scan, TableColumns


@dataclass(frozen=True)
class ScannedTable:
    """A table that was read once.

    Args:
        path: the user's file.
        sha256: of that file.
        parquet: the table with small row groups.
        table_columns: columns that are read.
        scan: what was found in them.
        groups: used rows of each row group.
        all_rows: rows of the file, behind a limit too.
        unknown: columns that the encoding file does not know.
        left_out: columns that are never read.
    """

    path: Path
    sha256: str
    parquet: TableFile
    table_columns: TableColumns
    scan: Scan
    groups: tuple[int, ...]
    all_rows: int
    unknown: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShownTable:
    """A table as the network and people see it.

    Args:
        columns: with the categories of the encoding first, and words for codes.
        classes: names of the classes.
        class_codes: class code of every label value.
        marginal_rows: raw rows that views draw from.
        warnings: for log and report.
        encoding: from raw rows to inputs.
        encoding_file: the file that it comes from; None: learned from this table.
    """

    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    class_codes: Int64
    marginal_rows: Float64
    warnings: tuple[str, ...]
    encoding: TableEncoding
    encoding_file: EncodingFile | None
