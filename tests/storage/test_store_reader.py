from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from krepes_ooc.core.blocks import Block
from krepes_ooc.errors import DamageError, StageFailed, WorkspaceError
from krepes_ooc.storage.store_reader import StoreReader
from tests.storage import stores
from tests.storage.stores import ARRAYS, BLOCKS, VALUES

CHUNK = "values/c/1/2/0"  # view 1, block 2
N_BYTES = 256 * stores.FEATURES * 2 + 4


@pytest.fixture
def reader(tmp_path: Path) -> StoreReader:
    return stores.sealed(tmp_path)[0].reader("features")


def compressed(reader: StoreReader, target: Path) -> StoreReader:
    """A copy of the store as somebody's tool would make it: other codec, one array a folder."""
    for name in ARRAYS:
        info = reader.info(name)
        array = zarr.create_array(
            target / name,
            shape=info.shape,
            chunks=info.chunks,
            dtype=info.dtype,
            compressors=[ZstdCodec()],
            dimension_names=info.dims,
            zarr_format=3,
        )
        array[...] = ARRAYS[name]
    return StoreReader(target)


def check_conforms(reader: StoreReader) -> None:
    for name, values in ARRAYS.items():
        assert reader.has(name)
        found = reader.array(name)
        assert found.dtype == values.dtype
        assert found.flags.writeable
        np.testing.assert_array_equal(found, values)
    for block in BLOCKS:
        rows = slice(block.start, block.stop)
        np.testing.assert_array_equal(reader.block("sample_id", block), stores.SAMPLE_ID[rows])
        for view in range(stores.VIEWS):
            for name in ("values", "self_kernel"):
                found = reader.block(name, block, view)
                assert found.dtype == ARRAYS[name].dtype
                np.testing.assert_array_equal(found, ARRAYS[name][view, rows])


def test_mapped_store_conforms(reader: StoreReader):
    check_conforms(reader)
    check_conforms(reader)
    assert reader.names() == sorted(ARRAYS)
    assert not reader.has("more")
    assert reader.attributes["probes"] == {"of": "probes"}


def test_store_of_another_codec_is_refused(reader: StoreReader, tmp_path: Path):
    """Few bytes of a compressed chunk may become gigabytes: no codec but the writer's is read."""
    other = compressed(reader, tmp_path / "copy")
    for name in ARRAYS:
        with pytest.raises(DamageError, match=r"zstd.*; expected"):
            other.array(name)


def test_a_rechunked_store_is_refused(reader: StoreReader, tmp_path: Path):
    info, values = reader.info("values"), ARRAYS["values"]
    chunks = (1, info.chunks[1] // 2 + 1, *info.chunks[2:])
    array = zarr.create_array(
        tmp_path / "copy" / "values",
        shape=info.shape,
        chunks=chunks,
        dtype=info.dtype,
        dimension_names=info.dims,
        zarr_format=3,
    )
    array[...] = values
    with pytest.raises(DamageError, match="codecs"):
        StoreReader(tmp_path / "copy").array("values")


def test_blocks_cannot_be_written_through(reader: StoreReader):
    for name in ("values", "self_kernel"):
        rows = reader.block(name, BLOCKS[0])
        assert not rows.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            rows[0] = 1
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            rows.flags.writeable = True


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_value(path: Path) -> None:
    stores.flip(path, 8 * 77 + 3)


def flip_suffix(path: Path) -> None:
    stores.flip(path, 8 * (path.stat().st_size - 2))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (Path.unlink, f"the chunk is missing; expected {N_BYTES} bytes"),
    (truncate, f"{N_BYTES - 5} bytes; expected {N_BYTES} bytes"),
    (lengthen, f"{N_BYTES + 1} bytes; expected {N_BYTES} bytes"),
    (zero, "crc32c of the values is 28ef62ef; expected 00000000"),
    (flip_value, "crc32c of the values is"),
    (flip_suffix, "crc32c of the values is"),
    (make_folder, f"a folder instead of a file); expected a file of {N_BYTES} bytes"),
    (make_link, "cannot be mapped"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
def test_damaged_chunk_is_named(reader: StoreReader, damage: Callable[[Path], None], told: str):
    damage(reader.path / CHUNK)
    for read in (lambda: reader.block("values", BLOCKS[2], 1), lambda: reader.array("values")):
        with pytest.raises(DamageError) as caught:
            read()
        assert caught.value.where == str(reader.path / CHUNK)
        if damage is not zero:
            assert told in str(caught.value)
        assert str(caught.value).endswith("; `krepes verify` lists all damage")
    np.testing.assert_array_equal(reader.block("values", BLOCKS[2], 0), VALUES[0, 512:])


def test_checksum_is_compared_on_first_touch_by_this_reader(tmp_path: Path):
    space, _ = stores.sealed(tmp_path)
    reader = space.reader("features")
    reader.block("values", BLOCKS[2], 1)
    flip_value(reader.path / CHUNK)
    reader.block("values", BLOCKS[2], 1)
    assert space.reader("features") is reader
    space.drop_reader("features")
    with pytest.raises(DamageError, match="crc32c"):
        space.reader("features").block("values", BLOCKS[2], 1)


def test_failed_check_is_repeated(reader: StoreReader):
    flip_value(reader.path / CHUNK)
    for _ in range(2):
        with pytest.raises(DamageError, match="crc32c"):
            reader.block("values", BLOCKS[2], 1)
    flip_value(reader.path / CHUNK)
    reader.block("values", BLOCKS[2], 1)


def test_size_is_checked_at_every_touch(reader: StoreReader):
    """A map beyond the end of a file would kill the process."""
    reader.block("values", BLOCKS[2], 1)
    truncate(reader.path / CHUNK)
    with pytest.raises(DamageError, match=f"{N_BYTES - 5} bytes"):
        reader.block("values", BLOCKS[2], 1)


def test_rows_stay_while_their_file_is_replaced_or_removed(reader: StoreReader):
    rows = reader.block("values", BLOCKS[2], 1)
    path = reader.path / CHUNK
    new = path.with_name("new")
    new.write_bytes(bytes(N_BYTES))
    new.replace(path)
    np.testing.assert_array_equal(rows, VALUES[1, 512:])
    path.unlink()
    np.testing.assert_array_equal(rows, VALUES[1, 512:])


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("values", Block(0, 0, 255 + 2)),
        ("values", Block(1, 255, 511)),
        ("values", Block(0, 128, 256)),
        ("values", Block(2, 512, 768)),
        ("values", Block(3, 768, 1024)),
        ("values", Block(0, 0, 0)),
        ("centre", Block(0, 0, 3)),
    ],
)
def test_block_of_another_plan_is_refused(reader: StoreReader, name: str, block: Block):
    with pytest.raises(StageFailed) as caught:
        reader.block(name, block)
    told = f"{reader.path / name}: block {block.index}, rows {block.start} to {block.stop}; expec"
    assert str(caught.value).startswith(told)


def test_views_that_are_not_there_are_missing_chunks(reader: StoreReader):
    for view in (2, -1):
        with pytest.raises(DamageError, match="the chunk is missing"):
            reader.block("values", BLOCKS[0], view)


def test_missing_arrays_and_stores_are_told(reader: StoreReader, tmp_path: Path):
    with pytest.raises(WorkspaceError, match=r"more/zarr\.json: the store has no metadata"):
        reader.array("more")
    with pytest.raises(WorkspaceError, match="the store has no metadata"):
        _ = StoreReader(tmp_path / "none").attributes


def test_ten_thousand_blocks_leak_no_descriptor_and_no_memory(reader: StoreReader):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(str(reader.path / CHUNK))

    reader.block("values", BLOCKS[2], 1)
    before = descriptors()
    for _ in range(10_000):
        rows = reader.block("values", BLOCKS[2], 1)
    assert descriptors() <= before + 1
    assert maps() <= 1
    del rows
    assert descriptors() <= before


def test_running_out_of_descriptors_is_no_damage(reader: StoreReader):
    reader.block("values", BLOCKS[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[Any] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        with pytest.raises(StageFailed, match=r"cannot map \(Too many open files\)"):
            held.extend(reader.block("values", BLOCKS[0]) for _ in range(100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        held.clear()
    reader.block("values", BLOCKS[0])


def test_threads_touch_first_together(reader: StoreReader):
    work = [(block, view) for block in BLOCKS for view in range(2)] * 50

    def read(item: tuple[Block, int]) -> bool:
        block, view = item
        rows = reader.block("values", block, view)
        return np.array_equal(rows, VALUES[view, block.start : block.stop])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, work))
    flip_value(reader.path / CHUNK)
    fresh = StoreReader(reader.path)

    def is_seen(_: int) -> bool:
        with pytest.raises(DamageError):
            fresh.block("values", BLOCKS[2], 1)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_seen, range(100)))


def rewrite(reader: StoreReader, name: str, **changes: Any) -> StoreReader:
    path = reader.path / name / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return StoreReader(reader.path)


def chunked(*lengths: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(lengths)}}


def test_absurd_shapes_allocate_nothing(reader: StoreReader):
    for shape, chunks in (
        ([2**50], [3]),
        ([2**50], [2**28 - 1]),
        ([2**53], [1]),
    ):
        hostile = rewrite(reader, "centre", shape=shape, chunk_grid=chunked(*chunks))
        with pytest.raises(DamageError, match=r"the chunk is missing|bytes; expected"):
            hostile.array("centre")


def test_array_larger_than_the_memory_is_one_clear_error(reader: StoreReader):
    (reader.path / "centre" / "c" / str(2**50 // 3)).write_bytes(
        (reader.path / "centre" / "c" / "0").read_bytes()
    )
    hostile = rewrite(reader, "centre", shape=[2**50])
    with pytest.raises(StageFailed, match=r"Unable to allocate .* expected an array that fits"):
        hostile.array("centre")


def test_object_arrays_are_never_opened(reader: StoreReader):
    hostile = rewrite(reader, "values", data_type="object")
    with pytest.raises(DamageError, match="data type 'object'"):
        hostile.block("values", BLOCKS[0])


def test_array_behind_a_link_is_refused(reader: StoreReader, tmp_path: Path):
    (reader.path / "values").rename(tmp_path / "outside")
    (reader.path / "values").symlink_to(tmp_path / "outside")
    with pytest.raises(WorkspaceError, match="features/values: a symbolic link, to /"):
        StoreReader(reader.path).block("values", BLOCKS[0])
