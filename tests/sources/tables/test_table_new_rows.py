"""New rows of a table are read as its own rows are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.new_samples import NewSamples, read_new_samples
from krepes_ooc.sources.open import open_source
from tests.sources.written_tables import NUMBERS, N, opened, spec_of, write


def new_rows(folder: Path, text: str, name: str = "new.csv", **keys: Any) -> NewSamples:
    spec = spec_of(**keys)
    source = open_source(spec, folder, folder / "cache")
    (folder / name).write_bytes(text.encode(spec.charset or "utf-8"))
    return read_new_samples(source, spec, folder / name)


def test_new_rows_are_trimmed_like_the_source(tmp_path: Path) -> None:
    rows = [f"{v}, {('State', 'Private', 'Self')[i % 3]}, 0{i % 2}" for i, v in enumerate(NUMBERS)]
    (tmp_path / "d.csv").write_text("age, work, l\n" + "\n".join(rows) + "\n")
    source = opened(tmp_path, label="l")
    assert [c.name for c in source.columns] == ["age", "work"]
    for header in ("age,work,l", "age, work, l"):
        new = new_rows(tmp_path, f"{header}\n{rows[3]}\n", label="l")
        assert np.array_equal(new.raw, source.read(np.array([3])))
        assert new.labels.tolist() == source.labels(np.array([3])).tolist()
    text = json.dumps({"age": NUMBERS[3], "work": " State ", "l": "01"})
    new = new_rows(tmp_path, text, "new.json", label="l")
    assert np.array_equal(new.raw, source.read(np.array([3])))


def test_new_rows_follow_the_options_of_the_source(tmp_path: Path) -> None:
    rows = [f"{str(v).replace('.', ',')};Zürich {i % 2};0{i % 3}" for i, v in enumerate(NUMBERS)]
    text = "x;town;k\n" + "\n".join(rows) + "\n"
    (tmp_path / "d.csv").write_bytes(text.encode("latin-1"))
    keys: dict[str, Any] = {"delimiter": ";", "decimal": ",", "charset": "latin-1"}
    keys |= {"categorical": ["k"], "missing": ["?"]}
    source = opened(tmp_path, **keys)
    new = new_rows(tmp_path, "k;x;town\n" + "02;0,125;Zürich 1\n", **keys)
    assert new.raw.tolist() == [[0.125, 1, 2]]
    assert [c.name for c in source.columns] == ["x", "town", "k"]
    with pytest.raises(DataError, match=r"column 'x': a missing value in a numeric"):
        new_rows(tmp_path, "x;town;k\n?;Zürich 1;02\n", **keys)
    with pytest.raises(DataError, match=r"'2' in column 'k'.*expected one of 00, 01, 02"):
        new_rows(tmp_path, "x;town;k\n1,5;Zürich 1;2\n", **keys)
    (tmp_path / "new.json").write_text('{"x": "0,125", "town": "Zürich 1", "k": "02"}')
    new = read_new_samples(source, spec_of(**keys), tmp_path / "new.json")
    assert new.raw.tolist() == [[0.125, 1, 2]]


@pytest.mark.parametrize("word", ["NA", "null", "nan", "None", "True", "1", "2020-01-01"])
def test_a_word_is_a_category_in_new_rows_too(tmp_path: Path, word: str) -> None:
    words = [(word, "US", "DE", "")[i % 4] for i in range(N)]
    write(tmp_path, {"x": NUMBERS, "cc": words})
    source = opened(tmp_path)
    column = source.columns[1]
    for text, name in (
        (f"x,cc\n0.5,{word}\n", "new.csv"),
        (f'{{"x": 0.5, "cc": "{word}"}}', "n.json"),
    ):
        new = new_rows(tmp_path, text, name)
        assert column.categories[int(new.raw[0, 1])] == word
    for text, name in (("x,cc\n0.5,\n", "new.csv"), ('{"x": 0.5, "cc": null}', "n.json")):
        assert column.categories[int(new_rows(tmp_path, text, name).raw[0, 1])] == "(missing)"


def test_missing_words_of_codes_in_new_rows(tmp_path: Path) -> None:
    write(tmp_path, {"x": NUMBERS, "k": [("1", "2", "NA")[i % 3] for i in range(N)]})
    for text, name in (("x,k\n1,NA\n", "new.csv"), ('{"x": 1, "k": "NA"}', "new.json")):
        assert new_rows(tmp_path, text, name, categorical=["k"]).raw[0, 1] == 2
    assert new_rows(tmp_path, '{"x": 1, "k": 2}', "new.json", categorical=["k"]).raw[0, 1] == 1


def test_new_rows_of_a_table_without_names(tmp_path: Path) -> None:
    lines = [f"{v},{'ab'[i % 2]},0{i % 2}" for i, v in enumerate(NUMBERS)]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    keys = {"header": False, "label": "f2"}
    source = opened(tmp_path, **keys)
    new = new_rows(tmp_path, lines[5] + "\n", **keys)
    assert np.array_equal(new.raw, source.read(np.array([5])))
    assert new.labels.tolist() == [1]
    # Without the label all columns would move.
    with pytest.raises(DataError, match="2 columns; expected 3 as in the source"):
        new_rows(tmp_path, "1.5,b\n", **keys)


def test_new_rows_of_a_parquet_file_keep_their_texts(tmp_path: Path) -> None:
    table = {"k": [" a", "b"] * 20, "x": NUMBERS, "u": [True, False] * 20}
    pq.write_table(pa.table(table), tmp_path / "d.parquet")
    for text, name in (
        ("k,x,u\n a,0.5,True\n", "new.csv"),
        ('{"k": " a", "x": 0.5, "u": true}', "new.json"),
    ):
        new = new_rows(tmp_path, text, name, path="d.parquet")
        assert new.raw.tolist() == [[0, 0.5, 1]]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("new.csv", "x;l\n1;0\n", 'source.delimiter: ";"'),
        ("new.csv", "x,l\nold,0\n", "'old' in a numeric column"),
        ("new.csv", "x,l\n1,0,2\n", "Expected 2 columns, got 3"),
        ("new.csv", "x,l\n1,7\n", "label '7' in column 'l'; expected one of 0, 1"),
        ("new.json", '{"x": 1, "l": 7}', "label '7' in column 'l'"),
        ("new.json", '{"x": [1], "l": 0}', "[1] in column 'x'"),
        ("new.json", '{"x": {"a": 1}}', "in column 'x'"),
    ],
)
def test_new_rows_that_cannot_be(tmp_path: Path, name: str, text: str, words: str) -> None:
    write(tmp_path, {"x": NUMBERS, "l": [0, 1] * 20})
    with pytest.raises((DataError, SourceError)) as caught:
        new_rows(tmp_path, text, name, label="l")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_rows_with_other_keys_are_read_whole(tmp_path: Path) -> None:
    write(tmp_path, {"x": NUMBERS, "k": ["a", "b", "", "b"] * 10, "l": [0, 1] * 20})
    text = '[{"x": 1, "k": "a"}, {"x": 2, "k": "b", "l": 1}, {"x": 3}]'
    new = new_rows(tmp_path, text, "new.json", label="l")
    assert new.labels.tolist() == [-1, 1, -1]
    assert new.raw.tolist() == [[1, 0], [2, 1], [3, 2]]
