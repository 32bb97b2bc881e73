"""Tables as people have them: read as the file says, or refused by name before any work."""

from __future__ import annotations

import csv as csv_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from krepes_ooc.errors import DataError
from krepes_ooc.sources.describe import list_inputs
from krepes_ooc.sources.tables import parquet
from krepes_ooc.views.spec import ViewSpec
from krepes_ooc.views.views import Views
from tests.sources.written_tables import (
    NUMBERS,
    N,
    everything,
    kinds,
    label_texts,
    opened,
    refusal,
    warned,
    write,
)

SQUARES = [i * i for i in range(N)]

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
