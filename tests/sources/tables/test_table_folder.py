"""Folders of tables against pyarrow.dataset, which reads them whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.new_samples import read_new_samples
from krepes_ooc.sources.open import open_source
from krepes_ooc.sources.tables import table_folder

N = 60


def frame() -> pd.DataFrame:
    draw = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "x": draw.normal(size=N),
            "k": draw.choice(["a", "b", "c"], N),
            "year": draw.choice([2019, 2020, 2021], N),
            "town": draw.choice(["Ulm", "Bad Tölz", "a/b"], N),
        }
    )


def opened(folder: Path, **keys: Any) -> Source:
    values = {"kind": "table", "path": "d", **keys}
    return open_source(read_settings(SourceSpec, values, "source"), folder, folder / "cache")


def texts(source: Source, index: int) -> list[str]:
    codes = source.read(np.arange(source.n_samples))[:, index].astype(int)
    return [source.columns[index].categories[code] for code in codes]


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_hive_folders(tmp_path: Path, form: str) -> None:
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    schema = pa.schema([("year", pa.int64()), ("town", pa.string())])
    hive = ds.partitioning(schema, flavor="hive")
    ds.write_dataset(table, tmp_path / "d", format=form, partitioning=hive)
    (tmp_path / "d" / "_SUCCESS").write_text("")
    (tmp_path / "d" / ".x.crc").write_text("")
    truth = ds.dataset(tmp_path / "d", format=form, partitioning=hive).to_table().to_pandas()
    truth = truth.sort_values("x").reset_index(drop=True)
    source = opened(tmp_path)
    assert [(c.name, c.kind) for c in source.columns] == [
        ("x", "numeric"),
        ("k", "categorical"),
        ("year", "numeric"),
        ("town", "categorical"),
    ]
    raw = source.read(np.arange(N))
    order = np.argsort(raw[:, 0])
    np.testing.assert_array_equal(raw[order, 0], truth["x"])
    np.testing.assert_array_equal(raw[order, 2], truth["year"])
    assert [texts(source, 1)[i] for i in order] == truth["k"].tolist()
    assert [texts(source, 3)[i] for i in order] == truth["town"].tolist()
    assert source.warnings == ()
    # The order of rows is that of the names of the files.
    assert raw[:, 2].tolist() == sorted(raw[:, 2].tolist())
    # Columns of folders can be declared like others.
    declared = opened(tmp_path, label="town", categorical=["year"])
    assert set(declared.classes) == {"Ulm", "Bad Tölz", "a/b"}
    assert declared.columns[2].categories == ("2019", "2020", "2021")


@pytest.mark.parametrize(
    ("folders", "kind", "want"),
    [
        (["m=01", "m=02"], "numeric", [1, 2]),
        (["m=a", "m=2"], "categorical", ["2", "a"]),
        (["m=7", "m=__HIVE_DEFAULT_PARTITION__"], "categorical", ["7", "(missing)"]),
        (["m=a%3Db", "m=c d"], "categorical", ["a=b", "c d"]),
    ],
)
def test_values_of_folders(tmp_path: Path, folders: list[str], kind: str, want: list[Any]) -> None:
    for i, name in enumerate(folders):
        (tmp_path / "d" / name).mkdir(parents=True)
        pq.write_table(pa.table({"x": [i + 0.5, i + 0.75]}), tmp_path / "d" / name / "p.parquet")
    declared = {"categorical": ["m"]} if "(missing)" in want else {}
    source = opened(tmp_path, **declared)
    assert source.columns[1].kind == kind
    found = source.read(np.arange(4))[:, 1]
    if kind == "numeric":
        assert sorted(set(found.tolist())) == want
        assert opened(tmp_path, categorical=["m"]).columns[1].categories == ("01", "02")
    else:
        assert list(source.columns[1].categories) == want
        assert sorted(set(found.tolist())) == [0, 1]


def test_part_files_without_keys(tmp_path: Path) -> None:
    (tmp_path / "d" / "north").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1, 2], "k": ["a", "b"]}), tmp_path / "d" / "1.parquet")
    other = pa.table({"k": pa.array(["c", None]).dictionary_encode(), "x": [0.5, 4]})
    pq.write_table(other, tmp_path / "d" / "north" / "2.parquet")
    (tmp_path / "d" / "note.txt").write_text("")
    source = opened(tmp_path)
    assert source.read(np.arange(4)).tolist() == [[1, 0], [2, 1], [0.5, 2], [4, 3]]
    assert any("'north'" in line and "key=value" in line for line in source.warnings)
    assert any("1 other files are left out: .txt 1" in line for line in source.warnings)


def test_links_upwards_end(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "d" / "1.parquet")
    (tmp_path / "d" / "again").symlink_to(tmp_path / "d")
    assert opened(tmp_path).n_samples == 2


def test_a_folder_is_brought_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    for name in ("1", "2"):
        pq.write_table(pa.table({"x": [1.0, float(name)]}), tmp_path / "d" / f"{name}.parquet")
    first = opened(tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("written again")

    with monkeypatch.context() as patch:
        patch.setattr(table_folder, "write_parquet", never)
        assert opened(tmp_path).fingerprint() == first.fingerprint()
    pq.write_table(pa.table({"x": [1.0, 9.0]}), tmp_path / "d" / "2.parquet")
    changed = opened(tmp_path)
    assert changed.fingerprint() != first.fingerprint()
    assert changed.read(np.arange(4))[:, 0].tolist() == [1, 1, 1, 9]


def test_new_rows_name_the_columns_of_folders(tmp_path: Path) -> None:
    for year in (2019, 2020):
        (tmp_path / "d" / f"year={year}").mkdir(parents=True)
        path = tmp_path / "d" / f"year={year}" / "p.csv"
        path.write_text(f"x,k\n1.5, a\n{year}.5,b\n")
    source = opened(tmp_path)
    (tmp_path / "new.csv").write_text("year,k,x\n2020, b,2020.5\n")
    spec = read_settings(SourceSpec, {"kind": "table", "path": "d"}, "source")
    new = read_new_samples(source, spec, tmp_path / "new.csv")
    assert np.array_equal(new.raw, source.read(np.array([3])))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.txt": "a"}, "no table in this folder; expected files named .parquet"),
        ({"1.csv": "x\n1\n2\n", "2.tsv": "x\n1\n"}, None),
        ({"1.csv": "x,y\n1,2\n", "2.csv": "x\n1\n"}, "only one of them has the column 'y'"),
        ({"1.csv": "x\n1\n", "2.csv": "x\nword\n"}, "'x' is int64 in 1.csv, string in 2.csv"),
        ({"a=1/1.csv": "x\n1\n", "b=1/2.csv": "x\n1\n"}, "a=1/1.csv lies in folders of ['a']"),
        ({"x=1/1.csv": "x\n1\n"}, "column 'x' is in the files and in the names of folders"),
        ({"1.csv": "x\n1\n", "2.csv": ""}, "2.csv: cannot be converted into the cache: Empty CSV"),
    ],
)
def test_folders_that_cannot_be(tmp_path: Path, files: dict[str, str], message: str | None) -> None:
    for name, text in files.items():
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if message is None:
        assert opened(tmp_path).n_samples == 3
        return
    with pytest.raises(SourceError) as caught:
        opened(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_formats_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.csv").write_text("x\n1\n")
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "d" / "2.parquet")
    with pytest.raises(SourceError, match=r"several formats: 1.csv and 2.parquet"):
        opened(tmp_path)
    with pytest.raises(SourceError, match=r"no such file"):
        opened(tmp_path, path="e")
