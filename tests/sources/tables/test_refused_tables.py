"""Tables that are refused: bad cells, declarations that do not fit, damage, changes under a run."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pytest

from krepes_ooc.errors import DataError, KrepesError, SourceError
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.open import open_source
from tests.sources.people_table import ROWS, open_people, people, write


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_a_bad_number_is_named(tmp_path: Path, bad: float | None) -> None:
    columns = people()
    wage = columns["wage"].tolist()
    wage[321] = bad
    columns["wage"] = wage
    with pytest.raises(DataError, match=r"row 321 \(from 0\), column 'wage'.*finite number"):
        open_people(tmp_path, columns)
    limited = open_people(tmp_path, columns, limit=321)
    assert limited.read(np.asarray([320])).shape == (1, 7)
    assert open_people(tmp_path, columns, exclude=["wage", "group"]).n_samples == ROWS


def test_text_in_a_numeric_column_is_named(tmp_path: Path) -> None:
    columns = people()
    columns["age"] = ["1", "2"] * 349 + ["?", "3"]
    with pytest.raises(DataError, match=r"row 698 .*'\?' in a numeric column"):
        open_people(tmp_path, columns, numeric=["age"])


def wrong_cases() -> dict[str, tuple[dict[str, Any], str]]:
    none = {"label": None, "name": None, "audit_only": None, "exclude": None}
    day = [datetime.date(2020, 1, 1)] * 3
    return {
        "no file": ({"path": "absent.parquet"}, r"absent.parquet: no such file; expected an"),
        "no path": ({"path": ""}, r"source: key 'path' is missing; expected a path"),
        "label": ({"label": "incom"}, r"no column 'incom' \(source.label\); expected one of 'age'"),
        "exclude": ({"exclude": ["x"]}, r"no column 'x' \(source.exclude\)"),
        "both": ({"numeric": ["age"], "categorical": ["age"]}, r"'age' is both categorical and"),
        "type": ({"columns": {"d": day, "x": [1, 2, 3]}, **none}, r"'d' has type date32.*exclude"),
        "many": (
            {"columns": {"k": [f"k{i}" for i in range(1025)]}, **none},
            r"column 'k' has more than 1024 categories; expected at most 1024; list it under",
        ),
        "empty": ({"columns": {"x": pa.array([], pa.int64())}, **none}, r"no rows; expected at"),
        "nothing shown": (
            {"columns": {"x": [1, 2]}, **none, "audit_only": ["x"]},
            r"no column is left for the network",
        ),
        "key": ({"factory": "a:b"}, r"key 'factory' means nothing for kind 'table'; expected only"),
        "huge": (
            {"columns": {"x": [1e308, -1e308, 1e308]}, **none},
            r"numbers of column 'x' are too large to standardise",
        ),
    }


@pytest.mark.parametrize("case", wrong_cases())
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_wrong_declarations_are_told_in_one_line(tmp_path: Path, case: str) -> None:
    keys, message = wrong_cases()[case]
    columns = keys.pop("columns", None)
    with pytest.raises(KrepesError, match=message) as caught:
        open_people(tmp_path, columns, **keys)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (1 if case == "huge" else 2)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,x\n1,2\n")
    with pytest.raises(SourceError, match=r"two columns are named 'x'; expected unique names"):
        open_source(SourceSpec(kind="table", path="t.csv"), tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"PAR1 nonsense", r"t.parquet: cannot be read"),
        ("t.csv", b"", r"t.csv: cannot be converted into the cache: Empty CSV"),
        ("t.csv", b"a,b\n1,2\n3\n", r"t.csv: cannot be converted.*Expected 2 columns, got 1"),
        ("t.csv", b"a,b\n", r"t.csv: no rows; expected at least one row"),
        ("t.arrow", b"nonsense", r"t.arrow: cannot be converted"),
        ("t.xlsx", b"", r"t.xlsx: unknown kind of table; expected a file named .parquet"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_source(SourceSpec(kind="table", path=name), tmp_path, tmp_path / "cache")
    left = [path for path in (tmp_path / "cache").glob("*") if path.suffix != ".json"]
    assert not left


def test_a_table_that_changes_while_it_is_read(tmp_path: Path) -> None:
    source = open_people(tmp_path)
    write(tmp_path, people(ROWS + 1))
    with pytest.raises(DataError, match="the table changed while it was read; start again"):
        source.read(np.arange(3))


def test_a_category_that_was_not_scanned(tmp_path: Path) -> None:
    source = open_people(tmp_path)
    few = [dataclasses.replace(c, categories=c.categories[:1]) for c in source.columns]
    source.columns = tuple(few)
    with pytest.raises(DataError, match="the table changed while it was read"):
        source.read(np.arange(3))


def test_damaged_pages_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"x": np.random.default_rng(1).normal(size=5000)}, group=1000)
    content = bytearray(path.read_bytes())
    content[2000:9000] = bytes(7000)
    path.write_bytes(content)
    with pytest.raises(DataError, match="row group 0 cannot be read"):
        open_source(SourceSpec(kind="table", path="t.parquet"), tmp_path, tmp_path / "cache")


def test_an_unwritable_cache_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"x": [1.5]})
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(SourceError, match="cannot write the cache"):
        open_source(SourceSpec(kind="table", path="t.parquet"), tmp_path, tmp_path / "cache")
