"""Files that are no table encoding, and columns that an encoding cannot have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.errors import KrepesError
from tests.sources.tables.encoded_tables import open_rows, write_encoding

DAMAGES: list[tuple[str, Any, str]] = [
    ("cut", b'{"format": "krepes table enc', "is no JSON"),
    ("weights", b"\x80\x02\x8a\nl\xfc\x9cF\xf9", "is no JSON"),
    ("empty", b"", "is no JSON"),
    ("deep", b"[" * 100_000, "is no JSON"),
    ("list", [], "is no table encoding"),
    ("foreign", {"mean": [0, 1]}, "is no table encoding"),
    ("future", {"version": 2}, "version 2 of a table encoding; expected version 1; read it with"),
    ("no version", {"version": None}, "version None of a table encoding"),
    ("no columns", {"columns": []}, "'columns' is no list of columns"),
    ("key", {"scales": 1}, "unknown key 'scales'"),
    ("nameless", {"columns": [{"kind": "numeric"}]}, "column 0 (from 0) has no name"),
    ("no mapping", {"columns": ["age"]}, "column 0 (from 0) has no name"),
]
COLUMNS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "text"}, "column 'age': kind 'text'; expected numeric or categorical"),
    ({"mean": None}, "column 'age': mean is None; expected a finite number"),
    ({"mean": "4"}, "column 'age': mean is '4'"),
    ({"mean": True}, "column 'age': mean is True"),
    ({"mean": float("nan")}, "column 'age': mean is nan"),
    ({"mean": 10**400}, "column 'age': mean is 1000"),
    ({"scale": float("inf")}, "column 'age': scale is inf"),
    ({"scale": -1}, "column 'age': scale -1; expected 0 or more"),
    ({"fill": float("nan")}, "column 'age': fill is nan"),
    ({"std": 2}, "column 'age': unknown key 'std'; expected only fill, kind, mean, name, scale"),
    ({"kind": "categorical"}, "column 'age': unknown key 'mean'"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGES, ids=[d[0] for d in DAMAGES])
def test_files_that_are_no_encoding(tmp_path: Path, name: str, content: Any, message: str) -> None:
    column = {"name": "age", "kind": "numeric", "mean": 0, "scale": 1}
    if isinstance(content, dict) and name != "foreign":
        known = {"format": "krepes table encoding", "version": 1, "columns": [column]}
        content = known | content
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "e.json").write_bytes(data)
    one_line(tmp_path, message)


@pytest.mark.parametrize(("change", "message"), COLUMNS)
def test_columns_that_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_encoding(tmp_path, [{"name": "age", "kind": "numeric", "mean": 0, "scale": 1} | change])
    one_line(tmp_path, message)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([{"name": "a", "kind": "categorical", "categories": []}], "no categories"),
        ([{"name": "a", "kind": "categorical", "categories": "xy"}], "categories is no list"),
        ([{"name": "a", "kind": "categorical", "categories": [["x"]]}], "category ['x']"),
        (
            [{"name": "a", "kind": "categorical", "categories": ["x", "y"], "dropped": ["x"]}],
            "two categories are named 'x'",
        ),
        (
            [{"name": "a", "kind": "numeric", "mean": 0, "scale": 1}] * 2,
            "two columns are named 'a'",
        ),
    ],
)
def test_lists_that_cannot_be(tmp_path: Path, columns: Any, message: str) -> None:
    write_encoding(tmp_path, columns)
    one_line(tmp_path, message)


def one_line(folder: Path, message: str) -> None:
    with pytest.raises(KrepesError) as raised:
        open_rows(folder, {"age": [1.0, 2.0], "kind": ["p", "q"]}, encoding="e.json")
    line = str(raised.value)
    assert message in line
    assert "e.json" in line
    assert "\n" not in line
