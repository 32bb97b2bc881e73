"""Lines that describe an open source, so that a misreading is seen before a run."""

from __future__ import annotations

import numpy as np

from krepes_ooc.sources.array_source import ArraySource, ImageSource
from krepes_ooc.sources.base import Source, sample_positions

MAX_CLASSES = 12


def describe_source(source: Source) -> list[str]:
    """Samples, shape, scale and classes of a source, then what was found in its files."""
    shape = " x ".join(map(str, source.input_shape))
    lines = [f"{source.n_samples:,} samples of kind {source.kind}, {shape} to the network"]
    if isinstance(source, ImageSource):
        black = source.scaling.black
        white = black + source.scaling.full
        lines.append(f"pixels from {black:g} to {white:g} are scaled to [0, 1]")
    # Labels of an array are in memory; those of a table would be read from the file.
    if isinstance(source, ArraySource) and source.classes:
        codes = source.labels(sample_positions(source, np.arange(source.n_samples)))
        counts = np.bincount(codes[codes >= 0], minlength=len(source.classes)).tolist()
        named = [f"{name} {count:,}" for name, count in zip(source.classes, counts, strict=True)]
        more = f" and {len(named) - MAX_CLASSES} more" if len(named) > MAX_CLASSES else ""
        missing = int((codes < 0).sum())
        unlabelled = f"; {missing:,} without a label" if missing else ""
        lines.append(f"{len(named)} classes: {', '.join(named[:MAX_CLASSES])}{more}{unlabelled}")
    lines += getattr(source, "summary", ())
    return lines + [f"warning: {text}" for text in source.warnings]
