"""Arrays in tiles: written and read square by square, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from krepes_ooc.core import blocks
from krepes_ooc.errors import RecipeError, StageFailed
from krepes_ooc.storage.contracts import StoreSpec, load_contract, read_contract
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.store_writer import StoreWriter

M, VIEWS = 10, 2


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoreWriter:
    monkeypatch.setattr(blocks, "TILE", 4)
    (tmp_path / "temp").mkdir()
    spec = StoreSpec(load_contract("moments"), {"view": VIEWS, "landmark": M})
    writer = StoreWriter(tmp_path / "audit.zarr" / "moments", tmp_path / "temp", spec, "d")
    writer.create()
    return writer


def test_tiles_make_the_array(store: StoreWriter) -> None:
    second = np.arange(VIEWS * VIEWS * M * M, dtype=np.float64).reshape(VIEWS, VIEWS, M, M)
    ranges = blocks.tile_slices(M)
    files = {}
    for row, here in enumerate(ranges):
        for column, there in enumerate(ranges):
            files |= store.write_tile("second", row, column, second[:, :, here, there])
    assert len(files) == 9
    assert {size for size, _ in files.values()} == {VIEWS * VIEWS * 16 * 8 + 4}
    reader = StoreReader(store.path)
    assert reader.info("second").chunks == (VIEWS, VIEWS, 4, 4)
    assert np.array_equal(reader.tile("second", 2, 1), second[:, :, 8:, 4:8])
    assert np.array_equal(reader.array("second"), second)
    assert np.array_equal(reader.whole("second"), second)
    assert np.array_equal(zarr.open_array(store.path / "second")[:], second)


def test_small_array_is_one_tile(tmp_path: Path) -> None:
    spec = StoreSpec(load_contract("moments"), {"view": VIEWS, "landmark": M})
    assert spec.chunk_shape("second") == (VIEWS, VIEWS, M, M)
    one = StoreSpec(load_contract("moments"), {"view": VIEWS, "landmark": 1})
    assert one.chunk_shape("second") == (VIEWS, VIEWS, 1, 1)


@pytest.mark.parametrize(
    ("name", "at", "shape", "message"),
    [
        ("second", (0, 3), (VIEWS, VIEWS, 4, 4), "tile 0, 3; expected a chunk of shape"),
        ("second", (2, 2), (VIEWS, VIEWS, 4, 4), r"expected shape \(2, 2, 2, 2\)"),
        ("third", (0, 0), (4, 4), "the store has no such array"),
    ],
)
def test_wrong_tiles_are_refused(
    store: StoreWriter, name: str, at: tuple[int, int], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(StageFailed, match=message):
        store.write_tile(name, *at, np.zeros(shape))


def test_a_tiled_array_is_not_written_whole(store: StoreWriter) -> None:
    with pytest.raises(StageFailed, match="written piece by piece"):
        store.write_array("second", np.zeros((VIEWS, VIEWS, M, M)))


def test_tile_that_is_none_is_not_read(store: StoreWriter) -> None:
    with pytest.raises(StageFailed, match=r"tile -1, 0; expected a chunk of dims"):
        StoreReader(store.path).tile("second", -1, 0)


def test_tiles_need_landmarks_last(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(
        "store: odd\nversion: 1\nwriter: kernel\nabout: x\narrays:\n"
        "  a: {dims: [landmark_, landmark], dtype: [float64], chunks: tile, about: x}\n"
    )
    with pytest.raises(RecipeError, match="expected landmark and landmark_ last"):
        read_contract(path)
