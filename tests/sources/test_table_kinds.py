"""Tables as people have them: read as the file says, or refused by name before any work."""

from __future__ import annotations

import csv as csv_module
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import DataError, KrepesError, SourceError
from krepes_ooc.sources import parquet
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.describe import list_inputs
from krepes_ooc.sources.new_samples import NewSamples, read_new_samples
from krepes_ooc.sources.open import open_source
from krepes_ooc.views.spec import ViewSpec
from krepes_ooc.views.views import Views

N = 40
SQUARES = [i * i for i in range(N)]
NUMBERS = [round(float(v), 3) for v in np.random.default_rng(11).normal(size=N)]


def write(
    folder: Path,
    columns: dict[str, list[Any]],
    name: str = "d.csv",
    split: str = ",",
    charset: str = "utf-8",
) -> Path:
    """Write a CSV file exactly as its fields are spelled."""
    rows = zip(*columns.values(), strict=True)
    lines = [split.join(columns), *(split.join(map(str, row)) for row in rows)]
    (folder / name).write_bytes(("\n".join(lines) + "\n").encode(charset))
    return folder / name


def spec_of(**keys: Any) -> SourceSpec:
    return read_settings(SourceSpec, {"kind": "table", "path": "d.csv", **keys}, "source")


def opened(folder: Path, **keys: Any) -> Source:
    return open_source(spec_of(**keys), folder, folder / "cache")


def everything(source: Source) -> Any:
    return source.read(np.arange(source.n_samples))


def kinds(source: Source) -> list[tuple[str, str]]:
    return [(column.name, column.kind) for column in source.columns]


def label_texts(source: Source) -> list[str | None]:
    codes = source.labels(np.arange(source.n_samples))
    return [source.classes[code] if code >= 0 else None for code in codes]


def refusal(folder: Path, **keys: Any) -> str:
    """Message of the refusal, in one line, at exit 1 or 2."""
    with pytest.raises(KrepesError) as caught:
        opened(folder, **keys)
    message = str(caught.value)
    assert "\n" not in message
    assert "unexpected" not in message
    assert caught.value.exit_code in (1, 2)
    return message


def warned(source: Source, *words: str) -> bool:
    return any(all(word in line for word in words) for line in source.warnings)


# Columns that the recipe declares are text.


@pytest.mark.parametrize(
    "names",
    [
        [f"{37 * i:05}" for i in range(N)],
        [str(10**20 + i) for i in range(N)],
        [f"+{i:03}" for i in range(N)],
        [f"1e{i}" for i in range(N)],
        [f"2020-01-{1 + i % 28:02} 0{i % 10}:00" for i in range(N)],
        ["true", "FALSE"] * (N // 2),
        [f"0x{i:02x}" for i in range(N)],
    ],
    ids=["zip", "21 digits", "plus", "exponents", "times", "booleans", "hexadecimal"],
)
def test_names_are_those_of_the_file(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, {"id": names, "x": NUMBERS})
    source = opened(tmp_path, name="id")
    assert source.names(np.arange(N)) == names
    assert kinds(source) == [("x", "numeric")]
    assert everything(source)[:, 0].tolist() == NUMBERS


@pytest.mark.parametrize(
    ("classes", "order"),
    [
        (["01", "02", "10"], ["01", "02", "10"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["1.0", "1.50", "-1.0"], ["-1.0", "1.0", "1.50"]),
        (["True", "False", "True"], ["False", "True"]),
        (["0", "1", "NA"], ["0", "1"]),
        (["2020-01-02", "2020-01-01", "2021-01-01"], ["2020-01-01", "2020-01-02", "2021-01-01"]),
        (["NA", "US", "DE"], ["DE", "NA", "US"]),
    ],
    ids=["zeros", "sorted as numbers", "decimals", "booleans", "unlabelled", "dates", "a country"],
)
def test_labels_are_those_of_the_file(tmp_path: Path, classes: list[str], order: list[str]) -> None:
    labels = [classes[i % 3] for i in range(N)]
    write(tmp_path, {"x": NUMBERS, "l": labels})
    source = opened(tmp_path, label="l")
    assert list(source.classes) == order
    assert label_texts(source) == [label if label in order else None for label in labels]


def test_categories_that_are_declared_are_those_of_the_file(tmp_path: Path) -> None:
    codes = [("007", "7", "070", "NA", "")[i % 5] for i in range(N)]
    write(tmp_path, {"x": NUMBERS, "k": codes})
    source = opened(tmp_path, categorical=["k"])
    (column,) = (c for c in source.columns if c.name == "k")
    assert column.categories == ("007", "7", "070", "(missing)")
    texts = [column.categories[int(code)] for code in everything(source)[:, 1]]
    assert texts == ["(missing)" if code in ("NA", "") else code for code in codes]


def test_declared_columns_without_names(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("".join(f"0{i},{v},b\n" for i, v in enumerate(NUMBERS)))
    source = opened(tmp_path, header=False, name="f0")
    assert source.names(np.arange(3)) == ["00", "01", "02"]
    assert kinds(source) == [("f1", "numeric"), ("f2", "categorical")]


def test_text_behind_the_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "CSV_BLOCK_BYTES", 64)
    blank = [""] * 30
    columns = {
        "id": [f"{i:03}" for i in range(N)],
        "late": [*blank, *map(str, NUMBERS[30:])],
        "word": [*blank, *("ab"[i % 2] for i in range(10))],
        "x": NUMBERS,
    }
    write(tmp_path, columns)
    with pytest.raises(DataError, match=r"a missing value in a numeric column; .*|row 0 .*'late'"):
        opened(tmp_path, name="id")
    source = opened(tmp_path, name="id", exclude=["late"])
    assert source.names(np.arange(N)) == columns["id"]
    assert source.columns[0].categories == ("a", "b", "(missing)")


def test_numbers_that_may_be_codes_are_pointed_out(tmp_path: Path) -> None:
    zips = [f"{10000 + i}" for i in range(4)] + [f"{37 * i:05}" for i in range(N - 4)]
    columns = {"zip": zips, "id": [10**20 + i for i in range(N)], "x": NUMBERS}
    write(tmp_path, columns | {"hex": [f"0x{i:02X}" for i in range(N)]})
    source = opened(tmp_path)
    assert warned(source, "'hex'", "'0x00' in row 1 (sample 0)", "source.categorical")
    assert warned(source, "'zip'", "'00000' in row 5 (sample 4)", "source.categorical")
    assert warned(source, "'id'", "'100000000000000000000' in row 1")
    assert not warned(source, "'x'")
    table = {"big": [2**53 + 1 + i for i in range(N)], "small": list(range(N))}
    pq.write_table(pa.table(table), tmp_path / "d.parquet")
    source = opened(tmp_path, path="d.parquet")
    assert warned(source, "'big'", "2**53")
    assert not warned(source, "'small'")


# Separators.


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


# Numbers that are spelled otherwise.


def test_decimal_commas(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "x": [str(v).replace(".", ",") for v in NUMBERS],
        "l": [0, 1] * 20,
    }
    write(tmp_path, columns, split=";")
    keys = {"delimiter": ";", "label": "l"}
    first = columns["x"][0]
    assert warned(opened(tmp_path, **keys), "'x'", f"{first!r} in row 1", 'source.decimal: ","')
    source = opened(tmp_path, **keys, decimal=",")
    truth = pd.read_csv(tmp_path / "d.csv", sep=";", decimal=",")
    assert everything(source)[:, 0].tolist() == truth["x"].tolist() == NUMBERS
    assert "separates the fields too" in refusal(tmp_path, decimal=",")


def test_one_text_among_decimal_commas(tmp_path: Path) -> None:
    spelled = [str(v).replace(".", ",") for v in NUMBERS]
    keys = {"delimiter": ";", "decimal": ","}
    write(tmp_path, {"x": [*spelled[:8], "?", *spelled[9:]], "y": NUMBERS}, split=";")
    message = refusal(tmp_path, **keys, exclude=["y"])
    assert "column 'x' holds numbers, but '?' in row 9 (sample 8)" in message
    write(tmp_path, {"x": [*spelled[:8], "old", *spelled[9:]]}, split=";")
    assert warned(opened(tmp_path, **keys), "'x' holds numbers, but 'old' in row 9")
    # Points where the recipe says commas.
    write(tmp_path, {"x": spelled, "y": NUMBERS}, split=";")
    source = opened(tmp_path, **keys)
    assert warned(source, "column 'y' holds what look like numbers", "write them as plain")


@pytest.mark.parametrize(
    "spell",
    [
        lambda i: f"{i + 10}%",
        lambda i: f"${i}.5",
        lambda i: f"{i} €",
        lambda i: f"1.{i:03},50",
        lambda i: f'"{i + 1},000"',
        lambda i: f"({i}.25)",
    ],
    ids=["percent", "dollar", "euro", "German", "thousands", "negative"],
)
def test_formatted_numbers_are_pointed_out(tmp_path: Path, spell: Any) -> None:
    texts = [spell(i) for i in range(N)]
    split = ";" if "," in texts[0] and '"' not in texts[0] else ","
    write(tmp_path, {"p": texts, "x": NUMBERS}, split=split)
    source = opened(tmp_path, delimiter=split)
    shown = texts[0].strip('"')
    assert warned(source, "column 'p'", f"{shown!r} in row 1 (sample 0)", "40 categories")
    assert not warned(source, "'x'")
    assert not opened(tmp_path, delimiter=split, categorical=["p"]).warnings


@pytest.mark.parametrize("word", ["?", "-", "N/A ", "n.a.", "unknown", "#DIV/0!", ".", "nan"])
def test_words_for_missing_numbers(tmp_path: Path, word: str) -> None:
    power: list[Any] = [100 + i for i in range(N)]
    power[5] = word
    write(tmp_path, {"mpg": NUMBERS, "power": power})
    message = refusal(tmp_path)
    assert "'power'" in message
    # Arrow knows NaN and N/A, which are refused as missing numbers, from 0.
    assert "row 6 (sample 5)" in message or "row 5 (from 0)" in message
    stated = refusal(tmp_path, missing=[word.strip()])
    assert "a missing value in a numeric column" in stated
    assert "row 5 (from 0)" in stated
    assert opened(tmp_path, exclude=["power"]).n_samples == N


def test_other_texts_among_numbers_are_pointed_out(tmp_path: Path) -> None:
    codes = [f"{250 + i}" for i in range(N)]
    codes[7] = "V27"
    write(tmp_path, {"x": NUMBERS, "code": codes, "grade": ["1", "2", "K", "?"] * 10})
    source = opened(tmp_path)
    assert warned(source, "'code'", "'V27' in row 8 (sample 7)", "40 categories")
    assert warned(source, "'grade'", "'K' in row 3")
    assert source.columns[2].categories == ("1", "2", "?", "K")
    assert not opened(tmp_path, categorical=["code", "grade"]).warnings
    with pytest.raises(DataError, match=r"row 7 \(from 0\), column 'code'"):
        opened(tmp_path, numeric=["code"], exclude=["grade"])


def test_missing_values_of_the_recipe(tmp_path: Path) -> None:
    words = [("a", "?", "b", "-9")[i % 4] for i in range(N)]
    table = {"x": NUMBERS, "k": words, "l": [("u", "v", "?", "v")[i % 4] for i in range(N)]}
    write(tmp_path, {**table, "k": [f" {word}" for word in words]})
    pq.write_table(pa.table(table), tmp_path / "d.parquet")
    pq.write_table(
        pa.table({name: pa.array(v).dictionary_encode() for name, v in table.items()}),
        tmp_path / "e.parquet",
    )
    for path in ("d.csv", "d.parquet", "e.parquet"):
        source = opened(tmp_path, path=path, label="l", missing=["?", -9], exclude=["x"])
        assert source.columns[0].categories == ("a", "b", "(missing)")
        want = [{"a": 0, "b": 1}.get(word, 2) for word in words]
        assert everything(source)[:, 0].tolist() == want
        assert label_texts(source) == [None if v == "?" else v for v in table["l"]]
    numbers = pa.table({"x": NUMBERS, "n": pa.array([1, -9] * 20, pa.int8())})
    pq.write_table(numbers, tmp_path / "n.parquet")
    assert "row 1 (from 0), column 'n'" in refusal(tmp_path, path="n.parquet", missing=[-9.0])
    # A number that the type cannot hold stands nowhere.
    assert opened(tmp_path, path="n.parquet", missing=["-999", "?"]).n_samples == N


def test_quotes_that_are_not_closed_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('x,y\n1,a\n2,"b\n3,c\n4,d\n')
    assert warned(opened(tmp_path), "'y'", "over several lines", "row 2 (sample 1)")


# Indices of data frames.


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


# Characters.


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


# Types and labels.


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[1, 2]] * N),
        pa.array([{"a": 1}] * N),
        pa.array([b"a"] * N),
        pa.array([[("k", 1)]] * N, pa.map_(pa.string(), pa.int64())),
        pa.array([1] * N, pa.duration("s")),
    ],
    ids=["lists", "structs", "bytes", "maps", "durations"],
)
@pytest.mark.parametrize("key", ["label", "name", "categorical", ""])
def test_columns_of_other_types(tmp_path: Path, values: Any, key: str) -> None:
    pq.write_table(pa.table({"x": NUMBERS, "l": values}), tmp_path / "d.parquet")
    declared: dict[str, Any] = {key: ["l"] if key == "categorical" else "l"} if key else {}
    message = refusal(tmp_path, path="d.parquet", **declared)
    assert "d.parquet: column 'l'" in message
    assert f"has type {str(values.type).split('<')[0]}" in message
    assert (f"source.{key}" if key else "source.exclude") in message


def test_dates_can_be_labels_names_and_categories(tmp_path: Path) -> None:
    days = pd.date_range("2020-01-01", periods=2).repeat(N // 2)
    pq.write_table(pa.table({"x": NUMBERS, "d": days.date}), tmp_path / "d.parquet")
    message = refusal(tmp_path, path="d.parquet")
    assert "has type date32" in message
    assert "source.categorical" in message
    assert opened(tmp_path, path="d.parquet", label="d").classes == ("2020-01-01", "2020-01-02")
    assert opened(tmp_path, path="d.parquet", name="d").names(np.arange(1)) == ["2020-01-01"]
    source = opened(tmp_path, path="d.parquet", categorical=["d"])
    assert source.columns[1].categories == ("2020-01-01", "2020-01-02")


def test_a_continuous_label(tmp_path: Path) -> None:
    values = [round(float(v), 6) for v in np.random.default_rng(4).normal(size=2000)]
    write(tmp_path, {"x": list(range(2000)), "y": values})
    message = refusal(tmp_path, label="y")
    assert "label 'y'" in message
    assert "a label needs classes" in message
    # What is advised works.
    assert "source.audit_only: [y]" in message
    assert kinds(opened(tmp_path, audit_only=["y"])) == [("x", "numeric"), ("y", "numeric")]
    pq.write_table(pa.table({"x": NUMBERS, "y": NUMBERS}), tmp_path / "d.parquet")
    source = opened(tmp_path, path="d.parquet", label="y")
    assert warned(source, "label 'y'", "needs classes")
    write(tmp_path, {"x": list(range(2000)), "y": [f"name {i}" for i in range(2000)]})
    message = refusal(tmp_path, label="y")
    assert "source.exclude" in message
    assert kinds(opened(tmp_path, exclude=["y"])) == [("x", "numeric")]


def test_advice_about_too_many_categories(tmp_path: Path) -> None:
    rows = 1500
    columns = {
        "power": [*range(rows - 1), "?"],
        "price": [f"{i},5" for i in range(rows)],
        "words": [f"w{i}" for i in range(rows)],
    }
    advice = {
        "power": 'source.missing: ["?"]',
        "price": 'source.decimal: ","',
        "words": "source.exclude, or under source.name",
    }
    for name, words in advice.items():
        write(tmp_path, {"x": list(range(rows)), name: columns[name][::-1]}, split=";")
        message = refusal(tmp_path, delimiter=";")
        assert f"column {name!r} has more than 1024 categories" in message
        assert words in message.replace("'?'", '"?"')


# New rows.


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


# Networks and views.


def test_inputs_are_listed_by_column(tmp_path: Path) -> None:
    columns = {
        "tall": NUMBERS,
        "kind": ["a", "b", "c", "a"] * 10,
        "wide": NUMBERS,
        "l": [0, 1] * 20,
    }
    write(tmp_path, columns)
    source = opened(tmp_path, label="l")
    assert list_inputs(source) == "5 inputs (tall, wide, 3 codes of kind)"
    assert source.input_shape == (5,)


@pytest.mark.parametrize("value", ["3", "-1", "0.5", "1e9"])
def test_views_return_codes_of_categories(tmp_path: Path, value: str) -> None:
    write(tmp_path, {"x": NUMBERS, "kind": ["a", "b", "c", "a"] * 10})
    source = opened(tmp_path)
    body = "def view(x, sample_id, view_id, seed):\n    x = x.copy()\n"
    (tmp_path / "view.py").write_text(f"{body}    x[1] = {value}\n    return x\n")
    spec = ViewSpec(count=2, function="view.py:view")
    with pytest.raises(DataError) as caught:
        Views(spec, source, 3, tmp_path)
    message = str(caught.value)
    assert message.startswith("views.function view.py:view, sample 0, view 0: returned")
    assert "categorical column 'kind'" in message
    assert "a whole number from 0 to 2" in message
    (tmp_path / "view2.py").write_text(f"{body}    x[0] += 0.5\n    x[1] = 2\n    return x\n")
    views = Views(ViewSpec(count=2, function="view2.py:view"), source, 3, tmp_path)
    made = source.encode(views.apply(source.read(np.arange(4)), np.arange(4), 0))
    assert made[:, 1:].tolist() == [[0, 0, 1]] * 4


# The whole against pandas.


def test_a_file_of_everything_equals_pandas(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    columns: dict[str, list[Any]] = {
        "id": [f"{i:09}" for i in range(300)],
        "whole": draw.integers(-50, 50, 300).tolist(),
        "price": [f"{v:.2f}".replace(".", ",") for v in draw.normal(20, 9, 300)],
        "note": [f'"a; {i % 3}"' for i in range(300)],
        "town": draw.choice(["Genève", " Zürich ", "?", ""], 300).tolist(),
        "class": draw.choice(["01", "02", "?"], 300).tolist(),
    }
    write(tmp_path, columns, split=";", charset="cp1252")
    keys: dict[str, Any] = {"delimiter": ";", "decimal": ",", "charset": "cp1252"}
    source = opened(tmp_path, **keys, missing=["?"], name="id", label="class")
    truth = pd.read_csv(
        tmp_path / "d.csv",
        sep=";",
        decimal=",",
        encoding="cp1252",
        na_values=["?"],
        keep_default_na=True,
        dtype={"id": str, "class": str},
        quoting=csv_module.QUOTE_MINIMAL,
    )
    raw = everything(source)
    assert source.names(np.arange(300)) == truth["id"].tolist()
    np.testing.assert_array_equal(raw[:, 0], truth["whole"])
    np.testing.assert_array_equal(raw[:, 1], truth["price"])
    for index, name in ((2, "note"), (3, "town")):
        categories = np.array(source.columns[index].categories)
        want = truth[name].str.strip().fillna("(missing)")
        assert categories[raw[:, index].astype(int)].tolist() == want.tolist()
    assert label_texts(source) == [None if pd.isna(v) else v for v in truth["class"]]


@pytest.mark.parametrize("minus", ["\u2212", "\u2013"])
def test_numbers_with_a_typographic_minus_are_pointed_out(tmp_path: Path, minus: str) -> None:
    write(tmp_path, {"p": [f"{minus}{i}.5" for i in range(N)], "x": NUMBERS})
    assert warned(opened(tmp_path), "column 'p'", f"'{minus}0.5' in row 1", "40 categories")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 and more", "is a Parquet file, in spite of its name"),
        (b"PK\x03\x04 and more", "is a zip archive or a spreadsheet"),
        (b"\x1f\x8b and more", "is packed by gzip"),
        (b'{"x": 1, "y": 2}\n{"x": 2, "y": 3}\n', "is JSON"),
        (b'[{"x": 1, "y": 2}]\n', "is JSON"),
        (b"<!DOCTYPE html>\n<html>no access</html>\n", "is a page of the web"),
        (b"# written by x\nx,y\n1,2\n3,4\n", "remove the lines before the names of the columns"),
    ],
)
def test_files_that_are_no_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "d.csv").write_bytes(content)
    found = refusal(tmp_path)
    assert message in found
    assert "d.csv" in found


@pytest.mark.parametrize(
    "day",
    ["{:02}.01.2020", "01/{:02}/2020", "{}-1-20", "{:02}/01/2020 10:00", "{:02}.01.20 9:30:15"],
)
def test_dates_that_were_read_as_texts_are_pointed_out(tmp_path: Path, day: str) -> None:
    days = [day.format(1 + i % 28) for i in range(N)]
    write(tmp_path, {"x": NUMBERS, "day": days})
    source = opened(tmp_path)
    assert warned(source, "column 'day' holds what look like dates", days[0], "28 categories")
    assert not opened(tmp_path, categorical=["day"]).warnings


@pytest.mark.parametrize("text", ["1.{}", "{}-5", "10.0.0.{}", "7/{}"])
def test_other_texts_of_digits_are_no_dates(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"x": NUMBERS, "c": [text.format(i % 7) for i in range(N)]})
    assert not warned(opened(tmp_path), "look like dates")


def test_separated_thousands_are_pointed_out(tmp_path: Path) -> None:
    write(tmp_path, {"x": NUMBERS, "y": [f"1_{100 + i}" for i in range(N)]})
    assert warned(opened(tmp_path), "column 'y' holds what look like numbers", "1_100")
    # A comma before three digits may be of either kind: the key alone would divide by 1,000.
    write(tmp_path, {"x": SQUARES, "y": [f"{1 + i},234" for i in range(N)]}, split=";")
    source = opened(tmp_path, delimiter=";")
    assert warned(source, "column 'y'", "if the comma is a decimal one, else write them without")
    write(tmp_path, {"x": SQUARES, "y": [f"{1 + i},25" for i in range(N)]}, split=";")
    source = opened(tmp_path, delimiter=";")
    assert warned(source, 'set source.decimal: ","')
    assert not warned(source, "if the comma is a decimal one")
