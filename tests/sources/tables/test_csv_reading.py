"""CSV files that are parsed, hashed and scanned in one pass."""

from __future__ import annotations

import gzip
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from krepes_ooc.errors import DataError, KrepesError
from krepes_ooc.sources.arrays import array_rows
from krepes_ooc.sources.arrays.array_rows import MarginalSample, marginal_positions
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.tables import csv_batches, hashed_stream, parquet
from krepes_ooc.sources.tables import table as table_module
from krepes_ooc.sources.tables.csv_batches import CsvBatches, csv_format
from krepes_ooc.sources.tables.hashed_stream import HashedStream
from krepes_ooc.sources.tables.table import TableSource, open_table

ROWS = 20_000


def write(path: Path, rows: int = ROWS, seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    words = np.asarray(["a", "b", "NA", "long word"])
    table = pa.table(
        {
            "x": draw.normal(size=rows),
            "n": draw.integers(-5, 5, rows),
            "w": words[draw.integers(0, 4, rows)],
            "b": draw.integers(0, 2, rows) == 1,
            "l": words[draw.integers(0, 2, rows)],
        }
    )
    pa.csv.write_csv(table, path)
    return table


def spec(**keys: Any) -> SourceSpec:
    return SourceSpec(**{"kind": "table", "path": "t.csv", "label": "l", **keys})


def batches(path: Path, **keys: Any) -> CsvBatches:
    return CsvBatches(path, csv_format(path, spec()), {}, **keys)


# One pass


def test_readers_that_are_left_take_no_bytes_of_the_next_one(tmp_path: Path) -> None:
    """Arrow reads ahead in threads of its own, also while its reader is closed."""
    path = tmp_path / "t.csv"
    write(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for _ in range(60):
        left = iter(batches(path, block_bytes=2**14))
        next(left)
        left.close()  # type: ignore[attr-defined]
        whole = batches(path, block_bytes=2**14)
        assert sum(batch.num_rows for batch in whole) == ROWS
        assert whole.sha256 == digest


def test_a_stream_that_is_closed_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abcdef")
    stream = HashedStream(path)
    assert stream.read(4) == b"abcd"
    stream.close()
    assert stream.read(4) == b""
    # Half a file has no digest.
    assert stream.sha256() is None
    stream = HashedStream(path)
    while stream.read(4):
        pass
    assert stream.sha256() == hashlib.sha256(b"abcdef").hexdigest()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_types_that_are_stated_are_those_that_arrow_infers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.csv{suffix}"
    write(tmp_path / "t.csv")
    if suffix:
        path.write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    found = batches(path, block_bytes=2**14)
    table = pa.Table.from_batches(list(found))
    expected = pa.csv.read_csv(tmp_path / "t.csv")
    assert table.schema == expected.schema
    assert table.equals(expected.combine_chunks())
    # The digest is that of the file, not of what it holds.
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_hashed_while_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "t.csv")
    opened: list[str] = []

    class Counted(HashedStream):
        def __init__(self, path: Path) -> None:
            opened.append(path.name)
            super().__init__(path)

    def never(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(csv_batches, "HashedStream", Counted)
    monkeypatch.setattr("krepes_ooc.core.digests.file_sha256", never)
    monkeypatch.setattr(table_module, "scan_table", never)
    source = open_table(spec(), tmp_path, tmp_path / "cache")
    # All lies in the first block: there is no second opening for its types.
    assert opened == ["t.csv"]
    digest = hashlib.sha256((tmp_path / "t.csv").read_bytes()).hexdigest()
    assert source.label_fingerprint()["sha256"] == digest
    # The digest is kept.
    again = open_table(spec(), tmp_path, tmp_path / "cache")
    assert opened == ["t.csv"]
    assert again.fingerprint() == source.fingerprint()


# One scan


def rescanned(folder: Path, declared: SourceSpec) -> TableSource:
    """The table of the cache, scanned after it was converted."""
    for path in (folder / "cache").glob("scan-*/scan.json"):
        path.unlink()
    return open_table(declared, folder, folder / "cache")


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"label": ""},
        {"limit": 1},
        {"limit": 9_000},
        {"limit": 3 * ROWS},
        {"audit_only": ("n",), "exclude": ("b",)},
        {"categorical": ("n",), "missing": ("a", -3)},
        {"numeric": ("b",), "name": "w"},
    ],
)
def test_a_scan_of_the_conversion_is_that_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    monkeypatch.setattr(parquet, "CSV_BLOCK_BYTES", 2**17)
    write(tmp_path / "t.csv")
    declared = spec(**keys)
    with monkeypatch.context() as patch:
        patch.setattr(table_module, "scan_table", lambda *_: pytest.fail("scanned twice"))
        first = open_table(declared, tmp_path, tmp_path / "cache")
    second = rescanned(tmp_path, declared)
    assert first.columns == second.columns
    assert (first.classes, first.warnings) == (second.classes, second.warnings)
    assert np.array_equal(first.marginal_rows, second.marginal_rows)
    # The rows of the sample, read one by one.
    positions = marginal_positions(first.n_samples)
    assert np.array_equal(first.marginal_rows, first.read(positions))


@pytest.mark.parametrize("last", ["1.5", "word", ""])
def test_a_column_that_changes_its_type_is_scanned_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    monkeypatch.setattr(parquet, "CSV_BLOCK_BYTES", 2**12)
    rows = [f"{i % 7},{'' if i < 3000 else i % 3}" for i in range(4_000)]
    (tmp_path / "t.csv").write_text("\n".join(["x,l", *rows, f"{last},1"]) + "\n")
    if last == "":
        with pytest.raises(DataError, match=r"row 4000 \(from 0\), column 'x'"):
            open_table(spec(), tmp_path, tmp_path / "cache")
        return
    first = open_table(spec(), tmp_path, tmp_path / "cache")
    second = rescanned(tmp_path, spec())
    assert first.columns == second.columns
    assert first.columns[0].kind == ("categorical" if last == "word" else "numeric")
    assert (first.classes, first.warnings) == (second.classes, second.warnings)


def test_a_missing_number_before_a_word_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that fails on the way says nothing: the column may yet turn out to hold texts."""
    monkeypatch.setattr(parquet, "CSV_BLOCK_BYTES", 2**12)
    rows = [str(i % 7) if i != 5 else "NA" for i in range(20_000)]
    text = "\n".join(["x,y", *(f"{row},1" for row in rows), "word,2"]) + "\n"
    (tmp_path / "t.csv").write_text(text)
    source = open_table(spec(label=""), tmp_path, tmp_path / "cache")
    column = source.columns[0]
    assert column.categories == ("0", "1", "2", "3", "4", "5", "6", "NA", "word")
    assert sum(column.counts) == 20_001


@pytest.mark.parametrize("n", [1, 4_096, 4_097, 30_000])
@pytest.mark.parametrize("group", [1_000, 8_192])
def test_a_sample_is_gathered_before_the_number_of_rows_is_known(n: int, group: int) -> None:
    sample = MarginalSample()
    for first in range(0, n, group):
        positions = np.arange(first, min(first + group, n), dtype=np.float64)
        sample.add(first, [positions, -positions])
    rows = sample.rows()
    assert np.array_equal(rows[:, 0], marginal_positions(n))
    assert np.array_equal(rows[:, 1], -rows[:, 0])
    assert len(rows) == min(n, array_rows.MARGINAL_ROWS)


# Files that change


@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
def test_a_file_that_changes_while_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "t.csv"
    write(path)
    content = path.read_bytes()
    changed = {
        "longer": content + content.split(b"\n")[1] + b"\n",
        "shorter": content[: content.rindex(b"\n", 0, len(content) // 2) + 1],
        "other": content.replace(b"long word", b"LONG WORD"),
    }[change]
    monkeypatch.setattr(parquet, "CSV_BLOCK_BYTES", 2**14)
    reads = 0
    written = threading.Event()
    read = hashed_stream.HashedStream.read

    def late(self: HashedStream, size: int = -1) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 5:
            path.write_bytes(changed)
            written.set()
        return read(self, size)

    with monkeypatch.context() as patch:
        patch.setattr(HashedStream, "read", late)
        with pytest.raises(KrepesError) as error:
            open_table(spec(), tmp_path, tmp_path / "cache")
    assert str(path) in str(error.value)
    # The reader's own thread writes: it may be in the middle of it when the change is seen.
    assert written.wait(30)
    # Nothing of it is kept.
    assert not list((tmp_path / "cache").glob("rows-*"))
    source = open_table(spec(), tmp_path, tmp_path / "cache")
    assert source.n_samples == changed.count(b"\n") - 1
