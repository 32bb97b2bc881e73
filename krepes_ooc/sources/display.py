"""Display form of samples for the stores: names, labels, table rows and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.sources.base import Source

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DisplayArrays:
    """Arrays of some samples for a store, sizes of their dimensions, texts behind their codes."""

    arrays: dict[str, npt.NDArray[Any]]
    sizes: dict[str, int]
    array_attributes: dict[str, Mapping[str, Any]]


def display_arrays(source: Source, sample_id: Ids) -> DisplayArrays:
    """Display arrays of samples [sample], as the stores landmarks and audited hold them."""
    raw = source.read(sample_id)
    names = source.names(sample_id)
    arrays: dict[str, npt.NDArray[Any]] = {
        "sample_id": sample_id,
        # Strings are stored as codes and categories.
        "sample_name": np.arange(len(names), dtype=np.int64),
        "label": source.labels(sample_id).astype(np.int64),
    }
    sizes: dict[str, int] = {}
    if source.kind == "table":
        arrays["values"] = np.asarray(raw, dtype=np.float64)
        sizes["column"] = raw.shape[1]
    elif source.kind == "image":
        arrays["image"] = picture(raw, full_scale(source))
        sizes |= dict(zip(("y", "x", "channel"), arrays["image"].shape[1:], strict=True))
    texts: dict[str, Mapping[str, Any]] = {
        "sample_name": {"categories": list(names)},
        "label": {"categories": list(source.classes)},
    }
    return DisplayArrays(arrays, sizes, texts)


def full_scale(source: Source) -> float | None:
    """Raw value of a full-scale pixel; None for a source that is no image."""
    scaling = getattr(source, "scaling", None)
    return None if scaling is None else float(scaling.full)


def picture(raw: npt.NDArray[Any], full: float | None = None) -> npt.NDArray[np.uint8]:
    """Images [sample, y, x, channel] as uint8.

    Args:
        raw: pixels in the units of the source.
        full: their full scale. uint8 pixels of full scale 255 are kept, dark ones too; deeper ones
            are scaled by it. Small scales, such as digits from 0 to 16 or floats to 1, and pixels
            of an unknown scale are stretched over 0 to 255.
    """
    if raw.dtype == np.uint8 and full == 255:
        return raw
    if full is not None and full >= 255:
        scaled = np.clip(raw.astype(np.float64) / full, 0, 1)
        return np.asarray(np.round(255 * scaled), dtype=np.uint8)
    # A uint8 picture that stays below 16 is one of few levels, such as the digits: stretch it.
    if raw.dtype == np.uint8 and raw.size and raw.max() > 16:
        return raw
    values = raw.astype(np.float64)
    low = values.min() if values.size else 0.0
    high = values.max() if values.size else 1.0
    # A constant picture has no range: all of it becomes 0.
    stretched = (values - low) / (high - low if high > low else 1.0)
    return np.asarray(np.round(255 * stretched), dtype=np.uint8)


def describe_columns(source: Source) -> list[dict[str, Any]]:
    """Name, kind, categories and robust range of every table column, as people see them."""
    described = []
    for column in source.columns:
        shown = {
            "name": column.name,
            "kind": column.kind,
            "shown": column.shown,
            "categories": list(column.category_names),
            "low": column.low,
            "high": column.high,
        }
        # Numbers that are codes: their words by code.
        if column.words and column.kind == "numeric":
            shown["words"] = dict(column.words)
        described.append(shown)
    return described
