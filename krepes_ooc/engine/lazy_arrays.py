"""Lazy xarray arrays: Dask graphs of block functions, computed on request."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import BlockPlan

if TYPE_CHECKING:
    import xarray

Values = npt.NDArray[Any]
Graph = dict[tuple[int, ...], tuple[Any, ...]]
BlockValues = Callable[[int, int], Values]


def lazy_rows(
    function: BlockValues, plan: BlockPlan, n_views: int, column: tuple[str, int], name: str
) -> xarray.DataArray:
    """Values [view, sample, column], one task for each view of each block.

    Args:
        function: values [sample, column], float64, of a view and a block's index.
        plan: the block plan of the samples.
        n_views: number of views.
        column: name and length of the last dimension.
        name: of the array.
    """
    rows = tuple(block.rows for block in plan.blocks())

    def chunk(view: int, index: int) -> Values:
        return function(view, index)[None]

    # One task a chunk, at the chunk's coordinates.
    graph: Graph = {
        (view, index, 0): (chunk, view, index)
        for view in range(n_views)
        for index in range(plan.n_blocks)
    }
    return _array(graph, ((1,) * n_views, rows, (column[1],)), ("view", "sample", column[0]), name)


def lazy_whole(
    function: Callable[[], Values], shape: Sequence[int], dims: Sequence[str], name: str
) -> xarray.DataArray:
    """Float64 values of ``shape``, computed by one task."""
    graph: Graph = {(0,) * len(shape): (function,)}
    return _array(graph, tuple((size,) for size in shape), tuple(dims), name)


def _array(
    graph: Graph,
    chunks: tuple[tuple[int, ...], ...],
    dims: tuple[str, ...],
    name: str,
) -> xarray.DataArray:
    import dask.array
    import xarray

    # A new key each time: Dask takes equal keys for the same values.
    key = f"{name}-{uuid.uuid4().hex}"
    named = {(key, *at): task for at, task in graph.items()}
    meta = np.empty((0,) * len(chunks))
    array = dask.array.Array(named, key, chunks, meta=meta)  # type: ignore[no-untyped-call]
    return xarray.DataArray(array, dims=dims, name=name)
