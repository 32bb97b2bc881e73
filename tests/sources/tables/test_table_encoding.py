"""The table encoding belongs to the network: means, scales and categories in order, as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.arrays.array_rows import marginal_positions
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.describe import describe_source
from krepes_ooc.sources.new_samples import read_new_samples
from krepes_ooc.sources.open import open_source
from krepes_ooc.sources.tables.encoding_file import read_encoding
from krepes_ooc.sources.tables.table import TableSource
from krepes_ooc.sources.tables.table_encoding import learn_encoding
from krepes_ooc.views.spec import ViewSpec
from krepes_ooc.views.views import Views
from tests.sources.tables.encoded_tables import (
    CATEGORIES,
    JOBS,
    NUMBERS,
    ROWS,
    as_rows,
    encoded,
    learned,
    open_rows,
    pipeline_inputs,
    shifted,
    training,
    write_encoding,
)


def test_inputs_of_shifted_rows_are_those_of_the_training_pipeline(tmp_path: Path) -> None:
    learned(tmp_path)
    source = open_rows(tmp_path, shifted(), encoding="e.json")
    # The file lists the columns as the training table has them: job before town, age before wage.
    want = pipeline_inputs(training(), shifted())
    np.testing.assert_allclose(encoded(source), want, atol=1e-6, rtol=1e-6)
    assert np.median(encoded(source)[:, 0]) == pytest.approx(3, abs=0.3)
    # Learned from the shifted rows, the network would be shown something else.
    wrong = encoded(open_rows(tmp_path, shifted()))
    assert wrong.shape[1] == 6
    assert abs(wrong[:, :2].mean()) < 1e-6


def test_an_encoding_can_be_written_from_a_fitted_pipeline(tmp_path: Path) -> None:
    """Categories first, a dropped reference level, no fill: what scikit-learn holds, as JSON."""
    train, rows = training(), shifted()
    fitted = ColumnTransformer(
        [
            ("cat", OneHotEncoder(drop="first", sparse_output=False), [0, 1]),
            ("num", StandardScaler(), [2, 3]),
        ]
    ).fit(as_rows(train, [*CATEGORIES, *NUMBERS]))
    one_hot, scaler = fitted.named_transformers_["cat"], fitted.named_transformers_["num"]
    columns: list[dict[str, Any]] = [
        {
            "name": name,
            "kind": "categorical",
            "categories": known[1:].tolist(),
            "dropped": known[:1].tolist(),
        }
        for name, known in zip(CATEGORIES, one_hot.categories_, strict=True)
    ]
    columns += [
        {"name": name, "kind": "numeric", "mean": float(mean), "scale": float(scale)}
        for name, mean, scale in zip(NUMBERS, scaler.mean_, scaler.scale_, strict=True)
    ]
    write_encoding(tmp_path, columns)
    source = open_rows(tmp_path, rows, encoding="e.json")
    want = fitted.transform(as_rows(rows, [*CATEGORIES, *NUMBERS])).astype(float)
    np.testing.assert_allclose(encoded(source), want, atol=1e-6, rtol=1e-6)
    assert source.encoding.layout == "5 = 2 numbers + 3 one-hot of 2 columns"


def test_the_file_gives_the_bits_of_the_table_that_it_was_learned_from(tmp_path: Path) -> None:
    learned(tmp_path)
    without = encoded(open_rows(tmp_path, training()))
    assert np.array_equal(without, encoded(open_rows(tmp_path, training(), encoding="e.json")))
    # Numbers are written with all their digits.
    assert read_encoding(tmp_path / "e.json") == learn_encoding(
        open_rows(tmp_path, training()).columns
    )


def test_views_draw_from_the_audited_rows_and_pass_through_the_file(tmp_path: Path) -> None:
    learned(tmp_path)
    source = open_rows(tmp_path, shifted(), encoding="e.json")
    views = Views(ViewSpec(count=2, corruption=1.0, noise=0.0), source, 0, tmp_path)
    positions = np.arange(50)
    viewed = views.apply(source.read(positions), positions, 0)
    rows = shifted()
    ages = {float(value) for value in rows["age"]}
    place = [column.name for column in source.columns].index("age")
    assert {float(value) for value in viewed[:, place]} <= ages
    # Drawn categories are the audited ones, in the places of the file.
    one_hot = source.encode(viewed)[:, 2:5]
    assert one_hot.sum(axis=1).tolist() == [1.0] * 50
    assert one_hot[:, JOBS.index("nurse")].sum() == 0
    assert one_hot[:, JOBS.index("smith")].sum() > 0


def with_unseen() -> dict[str, Any]:
    rows = shifted()
    rows["job"][:3] = ["pilot", "monk", "pilot"]
    return rows


def test_unseen_categories_are_refused_with_their_count(tmp_path: Path) -> None:
    learned(tmp_path)
    with pytest.raises(DataError) as raised:
        open_rows(tmp_path, with_unseen(), encoding="e.json")
    line = str(raised.value)
    assert "e.json does not know 'monk', 'pilot' (3 rows) in column 'job'" in line
    assert "source.unseen: zero" in line
    assert "t.parquet" in line


def test_unseen_categories_are_zeros_where_it_is_said_so_and_counted(tmp_path: Path) -> None:
    learned(tmp_path)
    rows = with_unseen()
    source = open_rows(tmp_path, rows, encoding="e.json", unseen="zero")
    want = pipeline_inputs(training(), rows, handle_unknown="ignore")
    np.testing.assert_allclose(encoded(source), want, atol=1e-6, rtol=1e-6)
    assert encoded(source)[:3, 2:5].sum() == 0
    warning = "e.json does not know 'monk', 'pilot' in column 'job': 3 rows encoded as zeros"
    assert warning in source.warnings
    assert f"warning: {warning}" in describe_source(source)
    # People still see what the table says.
    column = next(c for c in source.columns if c.name == "job")
    place = [c.name for c in source.columns].index("job")
    shown = [column.categories[int(code)] for code in source.read(np.arange(3))[:, place]]
    assert shown == ["pilot", "monk", "pilot"]


def test_unknown_columns_are_refused_or_not_shown(tmp_path: Path) -> None:
    learned(tmp_path)
    rows = shifted() | {"height": np.arange(float(ROWS)), "eye": ["blue", "grey"] * (ROWS // 2)}
    with pytest.raises(SourceError, match=r"e\.json does not know column 'height' and 1 more"):
        open_rows(tmp_path, rows, encoding="e.json")
    source = open_rows(tmp_path, rows, encoding="e.json", unseen="zero")
    np.testing.assert_allclose(
        encoded(source), pipeline_inputs(training(), shifted()), atol=1e-6, rtol=1e-6
    )
    hidden = [column.name for column in source.columns if not column.shown]
    assert hidden == ["height", "eye"]
    assert "e.json does not know column 'eye': it is not shown to the network" in source.warnings
    line = next(text for text in describe_source(source) if "not shown to the network:" in text)
    assert "height (unknown to the encoding)" in line


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        ({"age": None}, {}, "no column 'age', an input of e.json"),
        ({}, {"exclude": ["age"]}, "column 'age' is an input of e.json, and the recipe hides it"),
        ({}, {"audit_only": ["job"]}, "column 'job' is an input of e.json, and the recipe hides"),
        ({}, {"categorical": ["age"]}, "source.categorical: column 'age' is numeric in e.json"),
        ({}, {"numeric": ["job"]}, "source.numeric: column 'job' is categorical in e.json"),
        ({}, {"encoding": "none.json"}, "none.json: no such file"),
        ({}, {"encoding": None, "unseen": "zero"}, "unseen means nothing without source.encoding"),
    ],
)
def test_tables_that_do_not_fit_the_file(
    tmp_path: Path, change: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    learned(tmp_path)
    rows = {k: v for k, v in (shifted() | change).items() if v is not None}
    with pytest.raises(SourceError) as raised:
        open_rows(tmp_path, rows, **{"encoding": "e.json", **keys})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_numbers_get_the_fill_of_the_file(tmp_path: Path) -> None:
    write_encoding(
        tmp_path,
        [
            {"name": "age", "kind": "numeric", "mean": 40, "scale": 10, "fill": 25},
            {"name": "town", "kind": "categorical", "categories": ["n", "s", None]},
        ],
    )
    rows = {"age": [50.0, None, float("nan")], "town": ["s", None, "n"], "kind": ["p", "q", "p"]}
    source = open_rows(tmp_path, rows, encoding="e.json")
    want = [[1, 0, 1, 0], [-1.5, 0, 0, 1], [-1.5, 1, 0, 0]]
    assert encoded(source).tolist() == want
    assert "column 'age': 2 missing numbers filled with 25" in source.warnings
    assert "missing values: age 2, town 1" in describe_source(source)
    # People see that it is missing.
    assert np.isnan(source.read(np.arange(3))[:, 0]).tolist() == [False, True, True]
    # Views draw missing numbers as often as the table has them.
    assert np.isnan(source.marginal_rows[:, 0]).sum() == 2


def test_without_a_fill_missing_numbers_are_refused(tmp_path: Path) -> None:
    write_encoding(tmp_path, [{"name": "age", "kind": "numeric", "mean": 40, "scale": 10}])
    with pytest.raises(DataError, match=r"row 1 .*column 'age'"):
        open_rows(tmp_path, {"age": [1.0, None], "kind": ["p", "q"]}, encoding="e.json")


@pytest.mark.parametrize("bad", [float("inf"), float("-inf")])
def test_infinite_numbers_are_refused_beside_a_fill(tmp_path: Path, bad: float) -> None:
    column = {"name": "age", "kind": "numeric", "mean": 40, "scale": 10, "fill": 1}
    write_encoding(tmp_path, [column])
    with pytest.raises(DataError, match="inf in a numeric column"):
        open_rows(tmp_path, {"age": [1.0, bad], "kind": ["p", "q"]}, encoding="e.json")


def test_a_column_without_a_single_number_is_filled(tmp_path: Path) -> None:
    column = {"name": "age", "kind": "numeric", "mean": 40, "scale": 10, "fill": 40}
    write_encoding(tmp_path, [column])
    rows = {"age": pa.array([None, None], pa.float64()), "kind": ["p", "q"]}
    source = open_rows(tmp_path, rows, encoding="e.json")
    assert encoded(source).tolist() == [[0], [0]]


def test_views_of_the_user_may_keep_missing_numbers(tmp_path: Path) -> None:
    column = {"name": "age", "kind": "numeric", "mean": 40, "scale": 10, "fill": 25}
    write_encoding(tmp_path, [column, column | {"name": "wage"}])
    rows = {"age": [50.0, None], "wage": [1.0, 2.0], "kind": ["p", "q"]}
    source = open_rows(tmp_path, rows, encoding="e.json")
    (tmp_path / "view.py").write_text(
        "def same(x, s, v, seed):\n    return x\n"
        "def all_missing(x, s, v, seed):\n    x[:] = float('nan')\n    return x\n"
    )
    positions = np.arange(2)
    views = Views(ViewSpec(function="view.py:same"), source, 0, tmp_path)
    viewed = source.encode(views.apply(source.read(positions), positions, 0))
    np.testing.assert_array_equal(viewed, encoded(source))
    # A number that was there may not be lost.
    with pytest.raises(DataError, match="returned NaN or infinity"):
        Views(ViewSpec(function="view.py:all_missing"), source, 0, tmp_path)


def test_what_has_no_encoding_is_never_zero_in_silence(tmp_path: Path) -> None:
    """Codes of no category and, without a file, missing numbers reach the check as NaN."""
    source = open_rows(tmp_path, training())
    place = [column.name for column in source.columns].index("job")
    for code in (-1.0, 3.0, float("nan")):
        raw = source.read(np.arange(2))
        raw[0, place] = code
        assert np.isnan(source.encode(raw)).sum(axis=1).tolist() == [1, 0]
    raw = source.read(np.arange(2))
    raw[1, 1] = float("nan")
    assert np.isnan(source.encode(raw)).sum(axis=1).tolist() == [0, 1]


def test_a_scale_of_zero_divides_by_one(tmp_path: Path) -> None:
    """As StandardScaler does with a column that was constant in training."""
    write_encoding(tmp_path, [{"name": "age", "kind": "numeric", "mean": 40, "scale": 0}])
    source = open_rows(tmp_path, {"age": [40.0, 43.0], "kind": ["p", "q"]}, encoding="e.json")
    assert encoded(source).tolist() == [[0], [3]]
    assert "the scale of age in e.json is 0: divided by 1" in source.warnings


def test_spellings_of_whole_numbers_and_booleans(tmp_path: Path) -> None:
    write_encoding(
        tmp_path,
        [
            {"name": "code", "kind": "categorical", "categories": [1, 2, 10]},
            {"name": "flag", "kind": "categorical", "categories": ["False", "True"]},
        ],
    )
    # Whole numbers with a gap are floats in pandas and Arrow.
    rows = {"code": [2.0, 10.0], "flag": [True, False], "kind": ["p", "q"]}
    source = open_rows(tmp_path, rows, encoding="e.json")
    assert encoded(source).tolist() == [[0, 1, 0, 0, 1], [0, 0, 1, 1, 0]]


def test_the_kind_of_a_column_is_that_of_the_file(tmp_path: Path) -> None:
    """Codes that were categories in training stay so, whatever the table's type suggests."""
    write_encoding(tmp_path, [{"name": "zip", "kind": "categorical", "categories": ["7", "9"]}])
    source = open_rows(tmp_path, {"zip": [9, 7], "kind": ["p", "q"]}, encoding="e.json")
    assert encoded(source).tolist() == [[0, 1], [1, 0]]


def test_new_samples_pass_through_the_file(tmp_path: Path) -> None:
    learned(tmp_path)
    source = open_rows(tmp_path, shifted(), encoding="e.json")
    spec = SourceSpec(kind="table", path="t.parquet", label="kind", encoding="e.json")
    path = tmp_path / "new.json"
    # A job that the audited rows lack and the network knows; a number is missing.
    path.write_text(json.dumps({"age": None, "wage": 7.0, "job": "nurse", "town": "n"}))
    new = read_new_samples(source, spec, path)
    train = training()
    rows = {"age": [train["age"].mean()], "wage": [7.0], "job": ["nurse"], "town": ["n"]}
    np.testing.assert_allclose(
        source.encode(new.raw), pipeline_inputs(train, rows), atol=1e-6, rtol=1e-6
    )
    assert new.warnings == ("column 'age': 1 missing, filled as the encoding states",)
    path.write_text(json.dumps({"age": 1.0, "wage": 7.0, "job": "pilot", "town": "n"}))
    with pytest.raises(DataError, match="'pilot' in column 'job'; expected one of baker, nurse"):
        read_new_samples(source, spec, path)
    zero = open_rows(tmp_path, shifted(), encoding="e.json", unseen="zero")
    new = read_new_samples(zero, spec, path)
    assert zero.encode(new.raw)[0, 2:5].tolist() == [0, 0, 0]
    assert new.warnings == ("'pilot' in column 'job' is unknown to e.json: encoded as zeros",)


def test_fingerprints(tmp_path: Path) -> None:
    """The content of the file is a part of its own; without the key there is none."""
    plain = open_rows(tmp_path, training()).fingerprint()
    assert "encoding" not in plain
    learned(tmp_path)
    source = open_rows(tmp_path, training(), encoding="e.json")
    named = source.fingerprint()
    assert named.pop("encoding") == source.encoding.digest
    assert named == plain
    # Another layout of the same JSON is the same encoding; another mean is another one.
    document = json.loads((tmp_path / "e.json").read_text())
    (tmp_path / "e.json").write_text(json.dumps(document, indent=4, sort_keys=True))
    again = open_rows(tmp_path, training(), encoding="e.json")
    assert again.encoding.digest == source.encoding.digest
    document["columns"][0]["mean"] += 1e-9
    (tmp_path / "e.json").write_text(json.dumps(document))
    other = open_rows(tmp_path, training(), encoding="e.json")
    assert other.encoding.digest != source.encoding.digest


def test_summary(tmp_path: Path) -> None:
    source = open_rows(tmp_path, training(), audit_only=["town"], exclude=["wage"], limit=300)
    lines = describe_source(source)
    counts = {name: source_count(source, name) for name in ("p", "q")}
    assert lines == [
        "300 samples of kind table, 4 to the network",
        "inputs: 4 = 1 number + 3 one-hot of 1 column",
        "encoding: learned from this table",
        "numbers: age",
        "categories: job 3",
        "not shown to the network: town (audited only), kind (label), wage (not read)",
        "limit: the first 300 of 400 rows",
        "missing values: none",
        f"2 classes: p {counts['p']}, q {counts['q']}",
    ]


def source_count(source: TableSource, name: str) -> int:
    return training()["kind"][: source.n_samples].count(name)


@pytest.mark.parametrize("rows", [400, 6_000])
def test_rows_that_repeat_another_are_counted(tmp_path: Path, rows: int) -> None:
    numbers = np.random.default_rng(0).normal(size=rows).round(6)
    numbers[5] = numbers[9] = numbers[200]
    columns = {"x": numbers, "c": ["a"] * rows, "y": np.arange(rows)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    spec = SourceSpec(kind="table", path="t.parquet", audit_only=("y",))
    source = open_source(spec, tmp_path, tmp_path / "cache")
    lines = [line for line in describe_source(source) if "repeat" in line]
    # What the network does not see tells no rows apart.
    drawn = source.read(marginal_positions(rows))[:, 0]
    repeated = drawn.size - len(set(drawn.tolist()))
    end = "" if rows == 400 else " of 4,096 drawn at random"
    expected = [f"rows that repeat another to the network: {repeated}{end}"] if repeated else []
    assert lines == expected
    assert rows != 400 or repeated == 2
