"""Words for codes: people read words, codes stay as they are stored and shown to the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import SourceError, UsageError
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.describe import describe_source
from krepes_ooc.sources.display import describe_columns, display_arrays
from krepes_ooc.sources.new_samples import read_new_samples
from krepes_ooc.sources.tables.table import TableSource, open_table
from krepes_ooc.stages.concepts.concept_sets import choose_concept_samples, read_sets

ROWS: dict[str, Any] = {
    "colour": [1, 2, 3, 1, 2, 1, 2, 1],
    "size": [1.0, 2.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0],
    "flag": [True, False, True, False, True, False, True, False],
    "kind": [0, 1, None, 1, 0, 1, 0, 1],
}
COLOURS = {1: "red", 2: "blue"}


def open_rows(folder: Path, rows: dict[str, Any] | None = None, **keys: Any) -> TableSource:
    if not (folder / "t.parquet").exists():
        pq.write_table(pa.table(rows or ROWS), folder / "t.parquet")
    values = {"kind": "table", "path": "t.parquet", "label": "kind", "categorical": ["colour"]}
    spec = read_settings(SourceSpec, values | keys, "source")
    return open_table(spec, folder, folder / "cache")


def column(source: TableSource, name: str) -> dict[str, Any]:
    return next(c for c in describe_columns(source) if c["name"] == name)


def test_codes_stay_and_words_are_displayed(tmp_path: Path) -> None:
    plain = open_rows(tmp_path)
    decoded = open_rows(tmp_path, decode={"colour": COLOURS, "size": {1: "small", 2: "large"}})
    positions = np.arange(8)
    np.testing.assert_array_equal(plain.read(positions), decoded.read(positions))
    np.testing.assert_array_equal(
        plain.encode(plain.read(positions)), decoded.encode(decoded.read(positions))
    )
    assert plain.fingerprint() == decoded.fingerprint()
    assert plain.label_fingerprint() != decoded.label_fingerprint()
    assert "decode" not in plain.label_fingerprint()
    # A code without a word is shown as it is, and said.
    assert column(decoded, "colour")["categories"] == ["red", "blue", "3"]
    assert "column 'colour': source.decode has no word for 3" in decoded.warnings
    # Numbers that are codes keep their kind.
    assert column(decoded, "size")["kind"] == "numeric"
    assert column(decoded, "size")["words"] == {"1": "small", "2": "large"}
    assert "words" not in column(plain, "size")
    assert "decoded: colour, size" in describe_source(decoded)


@pytest.mark.parametrize(
    ("rows", "given", "want"),
    [
        # Whole numbers with a gap are floats.
        ([1.0, 2.0, None], {1: "red", 2: "blue"}, ["red", "blue", "(missing)"]),
        (["01", "1", "2"], {"01": "old", "1": "new"}, ["old", "new", "2"]),
        ([True, False, True], {True: "yes", False: "no"}, ["no", "yes"]),
        (["a", "b", "a"], {"a": "ash", "b": "beech"}, ["ash", "beech"]),
    ],
)
def test_spellings_of_codes(tmp_path: Path, rows: Any, given: Any, want: list[str]) -> None:
    table = {"colour": rows, "size": [1.0, 2.0, 3.0], "kind": ["p", "q", "p"]}
    source = open_rows(tmp_path, table, decode={"colour": given})
    assert column(source, "colour")["categories"] == want


def test_labels_are_named_by_classes_or_decoded(tmp_path: Path) -> None:
    positions = np.arange(8)
    plain = open_rows(tmp_path)
    named = open_rows(tmp_path, classes=["cat", "dog", "eel"])
    assert (plain.classes, named.classes) == (("0", "1"), ("cat", "dog", "eel"))
    assert plain.labels(positions).tolist() == named.labels(positions).tolist()
    assert named.labels(positions).tolist() == [0, 1, -1, 1, 0, 1, 0, 1]
    line = "3 classes: cat 3, dog 4, eel 0; 1 without a label"
    assert line in describe_source(named)
    decoded = open_rows(tmp_path, decode={"kind": {0: "cat", 1: "dog"}})
    assert decoded.classes == ("cat", "dog")
    assert decoded.labels(positions).tolist() == plain.labels(positions).tolist()
    assert display_arrays(decoded, positions).array_attributes["label"]["categories"] == [
        "cat",
        "dog",
    ]


def test_classes_order_labels_that_are_texts(tmp_path: Path) -> None:
    rows = ROWS | {"kind": ["low", "high", "mid", "low", "high", "mid", "low", "high"]}
    source = open_rows(tmp_path, rows, classes=["low", "mid", "high"])
    assert source.labels(np.arange(4)).tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"decode": {"hue": {1: "red"}}}, "no column 'hue' (source.decode); expected one of"),
        ({"decode": {"colour": "red"}}, "source.decode.colour: 'red' is no mapping"),
        ({"decode": {"colour": {}}}, "source.decode.colour: {} is no mapping"),
        ({"decode": {"colour": {1: ["red"]}}}, "['red'] for code 1; expected a word"),
        ({"decode": {"colour": {1: "red", 2: "red"}}}, "two codes are called 'red'"),
        ({"decode": {"size": {"big": "large"}}}, "code 'big' for the numbers of column 'size'"),
        ({"classes": ["cat"]}, "label '1' has no name; expected labels from 0 to 0"),
        ({"classes": ["cat", "cat"]}, "source.classes names a class twice"),
        (
            {"classes": ["cat", "dog"], "decode": {"kind": {0: "a"}}},
            "classes and decode.kind both name the labels",
        ),
        ({"decode": {"kind": {0: "1"}}}, "two labels are called '1'"),
        ({"label": "", "classes": ["cat", "dog"]}, "classes name labels, and there is no label"),
    ],
)
def test_words_that_cannot_be(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError) as raised:
        open_rows(tmp_path, **keys)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_concepts_take_words_and_codes(tmp_path: Path) -> None:
    rows = {name: values * 4 for name, values in ROWS.items()}
    words = {"colour": COLOURS, "size": {1: "small", 2: "large"}}
    source = open_rows(tmp_path, rows, decode=words)

    def chosen(column: str, value: Any) -> list[int]:
        sets = {"c": {"positive": {"column": column, "equals": value}}}
        concepts = read_sets(sets, "stages.concepts.sets")
        return [int(i) for i in choose_concept_samples(source, concepts, 100, 0)[0][0]]

    assert chosen("colour", "red") == chosen("colour", "1") == every([0, 3, 5, 7])
    assert chosen("size", "small") == chosen("size", 1) == every([0, 2, 5, 6])
    with pytest.raises(UsageError, match="no value of colour 'green'; expected one of red, blue"):
        chosen("colour", "green")


def every(positions: list[int]) -> list[int]:
    return [8 * block + position for block in range(4) for position in positions]


def test_new_rows_hold_codes(tmp_path: Path) -> None:
    source = open_rows(tmp_path, decode={"colour": COLOURS}, classes=["cat", "dog"])
    spec = SourceSpec(kind="table", path="t.parquet", label="kind")
    (tmp_path / "new.json").write_text('{"colour": 2, "size": 1.0, "flag": true, "kind": 1}')
    new = read_new_samples(source, spec, tmp_path / "new.json")
    np.testing.assert_array_equal(new.raw, source.read(np.array([1])) * [1, 0, 0] + [0, 1, 1])
    assert new.labels.tolist() == [1]
