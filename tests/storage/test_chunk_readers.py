"""One conformance test for the three ways to read a chunk."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import checksum
from krepes_ooc.errors import DamageError
from krepes_ooc.storage import chunk_readers
from krepes_ooc.storage.chunk_readers import (
    BufferPool,
    ChunkReader,
    DirectReader,
    MmapReader,
    choose_reader,
)
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.zarr_metadata import ArrayInfo, array_document, to_bytes

SHAPE, CHUNKS = (2, 1000, 7), (1, 256, 7)
VALUES = np.random.default_rng(3).normal(size=SHAPE).astype(np.float16)
INFO = ArrayInfo(SHAPE, CHUNKS, np.dtype("<f2"), ("view", "sample", "feature"), {})
WAYS: tuple[Callable[[], ChunkReader], ...] = (MmapReader, DirectReader)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An array in the form that krepes writes."""
    array = tmp_path / "store" / "values"
    for at in np.ndindex(*INFO.n_chunks):
        chunk = np.full(CHUNKS, np.nan, dtype=np.float16)
        rows = VALUES[at[0], at[1] * 256 : at[1] * 256 + 256]
        chunk[0, : len(rows)] = rows
        path = chunk_readers.chunk_path(array, at)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chunk.tobytes() + checksum(chunk).to_bytes(4, "little"))
    (array / "zarr.json").write_bytes(to_bytes(array_document(INFO)))
    return array


@pytest.mark.parametrize("kind", WAYS)
def test_values_and_checksum(folder: Path, kind: Callable[[], ChunkReader]) -> None:
    way = kind()
    for at in np.ndindex(*INFO.n_chunks):
        values, suffix = way.chunk(folder, INFO, at)
        assert values.shape == CHUNKS
        assert not values.flags.writeable
        rows = VALUES[at[0], at[1] * 256 : at[1] * 256 + 256]
        assert np.array_equal(values[0, : len(rows)], rows)
        assert suffix in (None, checksum(np.ascontiguousarray(values)))


@pytest.mark.parametrize("kind", WAYS)
def test_missing_and_truncated(folder: Path, kind: Callable[[], ChunkReader]) -> None:
    first, second = (chunk_readers.chunk_path(folder, (0, i, 0)) for i in range(2))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(DamageError, match="the chunk is missing"):
        kind().chunk(folder, INFO, (0, 0, 0))
    with pytest.raises(DamageError, match="krepes verify"):
        kind().chunk(folder, INFO, (0, 1, 0))


@pytest.mark.parametrize("kind", WAYS)
def test_replaced_under_a_reader(folder: Path, kind: Callable[[], ChunkReader]) -> None:
    values, _ = kind().chunk(folder, INFO, (0, 0, 0))
    before = values.copy()
    path = chunk_readers.chunk_path(folder, (0, 0, 0))
    other = path.with_suffix(".part")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)
    assert np.array_equal(values, before, equal_nan=True)


def test_truncated_while_mapped_is_found_on_the_next_touch(folder: Path) -> None:
    reader = StoreReader(folder.parent, direct_above=0)
    assert reader.block("values", Block(0, 0, 256)).shape == (256, 7)
    os.truncate(chunk_readers.chunk_path(folder, (0, 0, 0)), 100)
    with pytest.raises(DamageError, match="100 bytes; expected 3588 bytes"):
        reader.block("values", Block(0, 0, 256))


def test_buffers_are_used_again_and_never_while_seen(folder: Path) -> None:
    way = DirectReader()
    first = way.chunk(folder, INFO, (0, 0, 0))[0][0, :10]
    kept = first.copy()
    second = way.chunk(folder, INFO, (1, 0, 0))[0]
    assert np.array_equal(first, kept)
    where = second.ctypes.data
    del second
    gc.collect()
    assert way.chunk(folder, INFO, (1, 1, 0))[0].ctypes.data == where
    assert np.array_equal(first, kept)


def test_pool_keeps_few_buffers() -> None:
    pool = BufferPool()
    buffers = [pool.acquire(10) for _ in range(2 * chunk_readers.MAX_IDLE_BUFFERS)]
    assert all(len(buffer) == chunk_readers.PAGE for buffer in buffers)
    for buffer in buffers:
        pool.release(buffer)
    assert len(pool._idle) == chunk_readers.MAX_IDLE_BUFFERS
    assert len(pool.acquire(chunk_readers.PAGE + 1)) == 2 * chunk_readers.PAGE


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_file_system_without_direct_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened, really = [], os.open

    def refuse(path: Any, flags: int, *more: Any) -> int:
        opened.append(bool(flags & os.O_DIRECT))
        if opened[-1]:
            raise OSError(number, os.strerror(number))
        return really(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    way = DirectReader()
    for at in ((0, 0, 0), (1, 0, 0)):
        assert np.array_equal(way.chunk(folder, INFO, at)[0][0], VALUES[at[0], :256])
    assert opened == [True, False, False]


def test_too_many_files_are_our_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Exception, match=r"cannot map \(Too many open files\)"):
        MmapReader().chunk(folder, INFO, (0, 0, 0))


def test_choice(tmp_path: Path) -> None:
    size = 2 * 4 * 256 * 7 * 2
    assert isinstance(choose_reader(INFO, None), MmapReader)
    assert isinstance(choose_reader(INFO, size), MmapReader)
    assert isinstance(choose_reader(INFO, size - 1), DirectReader)


@pytest.mark.parametrize("direct_above", [None, 0])
def test_reader_checks_what_it_reads(folder: Path, direct_above: int | None) -> None:
    reader = StoreReader(folder.parent, direct_above)
    block = Block(3, 768, 1000)
    assert np.array_equal(reader.block("values", block, 1), VALUES[1, 768:])
    path = chunk_readers.chunk_path(folder, (0, 1, 0))
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match="crc32c of the values is"):
        reader.block("values", Block(1, 256, 512), 0)
