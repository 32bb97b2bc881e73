from __future__ import annotations

import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import checksum, to_json
from krepes_ooc.errors import PlanRefused, RecipeError, StageFailed, WorkspaceError
from krepes_ooc.storage.contracts import ArrayContract, Contract, StoreSpec, load_contract
from krepes_ooc.storage.journal import Unit
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.store_writer import StoreWriter
from krepes_ooc.storage.workspace import Workspace
from tests.storage import stores
from tests.storage.stores import ARRAYS, BLOCKS, SPEC, VALUES

FORK = get_context("fork")
HOLDS = {"float16": 2, "float32": 4, "float64": 8, "int64": 8, "uint8": 1}


def writer_for(root: Path, spec: StoreSpec = SPEC, digest: str = "d1") -> StoreWriter:
    writer = stores.open_workspace(root).writer(spec, digest)
    writer.create()
    return writer


def small(name: str, dims: tuple[str, ...], dtype: str, **sizes: int) -> StoreSpec:
    """A store of one whole array."""
    array = ArrayContract(dims, (dtype,), "whole", "anything")
    return StoreSpec(Contract("any", 1, "any", "any", {name: array}), sizes)


def refused(writer: StoreWriter, name: str, block: Block, values: Any, view: int = 0) -> str:
    before = stores.files_in(writer.path)
    with pytest.raises(StageFailed) as caught:
        writer.write_block(name, block, values, view)
    assert stores.files_in(writer.path) == before
    return str(caught.value)


def test_store_is_read_bit_for_bit_by_zarr_and_xarray_without_a_warning(tmp_path: Path):
    space, _ = stores.sealed(tmp_path)
    audit = str(space.root) + "/audit.zarr"
    for _ in ("before", "after consolidate"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            group = zarr.open_group(audit, mode="r")
            tree = xarray.open_datatree(audit, engine="zarr")
            opened = xarray.open_zarr(audit, group="features")
        for name, values in ARRAYS.items():
            array = group[f"features/{name}"]
            assert isinstance(array, zarr.Array)
            labelled = tree["features"][name]
            for found in (array[...], labelled.values, opened[name].values):
                assert np.asarray(found).dtype == values.dtype
                np.testing.assert_array_equal(np.asarray(found), values)
            assert labelled.dims == SPEC.contract.arrays[name].dims
            assert labelled.attrs["long_name"] == SPEC.contract.arrays[name].about
        attributes = tree["features"].attrs
        assert attributes["probes"] == {"of": "probes"}
        assert attributes["krepes"] == {"store": "features", "version": 1, "digest": "d1"}
        tree.close()
        space.consolidate()


def test_nothing_but_zarr_lies_inside_the_audit(tmp_path: Path):
    space, _ = stores.sealed(tmp_path)
    for name in stores.files_in(space.audit):
        assert name.endswith("zarr.json") or "/c/" in name
    group = zarr.open_group(str(space.audit), mode="r", use_consolidated=False)
    keys = {"zarr.json", "features/zarr.json"}
    for name in ARRAYS:
        array = group[f"features/{name}"]
        assert isinstance(array, zarr.Array)
        grid = np.ndindex(*array.cdata_shape)
        keys |= {f"features/{name}/{array.metadata.encode_chunk_key(at)}" for at in grid}
        keys |= {f"features/{name}/zarr.json"}
    assert set(stores.files_in(space.audit)) == keys


def test_chunk_file_is_the_values_and_their_checksum(tmp_path: Path):
    writer = writer_for(tmp_path)
    files = writer.write_block("values", BLOCKS[1], VALUES[1, 256:512], view=1)
    payload = VALUES[1, 256:512].tobytes()
    assert files == {"values/c/1/1/0": (len(payload) + 4, checksum(payload))}
    data = (writer.path / "values/c/1/1/0").read_bytes()
    assert data == payload + checksum(payload).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("name", "fill"), [("values", np.nan), ("self_kernel", np.nan), ("sample_id", -1)]
)
def test_last_chunk_is_padded_with_fill(tmp_path: Path, name: str, fill: float):
    writer = writer_for(tmp_path)
    rows = ARRAYS[name][..., 512:600, :] if name == "values" else ARRAYS[name][..., 512:600]
    (key,) = writer.write_block(name, BLOCKS[2], rows if name == "sample_id" else rows[0])
    info = StoreReader(writer.path).info(name)
    data = (writer.path / key).read_bytes()[:-4]
    chunk = np.frombuffer(data, dtype=info.dtype).reshape(info.chunks)
    chunk = chunk if name == "sample_id" else chunk[0]
    np.testing.assert_array_equal(chunk[:88], rows if name == "sample_id" else rows[0])
    np.testing.assert_array_equal(chunk[88:], np.full_like(chunk[88:], fill))


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
    dtype=st.sampled_from(sorted(HOLDS)),
    seed=st.integers(0, 99),
)
def test_any_whole_array_comes_back(tmp_path_factory: Any, shape: Any, dtype: str, seed: int):
    dims = tuple(f"d{axis}" for axis in range(len(shape)))
    spec = small("x", dims, dtype, **dict(zip(dims, shape, strict=True)))
    writer = writer_for(tmp_path_factory.mktemp("any"), spec)
    values = np.random.default_rng(seed).integers(0, 9, size=shape).astype(dtype)
    files = writer.write_array("x", values)
    assert len(files) == (values.size > 0)
    found = StoreReader(writer.path).array("x")
    plain = zarr.open_array(writer.path / "x", mode="r")[...]
    for other in (found, np.asarray(plain)):
        assert other.dtype == values.dtype
        assert other.shape == shape
        np.testing.assert_array_equal(other, values)


def test_store_without_arrays(tmp_path: Path):
    spec = StoreSpec(load_contract("fidelity"), {})
    space = stores.open_workspace(tmp_path)
    writer = space.writer(spec, "d")
    writer.create()
    figures = {"rho": {"value": float("nan"), "words": "<b>é</b>"}}
    writer.set_attributes(dict.fromkeys(spec.contract.attributes, figures))
    assert list(writer.metadata_files()) == ["zarr.json"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xarray.open_datatree(str(space.audit), engine="zarr")
    assert tree["fidelity"].attrs["figures"] == {"rho": {"value": None, "words": "<b>é</b>"}}
    assert StoreReader(writer.path).names() == []


def test_values_in_any_memory_order_are_stored_alike(tmp_path: Path):
    writer, rows = writer_for(tmp_path), VALUES[0, :256]
    expected = writer.write_block("values", BLOCKS[0], rows)
    wide = np.zeros((512, 10), dtype=np.float16)
    wide[::2, ::2] = rows
    for same in (np.asfortranarray(rows), wide[::2, ::2], rows.astype(">f2")):
        assert writer.write_block("values", BLOCKS[0], same) == expected
    centre = np.arange(3.0)
    expected = writer.write_array("centre", centre)
    assert writer.write_array("centre", centre[::-1][::-1]) == expected
    np.testing.assert_array_equal(StoreReader(writer.path).array("centre"), centre)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["values", "self_kernel", "centre"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float):
    writer = writer_for(tmp_path)
    array = ARRAYS[name]
    rows = (array[0, :256] if name != "centre" else array).copy()
    rows.reshape(-1)[2] = value
    if name == "centre":
        with pytest.raises(StageFailed) as caught:
            writer.write_array(name, rows)
        told = str(caught.value)
    else:
        told = refused(writer, name, BLOCKS[0], rows)
    at = [0, 2] if name == "values" else [2]
    assert told == f"store features, array {name}: {value} at {at}; expected finite numbers"


def test_every_finite_half_is_accepted_and_no_other(tmp_path: Path):
    bits = np.arange(2**16, dtype=np.uint16)
    halves = bits.view(np.float16)
    writer = writer_for(tmp_path, small("x", ("n",), "float16", n=int(np.isfinite(halves).sum())))
    writer.write_array("x", halves[np.isfinite(halves)])
    for half in halves[~np.isfinite(halves)][::97]:
        row = halves[np.isfinite(halves)].copy()
        row[-1] = half
        with pytest.raises(StageFailed, match="expected finite numbers"):
            writer.write_array("x", row)


ROWS = VALUES[0, :256]


@pytest.mark.parametrize(
    ("name", "block", "values", "view", "told"),
    [
        ("values", BLOCKS[0], ROWS.astype("f4"), 0, "dtype float32; expected dtype float16"),
        ("sample_id", BLOCKS[0], np.arange(256.0), 0, "dtype float64; expected dtype int64"),
        ("values", BLOCKS[0], ROWS[:, :4], 0, "shape (256, 4); expected shape (256, 5)"),
        ("values", BLOCKS[0], ROWS[:200], 0, "shape (200, 5); expected shape (256, 5)"),
        ("values", BLOCKS[2], ROWS, 0, "shape (256, 5); expected shape (88, 5)"),
        ("values", BLOCKS[0], ROWS[None], 0, "shape (1, 256, 5); expected shape (256, 5)"),
        ("values", BLOCKS[0], ROWS[0], 0, "shape (5,); expected shape (256, 5)"),
        ("values", BLOCKS[0], ROWS, 2, "view 2; expected 0 to 1"),
        ("values", BLOCKS[0], ROWS, -1, "view -1; expected 0 to 1"),
        ("values", Block(0, 0, 300), VALUES[0, :300], 0, "block 0, rows 0 to 300; expected a chu"),
        ("values", Block(1, 200, 456), ROWS, 0, "block 1, rows 200 to 456; expected a chunk of"),
        ("values", Block(2, 512, 768), ROWS, 0, "block 2, rows 512 to 768; expected a chunk of"),
        ("centre", BLOCKS[0], np.zeros(3), 0, "block 0, rows 0 to 256; expected a chunk of shape"),
        ("more", BLOCKS[0], ROWS, 0, "the store has no such array; expected one of ['values', '"),
    ],
)
def test_wrong_block_is_refused(
    tmp_path: Path, name: str, block: Block, values: npt.NDArray[Any], view: int, told: str
):
    said = refused(writer_for(tmp_path), name, block, values, view)
    assert said.startswith(f"store features, array {name}: {told}")


def test_wrong_whole_array_is_refused(tmp_path: Path):
    writer = writer_for(tmp_path)
    for name, values, told in (
        ("centre", np.zeros(4), "shape (4,); expected shape (3,)"),
        ("centre", np.zeros(3, dtype=np.float32), "dtype float32; expected dtype float64"),
        ("sample_id", stores.SAMPLE_ID, "a whole array; expected chunks (256,), written piece by"),
        ("more", np.zeros(3), "the store has no such array"),
    ):
        with pytest.raises(StageFailed, match=name) as caught:
            writer.write_array(name, values)
        assert told in str(caught.value)


def test_oversize_chunk_is_refused_before_anything_is_written(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    spec = replace(stores.sized(feature=2**23), block_rows=256)
    with pytest.raises(PlanRefused) as caught:
        space.writer(spec, "d").create()
    assert str(caught.value) == (
        "store features: one chunk of 'values' would take 4294967296 bytes; "
        "expected at most 2147483647; choose fewer landmarks or fewer features"
    )
    assert caught.value.exit_code == 3
    assert list(stores.files_in(space.audit)) == ["zarr.json"]


def test_creating_twice_changes_nothing(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    space.writer(SPEC, "d1").create()
    before, stat = stores.files_in(space.root), (space.audit / "features").stat()
    space.writer(SPEC, "d1").create()
    assert stores.files_in(space.root) == before
    assert (space.audit / "features").stat() == stat
    assert list((space.private / "temp").iterdir()) == []


def test_racing_processes_create_one_template(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    for turn in range(6):
        spec = replace(SPEC, contract=replace(SPEC.contract, store=f"store{turn}"))
        barrier = FORK.Barrier(3)

        def create(barrier: Any = barrier, spec: StoreSpec = spec) -> None:
            writer = Workspace(tmp_path).writer(spec, "d")
            barrier.wait()
            writer.create()

        processes = [stores.start(create) for _ in range(3)]
        for process in processes:
            process.join(20)
            assert process.exitcode == 0
        assert StoreReader(space.audit / f"store{turn}").names() == sorted(ARRAYS)
    assert list((space.private / "temp").iterdir()) == []


def test_store_of_another_digest_is_refused(tmp_path: Path):
    writer_for(tmp_path)
    with pytest.raises(WorkspaceError) as caught:
        writer_for(tmp_path, digest="d2")
    assert "the store was written as {'digest': 'd1'" in str(caught.value)
    assert "'digest': 'd2'" in caught.value.expected


@pytest.mark.parametrize("harm", [b"{", b'{"attributes": 3}', b"another shape", b"no digest"])
@pytest.mark.parametrize("array", ["", "values"])
def test_damaged_documents_of_a_begun_store_are_put_back(tmp_path: Path, array: str, harm: bytes):
    writer = writer_for(tmp_path)
    before = stores.files_in(writer.path)
    path = writer.path / array / "zarr.json"
    changes = {b"another shape": (b"600", b"601"), b"no digest": (b'"digest"', b'"dhgest"')}
    path.write_bytes(path.read_bytes().replace(*changes[harm]) if harm in changes else harm)
    writer_for(tmp_path)
    assert stores.files_in(writer.path) == before


def test_lost_documents_are_written_again(tmp_path: Path):
    writer = writer_for(tmp_path)
    before = stores.files_in(writer.path)
    (writer.path / "zarr.json").unlink()
    (writer.path / "values" / "zarr.json").unlink()
    writer.create()
    assert stores.files_in(writer.path) == before


def test_sealed_documents_are_those_that_were_meant(tmp_path: Path):
    """A bit that flips in a document while the stage runs is not sealed in."""
    space = stores.open_workspace(tmp_path)
    record, writer = stores.begin(space)
    stores.flip(writer.path / "values" / "zarr.json", 8 * 30)
    stores.finish(record, writer)
    other, _ = stores.sealed(tmp_path / "other")
    assert stores.files_in(space.audit) == stores.files_in(other.audit)


def test_attributes_are_checked_before_they_are_written(tmp_path: Path):
    writer = writer_for(tmp_path)
    before = stores.files_in(writer.path)
    for wrong in ({}, {**stores.ATTRIBUTES, "more": 1}):
        with pytest.raises(RecipeError, match=r"stores/features\.yaml: attribute '"):
            writer.set_attributes(wrong)
    assert stores.files_in(writer.path) == before


def test_attributes_of_arrays_reach_the_store(tmp_path: Path):
    spec = replace(SPEC, array_attributes={"sample_id": {"categories": ["<a>", "é"], "x": np.nan}})
    writer = writer_for(tmp_path, spec)
    found = StoreReader(writer.path).info("sample_id").attributes
    about = SPEC.contract.arrays["sample_id"].about
    assert to_json(found) == to_json({"long_name": about, "categories": ["<a>", "é"], "x": None})


def test_threads_write_different_chunks(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, writer = stores.begin(space)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda block: stores.write_unit(record, writer, block), BLOCKS * 4))
    stores.finish(record, writer)
    reader = space.reader("features")
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(reader.array(name), values)


def test_link_inside_the_store_is_not_written_through(tmp_path: Path):
    writer = writer_for(tmp_path / "w")
    outside = tmp_path / "outside"
    outside.mkdir()
    (writer.path / "values" / "c").symlink_to(outside)
    with pytest.raises(WorkspaceError, match="a symbolic link, to"):
        writer.write_block("values", BLOCKS[0], ROWS)
    assert list(outside.iterdir()) == []


def test_full_disk_is_told_and_the_run_resumes(tmp_path: Path):
    with stores.mounted(tmp_path / "disk", "1m") as disk:
        space = stores.open_workspace(disk / "w")
        record, writer = stores.begin(space)
        filler = stores.fill_disk(disk, 24 * 1024)
        with pytest.raises(StageFailed, match=r"the disk is full: .* needed, .* free"):
            stores.finish(record, writer)
        record.journal.close()
        assert not record.is_sealed()
        assert list((space.private / "temp").iterdir()) == []
        filler.unlink()
        stores.finish(record, writer)
        for name, values in ARRAYS.items():
            np.testing.assert_array_equal(space.reader("features").array(name), values)


def write_until_killed(root: Path) -> None:
    space = Workspace(root)
    with space.lock():
        space.remove_stale_files()
        record, writer = space.record("features", "features"), space.writer(BIG, "d1")
        if record.begun() is None:
            record.begin(stores.BEGUN)
        writer.create()
        done = record.done()
        for block in BIG_BLOCKS:
            if f"block {block.index}" not in done:
                files = {}
                for view in range(2):
                    rows = BIG_VALUES[view, block.start : block.stop]
                    files |= writer.write_block("values", block, rows, view)
                record.journal.append(Unit(f"block {block.index}", files))
                time.sleep(0.002)


BIG = stores.sized(sample=20 * 256, feature=200)
BIG_BLOCKS = [Block(i, 256 * i, 256 * i + 256) for i in range(20)]
BIG_VALUES = np.random.default_rng(1).normal(size=(2, 20 * 256, 200)).astype(np.float16)


def test_killed_writer_leaves_whole_chunks_and_a_resumable_record(tmp_path: Path):
    chance, space, kills = random.Random(3), stores.open_workspace(tmp_path), 0
    record = space.record("features", "features")
    while len(record.done()) < len(BIG_BLOCKS):
        process = stores.start(lambda: write_until_killed(tmp_path))
        process.join(chance.uniform(0.005, 0.05))
        kills += process.exitcode is None
        process.kill()
        process.join()
        units, damaged = record.units()
        assert damaged == 0
        assert set(record.done()) == set(units)
        for path in space.audit.glob("features/values/c/*/*/*"):
            data = path.read_bytes()
            assert len(data) == 2 * 256 * 200 + 4
            assert checksum(data[:-4]) == int.from_bytes(data[-4:], "little")
        assert kills < 300
    assert kills >= 3
    np.testing.assert_array_equal(space.reader("features").array("values"), BIG_VALUES)
    with space.lock():
        space.remove_stale_files()
    assert list((space.private / "temp").iterdir()) == []
