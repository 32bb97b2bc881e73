"""Open the source that a recipe declares; its reader is imported on first use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import not_a_file, unreadable
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import BUFFER_BYTES, Column, Source, SourceSpec, Tabular, check_keys
from krepes_ooc.sources.row_order import WINDOW_ROWS, ShuffledOrder

__all__ = ["Column", "Source", "SourceSpec", "Tabular", "open_source", "row_order"]


def open_source(
    spec: SourceSpec,
    base: Path,
    cache: Path,
    check_stop: Callable[[], None] = lambda: None,
    dataset: Any = None,
) -> Source:
    """Open the declared source.

    Args:
        spec: the recipe key ``source``.
        base: folder of the recipe; paths are relative to it.
        cache: folder of the workspace for converted files and scan results.
        check_stop: raises when the run is to stop, during checks that take long.
        dataset: the data set of a script, where the recipe's factory is ``live``.

    Raises:
        SourceError: the source cannot be opened as declared.
        DataError: it holds values that cannot be used.
    """
    check_keys(spec)
    # Of a pipe or a device the opening would wait, or never end.
    path = base / spec.path
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise unreadable(path, not_a_file(path, path.stat().st_mode), source=True)
    try:
        return _open(spec, base, cache, check_stop, dataset)
    except SourceError as error:
        # Recipes of public data sets name the command that downloads a missing file.
        if not (spec.fetch and error.what.startswith("no such")):
            raise
        raise SourceError(
            error.what,
            where=error.where,
            expected=error.expected,
            advice=f"fetch it: {spec.fetch}",
        ) from error


def _open(
    spec: SourceSpec, base: Path, cache: Path, check_stop: Callable[[], None], dataset: Any
) -> Source:
    if spec.kind == "table":
        # pyarrow is imported for tables only.
        from krepes_ooc.sources.tables.table import open_table

        return open_table(spec, base, cache)
    from krepes_ooc.sources import map_dataset
    from krepes_ooc.sources.arrays import array_files, array_source
    from krepes_ooc.sources.pictures import image_folder

    if spec.kind == "digits":
        return array_source.open_digits(spec)
    if spec.kind == "idx":
        return array_files.open_idx(spec, base, cache)
    if spec.kind == "arrays":
        return array_files.open_arrays(spec, base, cache)
    if spec.kind == "images":
        return image_folder.open_images(spec, base, cache, check_stop)
    return map_dataset.open_dataset(spec, base, cache, dataset)


def row_order(source: Source, spec: SourceSpec, seed: int) -> ShuffledOrder:
    """Order of the store rows of a source; the windows of a stream fit half its buffer."""
    # Decoded rows are float64: eight bytes a column.
    row_bytes = 8 * max(1, len(source.columns))
    window_rows = max(1, min(WINDOW_ROWS, BUFFER_BYTES // (2 * row_bytes)))
    return ShuffledOrder(
        source.n_samples,
        source.row_groups,
        seed,
        spec.order,
        window_rows,
        getattr(source, "valid_positions", None),
    )
