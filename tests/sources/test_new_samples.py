"""New samples from files: the same raw values as the source gives, or a message that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from krepes_ooc.errors import DataError, KrepesError, UsageError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.new_samples import read_new_samples
from krepes_ooc.sources.open import open_source

TABLE = "age,town,score,kind,id\n30,x,0.5,p,first\n40,y,1.5,q,second\n50,z,2.5,p,third\n"
TABLE_SPEC: dict[str, Any] = {
    "path": "rows.csv",
    "label": "kind",
    "name": "id",
    "audit_only": ("score",),
}
CODE = """
import numpy as np
class Words:
    def __init__(self, bad=False):
        self.bad = bad
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return np.full(3, i)
    def from_text(self, text):
        return np.full(3 + self.bad, len(text))
class Mute(Words):
    from_text = None
"""


@pytest.fixture
def table(tmp_path: Path) -> tuple[Source, SourceSpec]:
    (tmp_path / "rows.csv").write_text(TABLE)
    spec = SourceSpec(kind="table", **TABLE_SPEC)
    return open_source(spec, tmp_path, tmp_path / "cache"), spec


def digits() -> tuple[Source, SourceSpec]:
    spec = SourceSpec(kind="digits", limit=5)
    return open_source(spec, Path(), Path()), spec


def words(folder: Path, name: str = "Words", **arguments: Any) -> tuple[Source, SourceSpec]:
    (folder / "data.py").write_text(CODE)
    spec = SourceSpec(kind="factory", factory=f"data.py:{name}", arguments=arguments)
    return open_source(spec, folder, folder / "cache"), spec


@pytest.mark.parametrize("form", ["csv", "tsv", "object", "list"])
def test_rows_are_those_of_the_source(
    tmp_path: Path, table: tuple[Source, SourceSpec], form: str
) -> None:
    source, spec = table
    row = {"town": "y", "age": 40, "score": 1.5, "kind": "q", "id": "second"}
    path = tmp_path / f"new.{form if form.endswith('sv') else 'json'}"
    mark = {"csv": ",", "tsv": "\t"}.get(form)
    if mark:
        path.write_text(mark.join(row) + "\n" + mark.join(map(str, row.values())) + "\n")
    else:
        path.write_text(json.dumps(row if form == "object" else [row]))
    new = read_new_samples(source, spec, path)
    at = np.array([1])
    np.testing.assert_array_equal(new.raw, source.read(at))
    assert new.names == source.names(at)
    assert new.labels.tolist() == source.labels(at).tolist()


def test_what_the_network_never_sees_may_be_missing(
    tmp_path: Path, table: tuple[Source, SourceSpec]
) -> None:
    source, spec = table
    path = tmp_path / "new.json"
    path.write_text('{"town": "x", "age": 30}')
    new = read_new_samples(source, spec, path)
    assert np.isnan(new.raw[0]).tolist() == [c.name == "score" for c in source.columns]
    assert (new.names, new.labels.tolist()) == (["new.json"], [-1])


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("a.json", '{"town": "x"}', DataError, "no column 'age'; expected the columns age, town"),
        ("a.json", '{"town": "w", "age": 1}', DataError, "'w' in column 'town'; expected one of"),
        ("a.json", '{"town": "x", "age": "old"}', DataError, "'old' in a numeric column"),
        ("a.json", "{", DataError, "is no JSON"),
        ("a.json", "[1, 2]", DataError, "holds no row"),
        ("a.json", "[]", DataError, "no row; expected at least one"),
        ("a.json", "\x80", DataError, "cannot be read"),
        ("a.csv", "", DataError, "cannot be read"),
        ("a.xml", "<a/>", UsageError, ".xml; expected .json, .csv, .tsv, .parquet or .arrow"),
        ("missing", None, UsageError, "no such file"),
    ],
)
def test_rows_that_cannot_be(
    tmp_path: Path,
    table: tuple[Source, SourceSpec],
    name: str,
    text: str | None,
    error: type[KrepesError],
    message: str,
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(error) as raised:
        read_new_samples(*table, tmp_path / name)
    assert message in str(raised.value)


def test_pictures(tmp_path: Path) -> None:
    source, spec = digits()
    raw = source.read(np.array([3]))
    np.save(tmp_path / "a.npy", raw[0, :, :, 0])
    np.save(tmp_path / "many.npy", np.concatenate([raw, raw]))
    Image.fromarray((raw[0, :, :, 0] * 15.9375).round().astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_new_samples(source, spec, tmp_path / "a.npy").raw, raw)
    assert read_new_samples(source, spec, tmp_path / "many.npy").names == [
        "many.npy 0",
        "many.npy 1",
    ]
    png = read_new_samples(source, spec, tmp_path / "a.png").raw
    np.testing.assert_allclose(png, raw, atol=0.04)
    assert png.shape == raw.shape


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wide.png", "image of 9 x 8 pixels; expected 8 x 8"),
        ("bright.npy", "pixels from 0 to 17; expected 0 to 16"),
        ("flat.npy", "an array of shape [64]; expected one sample [8, 8, 1]"),
        ("none.npy", "a value is NaN or infinite"),
        ("text.npy", "cannot be read"),
        ("words.npy", "<U1 values; expected numbers"),
        ("a.txt", ".txt; expected a picture or .npy"),
    ],
)
def test_pictures_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    Image.fromarray(np.zeros((9, 8), dtype=np.uint8)).save(tmp_path / "wide.png")
    np.save(tmp_path / "bright.npy", np.eye(8) * 17)
    np.save(tmp_path / "flat.npy", np.zeros(64))
    np.save(tmp_path / "none.npy", np.full((8, 8), np.nan))
    (tmp_path / "text.npy").write_text("text")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(KrepesError) as raised:
        read_new_samples(*digits(), tmp_path / name)
    assert message in str(raised.value)


def test_text_goes_through_the_data_set(tmp_path: Path) -> None:
    source, spec = words(tmp_path)
    (tmp_path / "a.txt").write_text("  two \n words ")
    new = read_new_samples(source, spec, tmp_path / "a.txt")
    assert (new.raw.tolist(), new.names) == ([[9, 9, 9]], ["two words"])
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert read_new_samples(source, spec, tmp_path / "a.json").raw.tolist() == [[1, 2, 3]]


def test_text_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(UsageError, match="has no from_text; expected a method from_text"):
        read_new_samples(*words(tmp_path, "Mute"), path)
    with pytest.raises(DataError, match=r"shape \[4\]; expected int64 of shape \[3\]"):
        read_new_samples(*words(tmp_path, bad=True), path)
    np.save(tmp_path / "rows.npy", np.zeros((4, 3), dtype=np.float32))
    spec = SourceSpec(kind="arrays", path="rows.npy")
    with pytest.raises(UsageError, match="takes no text"):
        read_new_samples(open_source(spec, tmp_path, tmp_path), spec, path)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="expected UTF-8"):
        read_new_samples(*words(tmp_path), path)
    (tmp_path / "a.xml").write_text("")
    with pytest.raises(UsageError, match=r"\.xml; expected \.npy, \.json or \.txt"):
        read_new_samples(*words(tmp_path), tmp_path / "a.xml")


# Rows in files that have types of their own


def write_rows(path: Path, columns: dict[str, Any]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("kept", ["csv", "parquet"])
def test_rows_of_typed_files_are_those_of_the_source(
    tmp_path: Path, kept: str, suffix: str
) -> None:
    path = tmp_path / f"rows.{kept}"
    (tmp_path / "rows.csv").write_text(TABLE)
    if kept == "parquet":
        pq.write_table(pa.csv.read_csv(tmp_path / "rows.csv"), path)
    spec = SourceSpec(kind="table", **TABLE_SPEC | {"path": path.name})
    source = open_source(spec, tmp_path, tmp_path / "cache")
    # Spaces are removed as from the source, if that is a CSV file; numbers have other types.
    pad = " " if kept == "csv" else ""
    columns = {
        "id": ["second", "third"],
        "kind": ["q", "p"],
        "town": pa.array([f"{pad}y", f"z{pad}"]).dictionary_encode(),
        "age": pa.array([40, 50], pa.int8()),
        "score": pa.array([1.5, 2.5], pa.float32()),
    }
    new = read_new_samples(source, spec, write_rows(tmp_path / f"new.{suffix}", columns))
    at = np.array([1, 2])
    np.testing.assert_array_equal(new.raw, source.read(at))
    assert new.names == source.names(at)
    assert new.labels.tolist() == source.labels(at).tolist()


def test_codes_of_typed_files_are_spelled_as_in_the_source(tmp_path: Path) -> None:
    rows = {"x": [0.5, 1.5, -9.0], "code": [7, 12, None], "flag": [True, False, True]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    spec = SourceSpec(
        kind="table", path="rows.parquet", categorical=("code",), missing=(12,), exclude=()
    )
    source = open_source(spec, tmp_path, tmp_path / "cache")
    # Stored as floats, as pandas does beside a missing number; 12 stands for none.
    columns = rows | {"code": [7.0, 12.0, None]}
    new = read_new_samples(source, spec, write_rows(tmp_path / "new.parquet", columns))
    np.testing.assert_array_equal(new.raw, source.read(np.arange(3)))
    assert source.columns[1].categories == ("7", "(missing)")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"age": ["old"]}, "'old' in a numeric column"),
        ({"age": [None]}, "a missing value in a numeric column"),
        ({"age": [[1, 2]]}, r"column 'age' has type list<.*expected double as in the source"),
        ({"town": [b"y"]}, r"column 'town' has type binary; expected string as in the source"),
        ({"town": ["far"]}, "'far' in column 'town'"),
        ({"town": [3]}, "'3' in column 'town'"),
        ({"kind": ["r"]}, "label 'r' in column 'kind'"),
    ],
)
def test_rows_of_typed_files_that_do_not_fit(
    tmp_path: Path, table: tuple[Source, SourceSpec], columns: dict[str, Any], message: str
) -> None:
    source, spec = table
    path = write_rows(tmp_path / "new.parquet", {"age": [30], "town": ["x"]} | columns)
    with pytest.raises(DataError, match=message) as error:
        read_new_samples(source, spec, path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_typed_files_that_are_none(
    tmp_path: Path, table: tuple[Source, SourceSpec], suffix: str
) -> None:
    source, spec = table
    path = tmp_path / f"new.{suffix}"
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(DataError, match=rf"new.{suffix}: cannot be read: ") as error:
        read_new_samples(source, spec, path)
    assert "\n" not in str(error.value)
