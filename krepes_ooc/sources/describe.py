"""Summary of a source in lines for people, so that a misreading is seen before a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from krepes_ooc.sources.arrays.array_source import ArraySource, ImageSource, VectorSource
from krepes_ooc.sources.base import Source, SourceSpec, sample_positions
from krepes_ooc.sources.tables.table_summary import classes_line

MAX_INPUTS = 24
CHANNELS = {1: "1 channel (grey)", 3: "3 channels (colour)", 4: "4 channels (colour and alpha)"}


def describe_source(
    source: Source, spec: SourceSpec | None = None, warnings: Sequence[str] | None = None
) -> list[str]:
    """Samples, shape, scale and classes of a source, then what was found in its files.

    Args:
        source: the opened source.
        spec: how it is declared; None: its limit is not mentioned.
        warnings: warnings to list; None: those of the source.
    """
    shape = " x ".join(map(str, source.input_shape))
    lines = [f"{source.n_samples:,} samples of kind {source.kind}, {shape} to the network"]
    # Tables say all else in their summary.
    if isinstance(source, ArraySource):
        lines += _describe_values(source)
        if spec is not None and spec.limit == source.n_samples:
            lines.append(f"limit: the first {spec.limit:,} samples; what lies behind is left out")
        lines.append(_describe_classes(source))
    lines += getattr(source, "summary", ())
    shown = source.warnings if warnings is None else warnings
    return lines + [f"warning: {text}" for text in shown]


def _describe_values(source: ArraySource) -> list[str]:
    """Type of the stored values; of images their channels, depth and scale too."""
    dtype = np.dtype(str(source.fingerprint()["dtype"]))
    if isinstance(source, ImageSource):
        channels, height, width = source.input_shape
        black = source.scaling.black
        white = black + source.scaling.full
        return [
            f"images of {height} x {width} pixels, {CHANNELS[channels]}, {dtype.name}, "
            f"{8 * dtype.itemsize} bit a value",
            f"pixels from {black:g} to {white:g} are scaled to [0, 1]",
        ]
    kind = "vectors" if isinstance(source, VectorSource) else "arrays"
    return [f"{kind} of {dtype.name}, shown to the network as they are"]


def _describe_classes(source: ArraySource) -> str:
    """Classes with their counts; labels of an array are in memory."""
    if not source.classes:
        return "no labels"
    codes = source.labels(sample_positions(source, np.arange(source.n_samples)))
    counts = np.bincount(codes[codes >= 0], minlength=len(source.classes)).tolist()
    return classes_line(source.classes, counts, int((codes < 0).sum()))


def list_inputs(source: Source) -> str:
    """Inputs of the network by the columns of a table, for messages; "" for other sources."""
    shown = [column for column in source.columns if column.shown]
    numbers = [column.name for column in shown if column.kind == "numeric"]
    codes = [(column.name, len(column.categories)) for column in shown if column.categories]
    named = [*numbers, *(f"{count} codes of {name}" for name, count in codes)]
    width = len(numbers) + sum(count for _, count in codes)
    # Another layout than that of the columns is not spelled out.
    if not named or source.input_shape != (width,):
        return ""
    more = f" and {len(named) - MAX_INPUTS} more columns" if len(named) > MAX_INPUTS else ""
    return f"{width} inputs ({', '.join(named[:MAX_INPUTS])}{more})"
