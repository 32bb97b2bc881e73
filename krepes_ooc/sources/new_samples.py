"""New samples: read from a file and brought to the form of the source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import DataError, UsageError
from krepes_ooc.sources.arrays.array_source import ArraySource, ImageSource
from krepes_ooc.sources.base import Column, Int64, Source, SourceSpec
from krepes_ooc.sources.image_pixels import PixelFormat, decode
from krepes_ooc.sources.pictures.image_files import SUFFIXES

if TYPE_CHECKING:
    from krepes_ooc.sources.tables.table import TableSource

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MAX_LISTED = 12
READ_TABLE = ".json, .csv, .tsv, .parquet or .arrow"


@dataclass(frozen=True)
class NewSamples:
    """New samples in the form of the source.

    Args:
        raw: samples [sample, ...], as ``source.read`` gives them.
        names: names of the samples, for display [sample].
        labels: label codes [sample], -1 where there is none.
        warnings: what was filled or encoded as zeros.
    """

    raw: npt.NDArray[Any]
    names: list[str]
    labels: Int64
    warnings: tuple[str, ...] = ()


def read_new_samples(source: Source, spec: SourceSpec, path: Path) -> NewSamples:
    """Read new samples of the source's kind.

    A table takes a .json object (or a list of them), a .csv, .tsv, .parquet or .arrow; images take
    a picture or a .npy; arrays take a .npy or a .json list; text takes a .txt, if the factory's
    data set turns text into an item by ``from_text``.

    Raises:
        UsageError: no such file, or a kind of file that this source does not take.
        DataError: the file holds what the network cannot be shown.
    """
    if not path.is_file():
        raise UsageError("no such file", where=str(path), expected="a file with a new sample")
    if source.kind == "table":
        return _table(source, spec, path)
    assert isinstance(source, ArraySource)
    suffix = path.suffix.lower()
    if isinstance(source, ImageSource) and suffix in SUFFIXES:
        return _name_rows(_picture(source, spec, path), path)
    if suffix == ".txt" and not isinstance(source, ImageSource):
        # One line of text: the data set's tokenizer decides the rest.
        text = " ".join(_text(path).split())
        return NewSamples(source.read_text([text]), [text], np.full(1, -1, dtype=np.int64))
    if suffix not in (".npy", ".json"):
        accepted = "a picture or .npy" if isinstance(source, ImageSource) else ".npy, .json or .txt"
        raise UsageError(f"{suffix or 'no suffix'}", where=str(path), expected=accepted)
    return _name_rows(_shaped(source, spec, _array(path, suffix), path), path)


def _name_rows(raw: npt.NDArray[Any], path: Path) -> NewSamples:
    # Several rows of one file are distinguished by their number.
    names = [path.name] if len(raw) == 1 else [f"{path.name} {i}" for i in range(len(raw))]
    return NewSamples(raw, names, np.full(len(raw), -1, dtype=np.int64))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), expected="UTF-8") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"is no JSON: {error}", where=str(path)) from error


def _array(path: Path, suffix: str) -> npt.NDArray[Any]:
    try:
        values = np.load(path, allow_pickle=False) if suffix == ".npy" else np.asarray(_json(path))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path)) from error
    # Objects, texts and complex numbers.
    if values.dtype.kind not in "uif":
        raise DataError(f"{values.dtype} values", where=str(path), expected="numbers")
    if not np.isfinite(values).all():
        raise DataError("a value is NaN or infinite", where=str(path), expected="finite numbers")
    return np.asarray(values)


def _shaped(
    source: ArraySource, spec: SourceSpec, values: npt.NDArray[Any], path: Path
) -> npt.NDArray[Any]:
    """Raw samples [sample, ...]: one sample, or several along the first axis."""
    shape = source.input_shape
    if isinstance(source, ImageSource):
        # Stored images have their channels last, network inputs first.
        shape = (*shape[1:], shape[0])
        if spec.layout == "nchw" and values.ndim >= 3 and values.shape[-3] == shape[-1]:
            values = np.moveaxis(values, -3, -1)
        if shape[-1] == 1 and values.shape[-2:] == shape[:2]:
            values = values[..., None]
        full = source.scaling.full
        # Pixels of another scale would give a finite and meaningless answer.
        if spec.range:
            values = source.scaling.from_black(values)
        elif values.size and not (values.min() >= 0 and values.max() <= full):
            raise DataError(
                f"pixels from {values.min():g} to {values.max():g}",
                where=str(path),
                expected=f"0 to {full:g}, as in the source",
            )
    # One sample without a sample axis.
    if values.shape == shape:
        return values[None]
    if values.ndim == len(shape) + 1 and values.shape[1:] == shape and len(values):
        return values
    raise DataError(
        f"an array of shape {list(values.shape)}",
        where=str(path),
        expected=f"one sample {list(shape)}, or several along a first axis",
    )


def _picture(source: ImageSource, spec: SourceSpec, path: Path) -> npt.NDArray[Any]:
    channels, height, width = source.input_shape
    # Decoded exactly as the images of a folder are.
    form = source.picture_format or PixelFormat(MODES[channels], side=spec.size)
    pixels = decode(path, form)
    if pixels.shape[:2] != (height, width):
        raise DataError(
            f"image of {pixels.shape[0]} x {pixels.shape[1]} pixels",
            where=str(path),
            expected=f"{height} x {width} as in the source",
            advice="scale the picture first",
        )
    full = source.scaling.full
    if source.picture_format is not None or full == 255:
        return source.scaling.from_black(pixels[None])
    # A source of other units, such as digits from 0 to 16: rescale.
    return np.float32(full / 255) * pixels[None].astype(np.float32)


def _table(source: Source, spec: SourceSpec, path: Path) -> NewSamples:
    from krepes_ooc.sources.tables.new_rows import read_new_rows
    from krepes_ooc.sources.tables.parquet import ARROW, PARQUET
    from krepes_ooc.sources.tables.table import TableSource

    assert isinstance(source, TableSource)
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv", ".tsv", *PARQUET, *ARROW):
        raise UsageError(suffix or "no suffix", where=str(path), expected=READ_TABLE)
    table = read_new_rows(source, spec, path, _json(path) if suffix == ".json" else None)
    rows = table.num_rows
    if not rows:
        raise DataError("no row", where=str(path), expected="at least one")
    missing = [c.name for c in source.columns if c.shown and c.name not in table.column_names]
    if missing:
        raise DataError(
            f"no column {missing[0]!r}",
            where=str(path),
            expected="the columns " + _listed([c.name for c in source.columns if c.shown]),
        )
    # Audited columns that the network does not see may be absent: NaN.
    raw = np.full((rows, len(source.columns)), np.nan)
    warnings: list[str] = []
    for index, column in enumerate(source.columns):
        if column.name in table.column_names:
            values = table.column(column.name).combine_chunks()
            raw[:, index], zeros = _cells(source, values, column, path)
            warnings += zeros
    labels = np.full(rows, -1, dtype=np.int64)
    # A label is optional: without one the new sample is explained all the same.
    if spec.label and spec.label in table.column_names:
        label_column = table.column(spec.label).combine_chunks()
        labels = source.label_codes(label_column)
        unknown = np.flatnonzero((labels < 0) & np.asarray(label_column.is_valid()))
        if unknown.size:
            raise DataError(
                f"label {label_column[int(unknown[0])].as_py()!r} in column {spec.label!r}",
                where=str(path),
                expected="one of " + _listed(list(source.label_values)),
                advice="leave the label out if it is not known",
            )
    from krepes_ooc.sources.tables.arrow_columns import to_text

    named = spec.name and spec.name in table.column_names
    names = to_text(table.column(spec.name)).to_pylist() if named else []
    return NewSamples(raw, names or _name_rows(raw, path).names, labels, tuple(warnings))


def _cells(
    source: TableSource, values: Any, column: Column, path: Path
) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Raw values [sample] of one column, and what is filled or encoded as zeros, in words."""
    import pyarrow as pa

    from krepes_ooc.sources.tables.arrow_columns import to_codes, to_numbers
    from krepes_ooc.sources.tables.encoded_table import ZERO

    if column.kind == "numeric":
        keep = column.name in source.keeps_missing
        numbers = to_numbers(values, column.name, 0, str(path), keep_missing=keep)
        missing = int(np.isnan(numbers).sum())
        filled = f"column {column.name!r}: {missing} missing, filled as the encoding states"
        return numbers, [filled] * bool(missing)
    codes = to_codes(values, pa.array(column.categories, pa.string()))
    unknown = np.flatnonzero(codes < 0)
    raw = np.where(codes < 0, np.nan, codes.astype(np.float64))
    if not (unknown.size and column.shown):
        return raw, []
    # A category that the network has never seen has no one-hot column.
    shown = f"{str(values[int(unknown[0])].as_py())!r} in column {column.name!r}"
    if source.encoding_file is None or source.encoding_file.unseen != ZERO:
        expected = "one of " + _listed(list(column.categories))
        raise DataError(shown, where=str(path), expected=expected)
    return raw, [f"{shown} is unknown to {source.encoding_file.name}: encoded as zeros"]


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
