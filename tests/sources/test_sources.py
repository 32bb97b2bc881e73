"""Tables and digits as sources: rows, labels, statistics of a scan, encoding, caches."""

from __future__ import annotations

import dataclasses
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core import counter_rng, digests
from krepes_ooc.errors import SourceError, UsageError
from krepes_ooc.sources.arrays import array_rows
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.open import open_source, row_order
from krepes_ooc.sources.tables import parquet, table
from krepes_ooc.sources.tables import table as table_module
from krepes_ooc.sources.tables.table import open_table
from tests.sources.people_table import ROWS, open_people, people, write


def test_rows_labels_and_names_are_those_of_the_file(tmp_path: Path) -> None:
    source, truth = open_people(tmp_path), people()
    positions = counter_rng.Bijection(ROWS, 3)(np.arange(200))
    raw = source.read(positions)
    names = [column.name for column in source.columns]
    assert names == ["age", "work", "wage", "planet", "town", "urban", "gender"]
    for index, column in enumerate(source.columns):
        for row, position in zip(raw[:, index], positions, strict=True):
            want = truth[column.name][position]
            if column.kind == "numeric":
                assert row == want
            else:
                text = "(missing)" if want is None else str(want).replace("True", "true")
                assert column.categories[int(row)] == text.replace("False", "false")
    want_label = [truth["income"][p] for p in positions]
    got = source.labels(positions)
    assert [source.classes[c] if c >= 0 else None for c in got] == want_label
    assert source.labels(np.asarray([5])).tolist() == [-1]
    assert source.names(positions) == [truth["id"][p] for p in positions]


def test_scan_statistics_equal_those_of_the_whole_table(tmp_path: Path) -> None:
    source, truth = open_people(tmp_path), people()
    columns = {column.name: column for column in source.columns}
    assert columns["age"].mean == pytest.approx(truth["age"].mean(), rel=1e-13)
    assert columns["wage"].std == pytest.approx(truth["wage"].std(), rel=1e-9)
    low, high = np.quantile(truth["wage"], [0.01, 0.99])
    assert (columns["wage"].low, columns["wage"].high) == pytest.approx((low, high))
    assert columns["work"].categories == ("?", "private", "state")
    assert columns["town"].categories == ("t0", "t1", "t2", "t3", "(missing)")
    assert columns["urban"].categories == ("false", "true")
    assert not columns["gender"].shown
    assert columns["age"].shown
    assert source.classes == ("<=50K", ">50K")
    assert source.warnings == ("column 'planet' is constant",)


def test_encode_against_the_formula(tmp_path: Path) -> None:
    source = open_people(tmp_path)
    raw = source.read(np.arange(50))
    rows = []
    for row in raw:
        numbers = [
            (value - c.mean) / c.std
            for value, c in zip(row, source.columns, strict=True)
            if c.kind == "numeric" and c.shown
        ]
        codes = [
            float(code == value)
            for value, c in zip(row, source.columns, strict=True)
            if c.kind == "categorical" and c.shown
            for code in range(len(c.categories))
        ]
        rows.append(numbers + codes)
    encoded = source.encode(raw)
    assert encoded.dtype == np.float32
    assert encoded.shape[1:] == source.input_shape
    np.testing.assert_allclose(encoded, np.asarray(rows), atol=1e-6)


def test_the_network_never_sees_hidden_columns(tmp_path: Path) -> None:
    source = open_people(tmp_path)
    raw = source.read(np.arange(20))
    hidden = raw.copy()
    hidden[:, [c.name for c in source.columns].index("gender")] = 1 - hidden[:, -1]
    assert np.array_equal(source.encode(raw), source.encode(hidden))


def test_kinds_can_be_declared(tmp_path: Path) -> None:
    columns = {"level": [10, 9, 10, 2], "code": ["1", "2.5", "-3", "4"], "x": [1.0, 2.0, 3.0, 4.0]}
    keys = {"label": None, "name": None, "audit_only": None, "exclude": None}
    source = open_people(tmp_path, columns, **keys, categorical=["level"], numeric=["code"])
    assert [c.kind for c in source.columns] == ["categorical", "numeric", "numeric"]
    assert source.columns[0].categories == ("2", "9", "10")
    assert source.read(np.arange(4))[:, :2].tolist() == [[2, 1], [1, 2.5], [2, -3], [0, 4]]
    assert source.names(np.asarray([2])) == ["2"]
    assert source.labels(np.asarray([2])).tolist() == [-1]


def test_numbers_as_labels_are_sorted_as_numbers(tmp_path: Path) -> None:
    keys = {"name": None, "audit_only": None, "exclude": None}
    source = open_people(tmp_path, {"y": [10, 9, 2, 10], "x": [1.0, 2, 3, 4]}, label="y", **keys)
    assert source.classes == ("2", "9", "10")
    assert source.labels(np.arange(4)).tolist() == [2, 1, 0, 2]


def test_dictionary_and_decimal_columns(tmp_path: Path) -> None:
    columns = {
        "word": pa.array(["b", "a", None, "b"]).dictionary_encode(),
        "price": pa.array([1, 2, 3, 4]).cast(pa.decimal128(21, 2)),
        "big": pa.array(["u", "v", "u", "v"], pa.large_string()),
    }
    keys = {"label": None, "name": None, "audit_only": None, "exclude": None}
    source = open_people(tmp_path, columns, **keys)
    assert source.columns[0].categories == ("a", "b", "(missing)")
    assert source.read(np.arange(4)).tolist() == [[1, 1, 0], [0, 2, 1], [2, 3, 0], [1, 4, 1]]


@pytest.mark.parametrize(
    "suffix", ["csv", "csv.gz", "csv.bz2", "csv.zst", "tsv", "arrow", "feather"]
)
def test_other_formats_give_the_same_samples(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 100)
    table = pa.table(people())
    path = tmp_path / f"t.{suffix}"
    if suffix == "arrow":
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=33)
    elif suffix == "feather":
        pa.feather.write_feather(table, path)
    else:
        options = pa.csv.WriteOptions(delimiter="\t" if suffix == "tsv" else ",")
        packed = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}.get(path.suffix[1:])
        with pa.output_stream(path, compression=packed) as stream:
            pa.csv.write_csv(table, stream, options)
    source = open_people(tmp_path, path=path.name)
    from_parquet = open_people(tmp_path)
    everything = np.arange(ROWS)
    assert np.array_equal(source.read(everything), from_parquet.read(everything))
    assert np.array_equal(source.labels(everything), from_parquet.labels(everything))
    for column, want in zip(source.columns, from_parquet.columns, strict=True):
        assert (column.mean, column.std) == pytest.approx((want.mean, want.std), rel=1e-9)
        assert dataclasses.replace(column, mean=want.mean, std=want.std) == want
    (converted,) = (tmp_path / "cache").glob("rows-*.parquet")
    groups = pq.ParquetFile(converted).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [100] * 7


def test_csv_columns_are_widened_when_later_rows_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "CSV_BLOCK_BYTES", 64)
    lines = [f"{i}, {i} , a" for i in range(40)] + ["2.5, word , b", "7, x , b"]
    (tmp_path / "t.csv").write_text("x,y,z\n" + "\n".join(lines) + "\n")
    spec = SourceSpec(kind="table", path="t.csv")
    source = open_source(spec, tmp_path, tmp_path / "cache")
    assert [c.kind for c in source.columns] == ["numeric", "categorical", "categorical"]
    assert source.columns[2].categories == ("a", "b")
    assert source.read(np.asarray([40]))[0, 0] == 2.5
    assert "word" in source.columns[1].categories


def test_quoted_csv_text_may_hold_the_separator_and_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('x,y\n1,"a, b"\n2,"c\nd"\n')
    spec = SourceSpec(kind="table", path="t.csv")
    source = open_source(spec, tmp_path, tmp_path / "cache")
    assert source.columns[1].categories == ("a, b", "c\nd")


def test_nan_is_missing_where_numbers_are_categories(tmp_path: Path) -> None:
    write(tmp_path, {"k": [10.0, np.nan, 2.5, np.nan], "y": pa.array([1.0, np.nan, None, 0.0])})
    spec = SourceSpec(kind="table", path="t.parquet", categorical=("k",), label="y")
    source = open_source(spec, tmp_path, tmp_path / "cache")
    assert source.columns[0].categories == ("2.5", "10", "(missing)")
    assert source.read(np.arange(4))[:, 0].tolist() == [1, 2, 0, 2]
    assert source.classes == ("0", "1")
    assert source.labels(np.arange(4)).tolist() == [1, -1, -1, 0]


def test_csv_without_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1; a\n2; b\n")
    spec = SourceSpec(kind="table", path="t.csv", header=False, delimiter=";")
    source = open_source(spec, tmp_path, tmp_path / "cache")
    assert source.n_samples == 2
    assert [c.name for c in source.columns] == ["f0", "f1"]
    assert source.columns[1].categories == ("a", "b")


@pytest.mark.parametrize(("rows", "group"), [(300, 300), (300, 2)])
def test_unfit_row_groups_are_rewritten(
    tmp_path: Path, rows: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MAX_GROUP_ROWS", 100)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 64)
    write(tmp_path, {"x": np.arange(rows)}, group=group)
    source = open_source(SourceSpec(kind="table", path="t.parquet"), tmp_path, tmp_path / "cache")
    assert np.array_equal(source.read(np.arange(rows))[:, 0], np.arange(rows))
    (converted,) = (tmp_path / "cache").glob("rows-*.parquet")
    converted.write_bytes(b"cut off")  # a damaged conversion is made again
    source = open_source(SourceSpec(kind="table", path="t.parquet"), tmp_path, tmp_path / "cache")
    assert np.array_equal(source.read(np.arange(rows))[:, 0], np.arange(rows))
    assert not list((tmp_path / "cache").glob(".*")), "temporary files are left behind"


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    source = open_people(tmp_path, limit=200)
    assert source.n_samples == 200
    assert np.array_equal(source.read(np.arange(200))[:, 0], people()["age"][:200])
    with pytest.raises(UsageError, match=r"no sample 200; expected 0 to 199"):
        source.read(np.asarray([3, 200]))


def test_a_large_table_is_streamed_in_windows_of_row_groups(tmp_path: Path) -> None:
    write(tmp_path, {"x": np.arange(1000.0), "y": np.arange(1000.0)}, group=100)
    spec = SourceSpec(kind="table", path="t.parquet")
    small = open_table(spec, tmp_path, tmp_path / "cache", buffer_bytes=6000)
    assert small.row_groups == (100,) * 10
    # The buffer, the marginals, and one group of 100 rows as it is read.
    least = 6000 + small.marginal_rows.nbytes + 100 * 2 * 8
    assert least <= small.resident_bytes <= least + 2**16
    order = row_order(small, spec, 9)
    seen = np.concatenate(
        [small.read(order.positions(a, a + 64))[:, 0] for a in range(0, 1000, 64)]
    )
    assert sorted(seen.tolist()) == list(range(1000))
    assert sum(part.nbytes for part in small._buffer._groups.values()) <= 6000
    assert open_table(spec, tmp_path, tmp_path / "cache").row_groups is None


def test_threads_and_processes_read_the_same(tmp_path: Path) -> None:
    write(tmp_path, {"x": np.arange(1000.0)}, group=50)
    spec = SourceSpec(kind="table", path="t.parquet")
    source = open_table(spec, tmp_path, tmp_path / "cache", buffer_bytes=1500)
    batches = [counter_rng.Bijection(1000, seed)(np.arange(300)) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        for positions, raw in zip(batches, pool.map(source.read, batches), strict=True):
            assert np.array_equal(raw[:, 0], positions)
    travelled = pickle.loads(pickle.dumps(source))
    assert np.array_equal(travelled.read(batches[0])[:, 0], batches[0])


def test_a_second_opening_neither_hashes_nor_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_people(tmp_path)
    spec = first._spec  # type: ignore[attr-defined]

    def never(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(digests, "file_sha256", never)
    monkeypatch.setattr(table_module, "scan_table", never)
    second = open_source(spec, tmp_path, tmp_path / "cache")
    assert second.fingerprint() == first.fingerprint()
    assert second.columns == first.columns
    assert np.array_equal(second.marginal_rows, first.marginal_rows)  # type: ignore[attr-defined]
    assert (second.classes, second.warnings) == (first.classes, first.warnings)
    with pytest.raises(AssertionError, match="read again"):
        open_people(tmp_path, people(ROWS - 1))


@pytest.mark.parametrize("damage", ["", "{", '{"columns": 3}', "[]"])
def test_a_damaged_scan_is_repeated(tmp_path: Path, damage: str) -> None:
    first = open_people(tmp_path)
    for name in ("scan.json", "fingerprint.json"):
        for path in (tmp_path / "cache").rglob(name):
            path.write_text(damage)
    assert open_people(tmp_path).columns == first.columns


def test_fingerprint_is_json_and_follows_the_content(tmp_path: Path) -> None:
    first = open_people(tmp_path).fingerprint()
    assert json.loads(json.dumps(first)) == first
    labels = open_people(tmp_path).label_fingerprint()
    assert labels["sha256"] == digests.file_sha256(tmp_path / "t.parquet")
    changed = people()
    changed["age"] = changed["age"] + 1
    assert open_people(tmp_path, changed).fingerprint() != first
    assert open_people(tmp_path, exclude=["group", "age"]).fingerprint() != first
    assert str(tmp_path) not in json.dumps(first)


@given(n=st.integers(1, 9000))
def test_marginal_positions_are_the_smallest_hashes(n: int) -> None:
    positions = array_rows.marginal_positions(n)
    hashes = counter_rng.bits(0x6B72, np.arange(n))
    want = np.sort(np.argsort(hashes, kind="stable")[:4096])
    assert np.array_equal(positions, want)


def test_marginal_positions_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    want = array_rows.marginal_positions(9000)
    monkeypatch.setattr(array_rows, "_HASH_ROWS", 1000)
    assert np.array_equal(array_rows.marginal_positions(9000), want)


def test_marginal_rows_are_rows_of_the_table(tmp_path: Path) -> None:
    source = open_people(tmp_path)
    assert np.array_equal(source.marginal_rows, source.read(np.arange(ROWS)))  # type: ignore[attr-defined]


def test_the_least_recently_used_row_group_goes_first() -> None:
    decoded: list[int] = []

    def decode(group: int) -> Any:
        decoded.append(group)
        return np.zeros(10)

    buffer = table._GroupBuffer(160)
    for group in [0, 1, 0, 2, 0, 1, 0]:
        buffer.get(group, decode)
    assert decoded == [0, 1, 2, 1]
    assert table._GroupBuffer(10).get(0, decode).size == 10, "larger than the buffer"


def test_a_changed_file_of_the_same_size_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(b"one")
    first = digests.remembered_sha256(path, tmp_path / "cache")
    path.write_bytes(b"two")
    assert digests.remembered_sha256(path, tmp_path / "cache") == digests.file_sha256(path) != first
    path.unlink()
    with pytest.raises(SourceError, match=r"t.bin: cannot be read: No such file"):
        digests.remembered_sha256(path, tmp_path / "cache")


def test_one_row(tmp_path: Path) -> None:
    write(tmp_path, {"x": [1.5], "k": ["a"]})
    source = open_source(SourceSpec(kind="table", path="t.parquet"), tmp_path, tmp_path / "cache")
    assert source.warnings == ("column 'x' is constant", "column 'k' is constant")
    assert source.encode(source.read(np.asarray([0]))).tolist() == [[0.0, 1.0]]


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    truth = load_digits()
    source = open_source(SourceSpec(kind="digits"), tmp_path, tmp_path / "cache")
    everything = np.arange(source.n_samples)
    assert np.array_equal(source.read(everything)[..., 0], truth.images)
    assert np.array_equal(source.labels(everything), truth.target)
    assert source.input_shape == (1, 8, 8)
    assert source.encode(source.read(everything)).max() == 1.0
    assert source.names(np.asarray([7])) == ["7"]
    assert not (tmp_path / "cache").exists()
    few = open_source(SourceSpec(kind="digits", limit=1), tmp_path, tmp_path / "cache")
    assert few.n_samples == 1
    assert few.fingerprint() != source.fingerprint()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean": (0.1, 0.2)}, r"source.mean: 2 values for 1 channels; expected one for each"),
        ({"std": (0.0,)}, r"source.std: a value is not positive"),
        (
            {"path": "x"},
            r"key 'path' means nothing for kind 'digits'; expected only fetch, kind, limit",
        ),
    ],
)
def test_wrong_keys_for_digits(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(SourceSpec(kind="digits", **keys), tmp_path, tmp_path)


def test_scaling_of_images(tmp_path: Path) -> None:
    spec = SourceSpec(kind="digits", mean=(0.25,), std=(0.5,))
    source = open_source(spec, tmp_path, tmp_path)
    raw = source.read(np.arange(3))
    want = (np.moveaxis(raw, -1, 1) / 16 - 0.25) / 0.5
    np.testing.assert_allclose(source.encode(raw), want, rtol=1e-6)


def test_missing_file_says_how_it_is_fetched(tmp_path: Path) -> None:
    given = {"kind": "table", "path": "none.csv"}
    with pytest.raises(SourceError, match=r"paths are relative to the recipe$"):
        open_source(SourceSpec(**given), tmp_path, tmp_path)
    spec = SourceSpec(**given, fetch="make rows")
    with pytest.raises(SourceError, match=r"no such file; .*; fetch it: make rows$"):
        open_source(spec, tmp_path, tmp_path)
    with pytest.raises(SourceError, match="means nothing for kind"):
        open_source(SourceSpec(kind="table", path="a", size=3, fetch="b"), tmp_path, tmp_path)
