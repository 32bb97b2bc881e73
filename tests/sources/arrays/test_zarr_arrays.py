"""A user's own Zarr arrays as a source."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.arrays import zarr_arrays
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source

VALUES = np.random.default_rng(3).normal(size=(50, 7)).astype(np.float32)
NAMES = np.asarray(["b", "a", ""] * 16 + ["c", "c"])


def opened(folder: Path, **keys: Any) -> Source:
    return open_source(read_settings(SourceSpec, keys, "source"), folder, folder / "cache")


def written(path: Path, values: npt.NDArray[Any], **keys: Any) -> Path:
    array = zarr.create_array(
        path, shape=values.shape, dtype=values.dtype, config={"write_empty_chunks": True}, **keys
    )
    array[...] = values
    return path


@pytest.mark.parametrize(
    "keys",
    [
        {"chunks": (8, 3), "zarr_format": 2},
        {"chunks": (8, 3), "zarr_format": 3},
        {"chunks": (4, 7), "shards": (16, 7), "zarr_format": 3},
        {"chunks": (64, 7), "compressors": None},
    ],
)
def test_an_array(tmp_path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_arrays, "SLAB_BYTES", 100)  # three rows and a little
    written(tmp_path / "x.zarr", VALUES, **keys)
    source = opened(tmp_path, kind="arrays", path="x.zarr")
    picked = np.asarray([49, 3, 3, 0])
    assert np.array_equal(source.read(np.arange(50)), VALUES)
    assert np.array_equal(source.read(picked), VALUES[picked])
    assert source.resident_bytes == 0
    assert len(pickle.dumps(source)) < 3000, "the values travel with the source"
    assert json.loads(json.dumps(source.fingerprint())) == source.fingerprint()
    assert opened(tmp_path, kind="arrays", path="x.zarr").fingerprint() == source.fingerprint()
    assert opened(tmp_path, kind="arrays", path="x.zarr", limit=20).n_samples == 20


@pytest.mark.parametrize("key", ["filters", "compressor"])
def test_a_codec_that_runs_code_is_never_asked(tmp_path: Path, key: str) -> None:
    pickled = {"id": "pickle", "protocol": 5}
    folder = tmp_path / "g.zarr" / "x"
    folder.mkdir(parents=True)
    (tmp_path / "g.zarr/.zgroup").write_text('{"zarr_format": 2}')
    metadata = {
        "zarr_format": 2,
        "shape": [2, 2],
        "chunks": [2, 2],
        "dtype": "<f4",
        "compressor": pickled if key == "compressor" else None,
        "filters": [pickled] if key == "filters" else None,
        "fill_value": 0,
        "order": "C",
    }
    (folder / ".zarray").write_text(json.dumps(metadata))
    (folder / "0.0").write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode())
    # In a group Zarr itself finds no type for it; later versions of it may.
    for path, words in (
        ("g.zarr", "are never loaded|cannot be read"),
        ("g.zarr/x", "never loaded"),
    ):
        name = (tmp_path / path).rename(tmp_path / "moved.zarr").name
        with pytest.raises(SourceError, match=words):
            opened(tmp_path, kind="arrays", path=name)
        (tmp_path / name).rename(tmp_path / path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [-1, 4]}, "cannot be read"),
        ({"shape": "many"}, "cannot be read"),
        ({"data_type": "no_type"}, "cannot be read"),
        ({"codecs": [{"name": "nobody"}]}, "cannot be read"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 0]}}}, "c/"),
    ],
)
def test_harmed_metadata(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    metadata = written(tmp_path / "x.zarr", VALUES, chunks=(8, 7)) / "zarr.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | change))
    with pytest.raises(SourceError, match=message):
        opened(tmp_path, kind="arrays", path="x.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_and_labels_of_a_group(tmp_path: Path, version: Any) -> None:
    group = zarr.create_group(tmp_path / "g.zarr", zarr_format=version)
    config: Any = {"write_empty_chunks": True}
    for name, values in {"deep/x": VALUES.astype(">f8"), "other": VALUES, "y": NAMES}.items():
        dtype = str if values.dtype.kind == "U" and version == 3 else values.dtype
        chunks = (16, *values.shape[1:])
        array = group.create_array(
            name, shape=values.shape, chunks=chunks, dtype=dtype, config=config
        )
        array[...] = values
    source = opened(
        tmp_path, kind="arrays", path="g.zarr", array="deep/x", label_array="y", labels="g.zarr"
    )
    assert np.array_equal(source.read(np.arange(50)), VALUES)
    assert source.classes == ("a", "b", "c")
    assert source.labels(np.asarray([0, 1, 2, 49])).tolist() == [1, 0, -1, 2]
    with pytest.raises(SourceError, match=r"3 arrays and none is chosen; .* deep/x, other, y"):
        opened(tmp_path, kind="arrays", path="g.zarr")
    with pytest.raises(SourceError, match=r"no array 'z'; .* deep/x, other, y"):
        opened(tmp_path, kind="arrays", path="g.zarr", array="z")
    before = source.fingerprint()
    group["other"][:] = 0  # another array of the group changes nothing
    again = opened(tmp_path, kind="arrays", path="g.zarr", array="deep/x")
    assert again.fingerprint() == before
    group["deep/x"][0, 0] = 5  # this one does
    changed = opened(tmp_path, kind="arrays", path="g.zarr", array="deep/x")
    assert changed.fingerprint() != before
    assert changed.read(np.arange(1))[0, 0] == 5


def test_grey_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 6, 5), dtype=np.uint8)
    written(tmp_path / "x.zarr", pixels, chunks=(4, 6, 5))
    source = opened(tmp_path, kind="arrays", path="x.zarr")
    assert (source.kind, source.input_shape) == ("image", (1, 6, 5))
    assert np.array_equal(source.read(np.arange(9))[..., 0], pixels)


def test_a_chunk_that_is_gone_is_named_and_never_read_as_fill(tmp_path: Path) -> None:
    written(tmp_path / "x.zarr", VALUES, chunks=(8, 7))
    (tmp_path / "x.zarr/c/2/0").unlink()
    with pytest.raises(SourceError, match=r"chunk c/2/0 is not on disk .* fill value"):
        opened(tmp_path, kind="arrays", path="x.zarr")


def test_a_chunk_that_is_damaged_is_named(tmp_path: Path) -> None:
    written(tmp_path / "x.zarr", VALUES, chunks=(8, 7))
    chunk = tmp_path / "x.zarr/c/2/0"
    chunk.write_bytes(chunk.read_bytes()[:9])
    with pytest.raises(DataError, match=r"x.zarr: samples 16 to 23 cannot be decoded"):
        opened(tmp_path, kind="arrays", path="x.zarr")
    assert not list((tmp_path / "cache").glob("unpacked-*"))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[31, 2] = np.inf
    written(tmp_path / "x.zarr", values, chunks=(8, 7))
    with pytest.raises(DataError, match=r"x.zarr, sample 31, .*a value is"):
        opened(tmp_path, kind="arrays", path="x.zarr")


def test_a_huge_shape_allocates_nothing(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", shape=(10**12, 10**6), chunks=(8, 8), dtype="f4")
    with pytest.raises(SourceError, match=r"chunk c/0/0 is not on disk"):
        opened(tmp_path, kind="arrays", path="x.zarr")
    zarr.create_array(tmp_path / "y.zarr", shape=(10**9, 9), chunks=(10**9, 9), dtype="f4")
    with pytest.raises(SourceError, match=r"a chunk of 36,000,000,000 bytes; .* 1,073,741,824"):
        opened(tmp_path, kind="arrays", path="y.zarr")
    zarr.create_array(tmp_path / "z.zarr", shape=(4, 10**15), chunks=(4, 8), dtype="f4")
    with pytest.raises(SourceError, match=r"lies in 125,000,000,000,000 chunks; .* 1,048,576"):
        opened(tmp_path, kind="arrays", path="z.zarr")


def test_what_is_no_numbers(tmp_path: Path) -> None:
    written(tmp_path / "x.zarr", np.asarray([["a", "b"]]), chunks=(1, 2), zarr_format=2)
    with pytest.raises(SourceError, match=r"values of shape \[1, 2\]; expected numbers"):
        opened(tmp_path, kind="arrays", path="x.zarr")
    written(tmp_path / "y.zarr", np.ones(3, dtype=np.complex64), chunks=(3,))
    with pytest.raises(SourceError, match=r"complex64 values of shape \[3\]; expected numbers"):
        opened(tmp_path, kind="arrays", path="y.zarr")
    written(tmp_path / "z.zarr", np.ones((0, 2), dtype=np.float32), chunks=(1, 2))
    with pytest.raises(SourceError, match="no samples"):
        opened(tmp_path, kind="arrays", path="z.zarr")


def test_folders_that_are_no_zarr(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        opened(tmp_path, kind="arrays", path="x.zarr")
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(SourceError, match=r"x.zarr: cannot be read: .*; expected a readable"):
        opened(tmp_path, kind="arrays", path="x.zarr")
    (tmp_path / "x.zarr/zarr.json").write_text("{nonsense")
    with pytest.raises(SourceError, match=r"x.zarr: cannot be read"):
        opened(tmp_path, kind="arrays", path="x.zarr")
    (tmp_path / "x.zarr/zarr.json").write_text("[]")
    with pytest.raises(SourceError, match=r"x.zarr: cannot be read"):
        opened(tmp_path, kind="arrays", path="x.zarr")


def test_the_unpacked_copy_is_made_once_and_again_when_it_is_gone(tmp_path: Path) -> None:
    written(tmp_path / "x.zarr", VALUES, chunks=(8, 7))
    opened(tmp_path, kind="arrays", path="x.zarr")
    (copy,) = (tmp_path / "cache").glob("unpacked-*.raw")
    before = copy.stat()
    opened(tmp_path, kind="arrays", path="x.zarr")
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    shutil.rmtree(tmp_path / "cache")
    source = opened(tmp_path, kind="arrays", path="x.zarr")
    assert np.array_equal(source.read(np.arange(50)), VALUES)
