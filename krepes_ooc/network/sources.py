"""Open the source that a recipe declares."""

from __future__ import annotations

from pathlib import Path

from krepes_ooc.network.arrayfiles import open_arrays, open_idx
from krepes_ooc.network.arrays import open_digits
from krepes_ooc.network.datasets import open_dataset
from krepes_ooc.network.folders import open_images
from krepes_ooc.network.order import RowOrder
from krepes_ooc.network.samples import Column, Source, SourceSpec, Tabular, check_keys
from krepes_ooc.network.tables import BUFFER_BYTES, open_table

__all__ = ["Column", "Source", "SourceSpec", "Tabular", "open_source", "row_order"]


def open_source(spec: SourceSpec, base: Path, cache: Path) -> Source:
    """Open the declared source.

    Args:
        spec: the recipe key ``source``.
        base: folder of the recipe; paths are relative to it.
        cache: folder of the workspace for converted files and findings.

    Raises:
        SourceError: the source cannot be opened as declared.
        DataError: it holds values that cannot be used.
    """
    check_keys(spec)
    if spec.kind == "digits":
        return open_digits(spec)
    if spec.kind == "idx":
        return open_idx(spec, base, cache)
    if spec.kind == "arrays":
        return open_arrays(spec, base, cache)
    if spec.kind == "images":
        return open_images(spec, base, cache)
    if spec.kind == "factory":
        return open_dataset(spec, base)
    return open_table(spec, base, cache)


def row_order(source: Source, spec: SourceSpec, seed: int) -> RowOrder:
    """The order of store rows over a source: windows of a stream fit half its buffer."""
    row_bytes = 8 * max(1, len(source.columns))
    window_rows = max(1, min(65_536, BUFFER_BYTES // (2 * row_bytes)))
    return RowOrder(source.n_samples, source.row_groups, seed, spec.order, window_rows)
