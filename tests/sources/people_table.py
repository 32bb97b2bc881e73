"""A mixed table of people, and sources opened on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq

from krepes_ooc.core.settings import read_settings
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source

ROWS = 700


def people(rows: int = ROWS) -> dict[str, Any]:
    """A mixed table with a constant column, a missing category and a label."""
    draw = np.random.default_rng(7)
    return {
        "age": draw.integers(17, 90, rows),
        "work": draw.choice(["state", "?", "private"], rows).tolist(),
        "wage": draw.normal(3e6, 2.0, rows),
        "planet": ["earth"] * rows,
        "town": [None if i % 10 == 3 else f"t{i % 4}" for i in range(rows)],
        "urban": draw.integers(0, 2, rows).astype(bool),
        "gender": draw.choice(["f", "m"], rows).tolist(),
        "id": [f"p{i:04d}" for i in range(rows)],
        "income": [None if i == 5 else [">50K", "<=50K"][i % 2] for i in range(rows)],
        "group": np.arange(rows) // 100,
    }


def write(folder: Path, columns: dict[str, Any], name: str = "t.parquet", group: int = 128) -> Path:
    path = folder / name
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def open_people(folder: Path, columns: dict[str, Any] | None = None, **keys: Any) -> Source:
    write(folder, columns or people())
    spec = {"kind": "table", "path": "t.parquet", "label": "income", "name": "id"}
    values = {**spec, "audit_only": ["gender"], "exclude": ["group"], **keys}
    values = {key: value for key, value in values.items() if value is not None}
    return open_source(read_settings(SourceSpec, values, "source"), folder, folder / "cache")
