"""Indices that data frames leave in their files are no inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.sources.written_tables import NUMBERS, N, everything, kinds, opened, warned, write

SQUARES = [i * i for i in range(N)]


def frame() -> pd.DataFrame:
    table = pd.DataFrame({"x": NUMBERS, "c": list("ab") * 20, "l": [0, 1] * 20})
    return table[table.x > -1]


@pytest.mark.parametrize("index", ["filtered", "named", "two levels", "range"])
@pytest.mark.parametrize("form", ["parquet", "feather"])
def test_an_index_is_no_input(tmp_path: Path, index: str, form: str) -> None:
    table = frame()
    if index == "named":
        table = table.set_index(pd.Index(SQUARES[: len(table)], name="row"))
    elif index == "two levels":
        table.index = pd.MultiIndex.from_arrays([SQUARES[: len(table)], list(table.c)])
    elif index == "range":
        table = table.reset_index(drop=True)
    if form == "parquet":
        table.to_parquet(tmp_path / "d.parquet")
    else:
        arrow = pa.Table.from_pandas(table)
        with pa.ipc.new_file(str(tmp_path / "d.feather"), arrow.schema) as writer:
            writer.write_table(arrow)
    source = opened(tmp_path, path=f"d.{form}", label="l")
    assert kinds(source) == [("x", "numeric"), ("c", "categorical")]
    assert everything(source)[:, 0].tolist() == table.x.tolist()
    names = {
        "filtered": ["__index_level_0__"],
        "named": ["row"],
        "two levels": ["__index_level_0__", "__index_level_1__"],
        "range": [],
    }[index]
    assert all(warned(source, repr(name), "left out as an index") for name in names)
    assert bool(source.warnings) == bool(names)
    if index == "named":
        for keys in ({"numeric": ["row"]}, {"audit_only": ["row"]}):
            declared = opened(tmp_path, path=f"d.{form}", label="l", **keys)
            assert everything(declared)[:, 2].tolist() == SQUARES[: len(table)]
        named = opened(tmp_path, path=f"d.{form}", label="l", name="row")
        assert named.names(np.arange(2)) == ["0", "1"]


@pytest.mark.parametrize("keys", [{}, {"name": "id"}, {"label": "l"}, {"label": "l", "name": "id"}])
@pytest.mark.parametrize("header", ["", "Unnamed: 0", '""'])
def test_a_column_without_a_name_is_left_out(
    tmp_path: Path, header: str, keys: dict[str, Any]
) -> None:
    columns = {header: range(N), "id": [f"u{i}" for i in range(N)], "x": NUMBERS, "l": [0, 1] * 20}
    write(tmp_path, {name: list(values) for name, values in columns.items()})
    source = opened(tmp_path, **keys)
    name = header.strip('"')
    assert name not in [column.name for column in source.columns]
    assert warned(source, repr(name), "left out")
    declared = opened(tmp_path, **keys, audit_only=[name])
    assert [c.shown for c in declared.columns if c.name == name] == [False]
    assert everything(declared)[:, 0].tolist() == list(range(N))
    assert not warned(declared, "left out")


def test_several_columns_without_names(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(",,x,\n" + "".join(f"{i},a,{i}.5,\n" for i in range(N)))
    source = opened(tmp_path)
    assert kinds(source) == [("x", "numeric")]
    assert everything(source)[:, 0].tolist() == [i + 0.5 for i in range(N)]
    assert warned(source, "3 columns without a name", "left out")
