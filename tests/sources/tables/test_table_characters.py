"""Separators and character encodings of tables: found, declared or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from krepes_ooc.errors import DataError
from krepes_ooc.sources.tables import parquet
from tests.sources.written_tables import (
    NUMBERS,
    N,
    everything,
    kinds,
    label_texts,
    opened,
    refusal,
    write,
)


@pytest.mark.parametrize("split", [";", "\t", "|", " "])
def test_one_wide_column_asks_for_the_delimiter(tmp_path: Path, split: str) -> None:
    columns: dict[str, list[Any]] = {"x": NUMBERS, "y": [-v for v in NUMBERS], "z": NUMBERS}
    write(tmp_path, columns, split=split)
    message = refusal(tmp_path)
    shown = split.replace("\t", r"\t")
    assert "d.csv: one column" in message
    assert f'set source.delimiter: "{shown}"' in message
    source = opened(tmp_path, delimiter=split)
    assert everything(source)[:, 1].tolist() == columns["y"]


def test_one_column_of_texts_stays(tmp_path: Path) -> None:
    write(tmp_path, {"word": ["a;b", "c", "d e", "f"] * 10})
    assert opened(tmp_path).columns[0].categories == ("a;b", "c", "d e", "f")
    write(tmp_path, {"x;y": ["1;2", "3;4"]})
    assert "source.delimiter" in refusal(tmp_path)
    # The recipe says that the separator is the comma all the same.
    assert kinds(opened(tmp_path, delimiter=",")) == [("x;y", "categorical")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("my.tsv.csv", ","),
        ("my.csv.tsv", "\t"),
        ("MY.CSV", ","),
        ("v1.2.csv", ","),
        ("my.tsv.csv.gz", ","),
        ("my.csv.tsv.gz", "\t"),
        ("my.csv.bz2", ","),
    ],
)
def test_the_last_suffix_says_the_separator(tmp_path: Path, name: str, split: str) -> None:
    plain = write(tmp_path, {"x": NUMBERS, "y": [-v for v in NUMBERS]}, "plain", split)
    with pa.output_stream(str(tmp_path / name), compression="detect") as stream:
        stream.write(plain.read_bytes())
    assert everything(opened(tmp_path, path=name))[:, 1].tolist() == [-v for v in NUMBERS]


@pytest.mark.parametrize("delimiter", ["||", ", ", "ab", '"', "\n"])
def test_a_delimiter_is_one_character(tmp_path: Path, delimiter: str) -> None:
    write(tmp_path, {"x": NUMBERS, "l": NUMBERS}, split="||")
    message = refusal(tmp_path, delimiter=delimiter)
    assert f"source.delimiter is {delimiter!r}" in message
    assert "one character" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x;l\n0,5;1\n1,5;2\n", ['set source.delimiter: ";"']),
        ("sep=;\nx;y\n1;2\n", ["only names the separator", "remove that line"]),
        ("x,y\n1,2,3\n4,5,6\n", ["Row #2: Expected 2 columns, got 3", "name every column"]),
        ("x,y\n1,2\n3,4\n5\n", ["Row #4: Expected 2 columns, got 1"]),
    ],
)
def test_rows_of_other_lengths(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "d.csv").write_text(text)
    message = refusal(tmp_path)
    assert all(word in message for word in ["d.csv", *words])


@pytest.mark.parametrize("charset", ["latin-1", "cp1252", "utf-16", "utf-8-sig", "shift-jis"])
def test_character_encodings(tmp_path: Path, charset: str) -> None:
    words = ["東京", "b"] if charset == "shift-jis" else ["Zürich", "b"]
    labels = [words[i % 2] for i in range(N)]
    write(tmp_path, {"x": NUMBERS, words[0]: labels, "l": labels}, charset=charset)
    source = opened(tmp_path, label="l", charset=charset)
    assert sorted(source.classes) == sorted(words)
    assert label_texts(source) == labels
    assert [column.name for column in source.columns] == ["x", words[0]]
    assert source.columns[1].categories == tuple(sorted(words))


@pytest.mark.parametrize("declared", [{"label": "l"}, {"name": "l"}, {"categorical": ["l"]}, {}])
@pytest.mark.parametrize("late", [False, True])
def test_bytes_that_are_not_utf_8(
    tmp_path: Path, declared: dict[str, Any], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "CSV_BLOCK_BYTES", 64)
    labels = ["a"] * 30 + ["Zürich", "b"] * 5 if late else ["Zürich", "b"] * 20
    write(tmp_path, {"x": NUMBERS, "l": labels}, charset="latin-1")
    message = refusal(tmp_path, **declared)
    assert "d.csv: column 'l'" in message
    assert "not utf-8" in message
    assert "source.charset" in message
    # What is never read does no harm.
    if not declared:
        assert kinds(opened(tmp_path, exclude=["l"])) == [("x", "numeric")]


def test_names_of_columns_that_are_not_utf_8(tmp_path: Path) -> None:
    write(tmp_path, {"Größe": NUMBERS, "l": [0, 1] * 20}, charset="latin-1")
    assert "source.charset" in refusal(tmp_path)
    assert kinds(opened(tmp_path, charset="latin-1"))[0] == ("Größe", "numeric")


@pytest.mark.parametrize("charset", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, charset: str) -> None:
    write(tmp_path, {"ü": NUMBERS, "l": [0, 1] * 20}, charset=charset)
    if charset == "utf-8-sig":
        assert kinds(opened(tmp_path))[0] == ("ü", "numeric")
        assert "source.charset: utf-8" in refusal(tmp_path, charset="latin-1")
    else:
        assert f"source.charset: {charset}" in refusal(tmp_path)


@pytest.mark.parametrize("charset", ["utf-9", "hex", "rot13"])
def test_unknown_character_encodings(tmp_path: Path, charset: str) -> None:
    write(tmp_path, {"x": NUMBERS})
    assert f"source.charset is {charset!r}" in refusal(tmp_path, charset=charset)


def test_a_wrong_character_encoding(tmp_path: Path) -> None:
    write(tmp_path, {"x": NUMBERS, "k": ["ü", "b"] * 20})
    for charset in ("ascii", "utf-16"):
        assert f"not {charset}" in refusal(tmp_path, charset=charset).replace("us-", "")


def test_parquet_texts_that_are_not_utf_8(tmp_path: Path) -> None:
    raw = pa.array([b"Z\xfcrich", b"b"] * 20)
    text = pa.Array.from_buffers(pa.string(), N, raw.buffers())
    pq.write_table(pa.table({"x": NUMBERS, "l": text}), tmp_path / "d.parquet")
    for keys in ({"label": "l"}, {}):
        message = refusal(tmp_path, path="d.parquet", **keys)
        assert "column 'l'" in message
        assert "UTF-8" in message
    source = opened(tmp_path, path="d.parquet", name="l")
    with pytest.raises(DataError, match=r"column 'l' \(source.name\) holds bytes"):
        source.names(np.arange(2))
