"""Adult at any number of rows: drawn again with replacement, every number moved a little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

GROUP_ROWS = 2**15
JITTER = 0.05


def bootstrap(adult: Path, target: Path, samples: int, seed: int = 0) -> Path:
    """Adult bootstrapped with jitter; one row of every category comes first, so none is lost."""
    if target.exists():
        return target
    source = pq.read_table(adult)
    draw = np.random.default_rng(seed)
    covering = [rows_of_each_category(source.column(name)) for name in source.column_names]
    first = np.unique(np.concatenate(covering))[:samples]
    spread = {
        name: float(np.std(source.column(name).to_numpy()))
        for name in source.column_names
        if pa.types.is_integer(source.schema.field(name).type)
        or pa.types.is_floating(source.schema.field(name).type)
    }
    part, writer = target.with_suffix(".part"), None
    for start in range(0, samples, GROUP_ROWS):
        count = min(GROUP_ROWS, samples - start)
        rows = draw.integers(source.num_rows, size=count)
        if start == 0:
            rows[: len(first)] = first
        table = source.take(pa.array(rows))
        for name, size in spread.items():
            moved = table.column(name).to_numpy() + draw.normal(0, JITTER * size, count)
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, pa.array(moved))
        writer = writer or pq.ParquetWriter(part, table.schema)
        writer.write_table(table, row_group_size=GROUP_ROWS)
    assert writer is not None
    writer.close()
    part.rename(target)
    return target


def rows_of_each_category(column: Any) -> np.ndarray:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return np.empty(0, dtype=np.int64)
    values = column.combine_chunks()
    return np.array([pc.index(values, value).as_py() for value in pc.unique(values)])
