"""CSV files as record batches; separator, characters, decimal mark and types as the recipe says."""

from __future__ import annotations

import codecs
import contextlib
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.tables.hashed_stream import CODECS, HashedStream

CSV_BLOCK_BYTES = 8 * 2**20
HEAD_BYTES = 2**18
HEAD_ROWS = 200
COMPRESSED = set(CODECS)
# Fields that Arrow takes for missing numbers: empty, NA, NaN, null and their like.
NULL_WORDS = tuple(pa.csv.ConvertOptions().null_values)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
# Likely codes: leading zeros, more digits than float64 holds, and hexadecimal digits, which Arrow
# reads as whole numbers.
_CODE = re.compile(r"[-+]?(0\d+|\d{17,}|0[xX][0-9a-fA-F]+)")
_MISREAD = re.compile(r"In CSV column #(\d+):")
# Excel's own way of stating the separator.
_SEPARATOR_LINE = re.compile(r"sep=.", re.IGNORECASE)
_SEPARATORS = (";", "\t", "|", ",")
# First bytes of files that are no text, and of lines that are no fields.
_OTHER_KINDS = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
    b"\x1f\x8b": "packed by gzip",
    b'{"': "JSON",
    b'[{"': "JSON",
    b"<!DOCTYPE": "a page of the web",
    b"<html": "a page of the web",
}
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class CsvFormat:
    """Format of a CSV file.

    Args:
        delimiter: separator of fields, one character.
        stated: whether the recipe states the separator.
        header: whether the first line names the columns.
        charset: name of the codec.
        decimal: decimal mark.
        missing: fields that stand for no value, beside those of Arrow.
        trim: whether spaces around texts are removed and empty texts are missing.
    """

    delimiter: str
    stated: bool = False
    header: bool = True
    charset: str = "utf-8"
    decimal: str = "."
    missing: tuple[str, ...] = ()
    trim: bool = True


def csv_format(path: Path, spec: SourceSpec) -> CsvFormat:
    """Format of a CSV file by the recipe, else by the last suffix of its name.

    Raises:
        SourceError: a separator that is no single character or equals the decimal mark, or an
            unknown character encoding.
    """
    delimiter = spec.delimiter
    if delimiter and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise SourceError(
            f"source.delimiter is {delimiter!r}",
            where=str(path),
            expected="one character that separates the fields, such as ',' or ';'",
            advice="write the file again with such a separator" if len(delimiter) > 1 else "",
        )
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    delimiter = delimiter or ("\t" if suffixes[-1:] == [".tsv"] else ",")
    if delimiter == spec.decimal:
        raise SourceError(
            f"source.decimal is {spec.decimal!r}, which separates the fields too",
            where=str(path),
            expected="a decimal mark that is no separator",
            advice="set source.delimiter, such as ';'",
        )
    try:
        charset = codecs.lookup(spec.charset or "utf-8").name
        "".encode(charset)
    except LookupError as error:
        raise SourceError(
            f"source.charset is {spec.charset!r}",
            where=str(path),
            expected="a character encoding that Python knows, such as utf-8, latin-1 or cp1252",
        ) from error
    charset = "utf-8" if charset == "utf-8-sig" else charset
    missing = tuple(sorted({str(value).strip() for value in spec.missing}))
    return CsvFormat(delimiter, bool(spec.delimiter), spec.header, charset, spec.decimal, missing)


class CsvBatches:
    """Record batches of a CSV file; texts are trimmed and empty texts are null.

    Args:
        path: the file.
        form: how it is written.
        types: Arrow types of columns by name; the others are inferred from the first block.
        block_bytes: bytes that are parsed at once.
    """

    def __init__(
        self,
        path: Path,
        form: CsvFormat,
        types: Mapping[str, Any],
        block_bytes: int = CSV_BLOCK_BYTES,
    ) -> None:
        self._path = path
        self._form = form
        self._types = types
        self._block_bytes = block_bytes
        self.head = read_head(path, form)
        self._schema: Any = None
        # Of the file, once all its batches were read.
        self.sha256: str | None = None

    def __iter__(self) -> Iterator[Any]:
        """Batches with trimmed column names.

        Raises:
            SourceError: one column only, though the lines hold a separator; or undecodable bytes.
        """
        form = self._form
        read = pa.csv.ReadOptions(
            use_threads=False,
            block_size=self._block_bytes,
            autogenerate_column_names=not form.header,
            encoding=form.charset,
        )
        parse = pa.csv.ParseOptions(delimiter=form.delimiter, newlines_in_values=True)
        # Arrow knows columns by the names as they are written, with spaces.
        written = {name: self._types.get(name.strip()) for name in self.head.names}
        types = {name: kind for name, kind in written.items() if kind is not None}
        try:
            # Arrow infers types from the first block, and converts the others in two thirds of the
            # time if it is told them.
            if self._path.stat().st_size > self._block_bytes:
                with self._open(read, parse, types) as reader:
                    inferred = dict(zip(reader.schema.names, reader.schema.types, strict=True))
                    unique = len(inferred) == len(reader.schema.names)
                    types = inferred if unique else types
            with self._open(read, parse, types) as reader:
                self._schema = reader.schema
                self._check_width()
                for batch in reader:
                    yield self._clean(batch)
        except UnicodeError as error:
            raise not_decodable(self._path, form, str(error)) from error

    @contextlib.contextmanager
    def _open(self, read: Any, parse: Any, types: dict[str, Any]) -> Iterator[Any]:
        """Reader of the file's blocks, with these types of columns by the names as written."""
        words = [*NULL_WORDS, *self._form.missing]
        convert = pa.csv.ConvertOptions(
            column_types=types,
            decimal_point=self._form.decimal,
            null_values=[f"{a}{word}{b}" for word in words for a in ("", " ") for b in ("", " ")],
        )
        file = HashedStream(self._path)
        with (
            contextlib.closing(file),
            file.arrow() as stream,
            pa.csv.open_csv(stream, read, parse, convert) as reader,
        ):
            yield reader
        self.sha256 = file.sha256()

    def type_of(self, name: str) -> Any:
        """Arrow type of a column; None if the first block could not be read."""
        if self._schema is None:
            return None
        return self._schema.field(self._names().index(name)).type

    def misread_column(self, message: str) -> str | None:
        """Column that Arrow's conversion error names: ``In CSV column #3: ...``."""
        found = _MISREAD.search(message)
        names = [name.strip() for name in self.head.names]
        return names[int(found[1])] if found and int(found[1]) < len(names) else None

    def _names(self) -> list[str]:
        return [str(name).strip() for name in self._schema.names]

    def _check_width(self) -> None:
        if len(self._schema.names) == 1 and not self._form.stated:
            self.head.refuse_one_column()

    def _clean(self, batch: Any) -> Any:
        names = self._names()
        columns = [self._trimmed(column) for column in batch.columns]
        # Several columns without a name cannot be told apart, so no recipe can declare them.
        nameless = names.count("") > 1
        chosen = [i for i, name in enumerate(names) if name or not nameless]
        return pa.RecordBatch.from_arrays(
            [columns[i] for i in chosen], names=[names[i] for i in chosen]
        )

    def _trimmed(self, column: Any) -> Any:
        if not pa.types.is_string(column.type):
            return column
        text = pc.utf8_trim_whitespace(column) if self._form.trim else column
        empty = pc.is_in(text, value_set=pa.array(["", *self._form.missing], pa.string()))
        return pc.if_else(empty, pa.scalar(None, pa.string()), text)


@dataclass(frozen=True)
class CsvHead:
    """The first lines of a CSV file.

    Args:
        path: the file.
        form: how it is written.
        lines: its first lines, decoded.
        names: names of the columns as they are written.
        rows: fields of the first rows [row, column].
    """

    path: Path
    form: CsvFormat
    lines: tuple[str, ...]
    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def refuse_one_column(self) -> None:
        """Raise if the file seems to have one column because of another separator.

        Raises:
            SourceError: names the separator that the lines hold.
        """
        if separator := self.other_separator():
            raise SourceError(
                f"one column, {self.names[0]!r:.60}, and {separator!r} in every line",
                where=str(self.path),
                expected=f"fields separated by {self.form.delimiter!r}",
                advice=delimiter_advice(separator),
            )

    def other_separator(self) -> str:
        """A separator that divides all lines into equally many fields, or ""."""
        for separator in _SEPARATORS:
            widths = {len(fields) for fields in _fields(self.lines, separator)}
            if separator != self.form.delimiter and len(widths) == 1 and widths != {1}:
                return separator
        # Spaces also stand inside texts: here they separate numbers.
        fields = [line.split() for line in self.lines[1:]]
        widths = {len(row) for row in fields if row}
        numbers = all(NUMBER.fullmatch(field) for row in fields for field in row)
        return " " if len(widths) == 1 and widths != {1} and numbers else ""

    def codes(self) -> dict[str, tuple[int, str]]:
        """Columns of numbers that are likely codes: first row and field."""
        found: dict[str, tuple[int, str]] = {}
        for index, row in enumerate(self.rows):
            for name, field in zip(self.names, row, strict=False):
                if _CODE.fullmatch(field.strip()):
                    found.setdefault(name.strip(), (index, field.strip()))
        return found


def head_warnings(head: CsvHead, kinds: Iterable[tuple[str, str, bool]]) -> list[str]:
    """Warnings about columns without a name, and numbers that are likely codes."""
    numeric = {name for name, kind, _ in kinds if kind == "numeric"}
    nameless = sum(not name.strip() for name in head.names)
    left_out = f"{nameless} columns without a name are left out: to use them, give them names"
    return [left_out] * (nameless > 1) + [
        f"column {name!r} holds {field!r} in row {row + 1} (sample {row}), read as a number: if it "
        "is a code, list the column under source.categorical, name or exclude"
        for name, (row, field) in head.codes().items()
        if name in numeric
    ]


def read_head(path: Path, form: CsvFormat) -> CsvHead:
    """The first lines of a CSV file.

    Raises:
        SourceError: the file begins with the mark of another character encoding, or the names of
            its columns are not in the declared one.
    """
    with pa.input_stream(str(path), compression="detect") as stream:
        data = stream.read(HEAD_BYTES)
    for mark, kind in _OTHER_KINDS.items():
        if data.startswith(mark):
            raise SourceError(
                f"is {kind}, in spite of its name",
                where=str(path),
                expected="a text file of rows",
                advice="give it the suffix of its kind, or write it as CSV",
            )
    # The longer mark first: that of UTF-32 begins with that of UTF-16.
    for mark, charset in _MARKS.items():
        if data.startswith(mark):
            if not form.charset.startswith(charset):
                raise SourceError(
                    f"begins with the byte order mark of {charset}, read as {form.charset}",
                    where=str(path),
                    expected=f"source.charset: {charset}",
                )
            break
    try:
        text = codecs.getincrementaldecoder(form.charset)("replace").decode(data)
    except UnicodeError as error:
        raise not_decodable(path, form, str(error)) from error
    lines = text.lstrip("\ufeff").splitlines(keepends=True)
    if lines and _SEPARATOR_LINE.fullmatch(lines[0].strip()):
        raise SourceError(
            f"its first line, {lines[0].strip()!r}, only names the separator",
            where=str(path),
            expected="the names of the columns",
            advice=f"remove that line and {delimiter_advice(lines[0].strip()[-1])}",
        )
    # The last line may be cut.
    lines = lines[: max(1, len(lines) - (len(data) == HEAD_BYTES))][: HEAD_ROWS + 1]
    rows = _fields(lines, form.delimiter)
    width = len(rows[0]) if rows else 0
    names = rows[0] if form.header and rows else tuple(f"f{i}" for i in range(width))
    if any("\ufffd" in name for name in names):
        raise not_decodable(path, form, "the names of the columns")
    return CsvHead(path, form, tuple(lines), names, tuple(rows[form.header :]))


def _fields(lines: Sequence[str], delimiter: str) -> list[tuple[str, ...]]:
    """Fields of each line that is not empty, as far as they can be read."""
    rows: list[tuple[str, ...]] = []
    # Arrow reads the whole file and says what is wrong with it.
    with contextlib.suppress(csv.Error):
        rows.extend(tuple(row) for row in csv.reader(lines, delimiter=delimiter) if row)
    return rows


def not_decodable(path: Path, form: CsvFormat, what: str) -> SourceError:
    """The error for bytes that are no text in the declared character encoding."""
    return SourceError(
        f"not {form.charset}: {what}",
        where=str(path),
        expected=f"text in {form.charset}",
        advice="set source.charset to the encoding of the file, such as latin-1, cp1252 or utf-16",
    )


def csv_problem(head: CsvHead, error: pa.ArrowInvalid) -> tuple[str, str]:
    """Message of Arrow about a file that it cannot divide into rows, in one line, and advice."""
    problem = " ".join(str(error).split())[:200]
    separator = head.other_separator()
    if separator and "Expected" in problem:
        return problem, delimiter_advice(separator)
    if "Expected" in problem and head.lines and head.lines[0].startswith("#"):
        return problem, "remove the lines before the names of the columns"
    # Row 2 is the first below the header: what is wrong there is wrong everywhere.
    if "Row #2:" in problem and head.rows and len(head.rows[0]) == len(head.names) + 1:
        return problem, "name every column in the first line; the rows have one field more"
    return problem, ""


def delimiter_advice(separator: str) -> str:
    """The key of the recipe that states this separator."""
    return f'set source.delimiter: "{separator}"'.replace("\t", r"\t")
