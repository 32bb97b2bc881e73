"""A cache that was harmed is made again or named; it never gives another result."""

from __future__ import annotations

import gzip
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from krepes_ooc.errors import DamageError
from krepes_ooc.sources import cache
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.open import open_source
from krepes_ooc.sources.tables import parquet
from tests.storage.stores import flip

FLIPS = 24


def table(folder: Path) -> SourceSpec:
    draw = np.random.default_rng(0)
    lines = [f"{a:.6f},{'xyz'[int(3 * a)]},{'pq'[int(2 * a)]}" for a in draw.uniform(0, 1, 900)]
    (folder / "t.csv").write_text("a,town,kind\n" + "\n".join(lines) + "\n")
    return SourceSpec(kind="table", path="t.csv", label="kind")


def idx(folder: Path) -> SourceSpec:
    pixels = np.random.default_rng(1).integers(0, 256, (90, 5, 5), dtype=np.uint8)
    body = struct.pack(">HBB3I", 0, 8, 3, *pixels.shape) + pixels.tobytes()
    (folder / "x.gz").write_bytes(gzip.compress(body))
    return SourceSpec(kind="idx", path="x.gz")


def npz(folder: Path) -> SourceSpec:
    draw = np.random.default_rng(2)
    named = np.asarray(["one", "two", "three"])[draw.integers(0, 3, 70)]
    np.savez(folder / "x.npz", x=draw.normal(size=(70, 9)), y=named)
    return SourceSpec(kind="arrays", path="x.npz", array="x", label_array="y")


def images(folder: Path) -> SourceSpec:
    image = pytest.importorskip("PIL.Image")
    (folder / "images").mkdir()
    for i in range(5):
        image.fromarray(np.full((4, 4), 40 * i, dtype=np.uint8)).save(folder / f"images/{i}.png")
    return SourceSpec(kind="images", path="images")


def result(spec: SourceSpec, folder: Path) -> tuple[Any, ...]:
    """Everything that an audit takes from a source."""
    source = open_source(spec, folder, folder / "cache")
    everything = np.arange(source.n_samples)
    raw = source.read(everything)
    bank = getattr(source, "marginal_rows", raw)
    return (
        source.fingerprint(),
        source.label_fingerprint(),
        source.encode(raw).tobytes(),
        source.labels(everything).tolist(),
        np.asarray(bank).tobytes(),
        source.names(everything),
    )


@pytest.mark.parametrize("make", [table, idx, npz, images])
def test_a_flipped_bit_is_found_or_harmless(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PIECE_BYTES", 512)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 200)
    spec = make(tmp_path)
    right = result(spec, tmp_path)
    files = [path for path in sorted((tmp_path / "cache").rglob("*")) if path.is_file()]
    assert result(spec, tmp_path) == right
    assert cache.damaged_files(tmp_path / "cache") == []
    draw = random.Random(0)
    for path in (path for path in files if path.stat().st_size):
        for _ in range(FLIPS):
            flip(path, draw.randrange(8 * path.stat().st_size))
            assert path in dict(cache.damaged_files(tmp_path / "cache"))
            messages = ""
            try:
                actual = result(spec, tmp_path)
            except DamageError as error:
                messages = str(error)
                path.unlink()
                actual = result(spec, tmp_path)
            assert actual == right
            assert not messages or (str(path) in messages and "run again with --repair" in messages)
            for harmed, _ in cache.damaged_files(tmp_path / "cache"):
                harmed.unlink()  # as a repair does: what was not used is still there
            assert result(spec, tmp_path) == right


@pytest.mark.parametrize("make", [table, idx, npz, images])
def test_any_file_may_be_gone(tmp_path: Path, make: Any) -> None:
    spec = make(tmp_path)
    right = result(spec, tmp_path)
    for path in [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]:
        path.unlink()
        assert cache.damaged_files(tmp_path / "cache") == []
        assert result(spec, tmp_path) == right


def test_a_cache_of_an_earlier_krepes_is_made_anew(tmp_path: Path) -> None:
    spec = table(tmp_path)
    right = result(spec, tmp_path)
    (converted,) = (tmp_path / "cache").glob("rows-*.parquet")
    converted.with_name(converted.name + cache.CHECKSUM_SUFFIX).unlink()
    pa.parquet.write_table(pa.table({"a": [1.0], "town": ["x"], "kind": ["p"]}), converted)
    assert result(spec, tmp_path) == right


def test_only_the_pieces_that_are_read_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "x"
    cache.cache_file(path, bytes(3 * cache.PIECE_BYTES + 5))
    cached = cache.find_cached(path)
    assert cached is not None
    flip(path, 8 * (cache.PIECE_BYTES + 7))
    cached.check(0, cache.PIECE_BYTES)
    cached.check_all(np.asarray([2, 0]) * cache.PIECE_BYTES, np.asarray([3, 1]) * cache.PIECE_BYTES)
    assert cached._checked == {0, 2}
    with pytest.raises(DamageError, match="x: bytes 1048576 to 2097152 differ from the checksum"):
        cached.check(cache.PIECE_BYTES - 1, cache.PIECE_BYTES + 1)
    cached.check(3 * cache.PIECE_BYTES, 3 * cache.PIECE_BYTES + 5)
    path.write_bytes(b"short")
    assert cache.find_cached(path) is None
    assert "5 bytes instead of 3145733" in cached.problem()


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    (tmp_path / "scan-1").mkdir()
    old, fresh, cached = tmp_path / "scan-1/.rows.a", tmp_path / ".rows.b", tmp_path / "rows"
    for path in (old, fresh, cached):
        path.write_bytes(b"x")
        os.utime(path, (0, 0) if path != fresh else (time.time(), time.time()))
    cache.remove_stale_files(tmp_path)
    assert not old.exists()
    assert fresh.exists()
    assert cached.exists()
    cache.remove_stale_files(tmp_path / "none")
