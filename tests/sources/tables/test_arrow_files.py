"""Arrow and Parquet files as writers leave them: empty parts, unusual types, old formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source

X = np.random.default_rng(3).normal(size=40)


def opened(folder: Path, path: str, **keys: Any) -> Source:
    spec = read_settings(SourceSpec, {"kind": "table", "path": path, **keys}, "source")
    return open_source(spec, folder, folder / "cache")


def shown(source: Source) -> Any:
    return source.encode(source.read(np.arange(source.n_samples)))


def standardised(values: Any) -> Any:
    frame = pd.DataFrame(values)
    return ((frame - frame.mean()) / frame.std(ddof=0)).to_numpy(dtype=np.float32)


@pytest.mark.parametrize("empty", [(0,), (1,), (2,), (0, 1, 3)], ids=str)
def test_empty_row_groups_hold_no_rows(tmp_path: Path, empty: tuple[int, ...]) -> None:
    """Writers that filter leave row groups without a row, before, between and behind others."""
    full = [pa.table({"x": X[:25]}), pa.table({"x": X[25:]})]
    for place in empty:
        full.insert(place, full[0].slice(0, 0))
    with pq.ParquetWriter(tmp_path / "d.parquet", full[0].schema) as writer:
        for part in full:
            writer.write_table(part)
    source = opened(tmp_path, "d.parquet")
    np.testing.assert_allclose(shown(source), standardised(X), atol=1e-6)
    some = np.array([39, 0, 25, 24])
    np.testing.assert_array_equal(source.read(some)[:, 0], X[some])


def test_a_file_of_empty_row_groups_has_no_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": X[:0]}), tmp_path / "d.parquet")
    with pytest.raises(SourceError, match="no rows"):
        opened(tmp_path, "d.parquet")


def unusual() -> dict[str, Any]:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([20, 40], pa.int32()), pa.array([1.5, 2.5]))
    return {
        "run_end_encoded": runs,
        "month_day_nano_interval": pa.array([(1, 2, 3)] * 40, pa.month_day_nano_interval()),
        "union": pa.UnionArray.from_sparse(pa.array([0] * 40, pa.int8()), [pa.array(range(40))]),
    }


@pytest.mark.parametrize("kind", ["run_end_encoded", "month_day_nano_interval", "union"])
@pytest.mark.parametrize("stream", [False, True])
def test_types_that_cannot_be_converted_are_named(tmp_path: Path, kind: str, stream: bool) -> None:
    table = pa.table({"x": X, "odd": unusual()[kind]})
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(tmp_path / "d.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(SourceError, match=rf"column 'odd' has type .*{kind}"):
        opened(tmp_path, "d.arrow")


def test_the_first_version_of_feather_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.feather").write_bytes(b"FEA1" + bytes(60) + b"FEA1")
    with pytest.raises(SourceError, match="version 1 of Feather"):
        opened(tmp_path, "d.feather")
    pf.write_feather(pa.table({"x": X}), tmp_path / "d.feather")
    np.testing.assert_allclose(shown(opened(tmp_path, "d.feather")), standardised(X), atol=1e-6)
