"""Rows of a training and of an audit, the encoding learned from the first, and its oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from krepes_ooc.core.settings import read_settings
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.tables.encoding_file import encoding_bytes
from krepes_ooc.sources.tables.table import TableSource, open_table

ROWS = 400
NUMBERS = ["age", "wage"]
CATEGORIES = ["job", "town"]
JOBS = ["baker", "nurse", "smith"]


def training(rows: int = ROWS) -> dict[str, Any]:
    draw = np.random.default_rng(3)
    return {
        "job": draw.choice(JOBS, rows).tolist(),
        "age": draw.normal(40, 10, rows),
        "town": draw.choice(["n", "s"], rows).tolist(),
        "wage": draw.lognormal(10, 1, rows),
        "kind": draw.choice(["p", "q"], rows).tolist(),
    }


def shifted(rows: int = ROWS) -> dict[str, Any]:
    """Rows three standard deviations higher, with fewer jobs, their columns in another order."""
    draw = np.random.default_rng(4)
    return {
        "wage": draw.lognormal(12, 1, rows),
        "town": draw.choice(["s", "n"], rows).tolist(),
        "age": draw.normal(70, 3, rows),
        "job": draw.choice(["smith", "baker"], rows).tolist(),
        "kind": draw.choice(["p", "q"], rows).tolist(),
    }


def write(folder: Path, columns: dict[str, Any], name: str = "t.parquet") -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def open_rows(folder: Path, columns: dict[str, Any], **keys: Any) -> TableSource:
    write(folder, columns)
    values = {"kind": "table", "path": "t.parquet", "label": "kind", **keys}
    spec = read_settings(SourceSpec, {k: v for k, v in values.items() if v is not None}, "source")
    return open_table(spec, folder, folder / "cache")


def write_encoding(folder: Path, columns: list[dict[str, Any]], name: str = "e.json") -> Path:
    document = {"format": "krepes table encoding", "version": 1, "columns": columns}
    (folder / name).write_text(json.dumps(document))
    return folder / name


def learned(folder: Path, name: str = "e.json") -> Path:
    """The encoding of the training rows as a file."""
    source = open_rows(folder, training())
    (folder / name).write_bytes(encoding_bytes(source.encoding))
    return folder / name


def as_rows(columns: dict[str, Any], names: list[str]) -> Any:
    return np.array([columns[name] for name in names], dtype=object).T


def pipeline_inputs(train: dict[str, Any], rows: dict[str, Any], **options: Any) -> Any:
    """The oracle: a pipeline of scikit-learn that was fitted on the training rows."""
    scaler = StandardScaler().fit(as_rows(train, NUMBERS).astype(float))
    encoder = OneHotEncoder(sparse_output=False, **options).fit(as_rows(train, CATEGORIES))
    return np.hstack(
        [
            scaler.transform(as_rows(rows, NUMBERS).astype(float)),
            encoder.transform(as_rows(rows, CATEGORIES)),
        ]
    )


def encoded(source: TableSource) -> Any:
    return source.encode(source.read(np.arange(source.n_samples)))
