"""Zarr folders of both formats as a source: every row as it was written, or one clear line."""

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

from krepes_ooc.errors import DataError, KrepesError, SourceError, UsageError
from krepes_ooc.network import zarrrows
from krepes_ooc.network.sources import Source, SourceSpec, open_source
from krepes_ooc.settings import read_settings

VALUES = np.random.default_rng(2).normal(size=(50, 7)).astype(np.float32)
NAMES = np.asarray(["b", "a", ""] * 16 + ["c", "c"])


def opened(folder: Path, **keys: Any) -> Source:
    spec = read_settings(SourceSpec, {"kind": "arrays", "path": "t.zarr", **keys}, "source")
    return open_source(spec, folder, folder / "cache")


def write(folder: Path, values: npt.NDArray[Any], zarr_format: int = 3, **keys: Any) -> Path:
    """One array, with every chunk on the disk."""
    path = folder / "t.zarr"
    keys = {"chunks": (8, *values.shape[1:]), **keys}
    config = {"write_empty_chunks": True}
    array = zarr.create_array(
        path, shape=values.shape, dtype=values.dtype, zarr_format=zarr_format, config=config, **keys
    )
    array[...] = values
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("chunks", [(8, 7), (50, 2), (1, 7), (64, 3)])
def test_rows_of_one_array(tmp_path: Path, zarr_format: int, chunks: tuple[int, int]) -> None:
    write(tmp_path, VALUES, zarr_format, chunks=chunks)
    source = opened(tmp_path)
    picked = np.asarray([49, 3, 3, 0, 17])
    assert np.array_equal(source.read(picked), VALUES[picked])
    assert source.read(picked[:0]).shape == (0, 7)
    assert source.resident_bytes == min(chunks[0], 50) * 7 * 4
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.read(np.arange(50)), VALUES)
    limited = opened(tmp_path, limit=20)
    assert limited.n_samples == 20
    with pytest.raises(UsageError, match="no sample 20"):
        limited.read(np.asarray([20]))


def test_shards(tmp_path: Path) -> None:
    path = write(tmp_path, VALUES, chunks=(4, 7), shards=(16, 7))
    picked = np.asarray([49, 3, 3, 0, 17])
    assert np.array_equal(opened(tmp_path).read(picked), VALUES[picked])
    (path / "c/1/0").unlink()
    with pytest.raises(DataError, match=r"chunk c/1/0 is missing \(rows 16 and on\)"):
        opened(tmp_path)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_group_with_labels(tmp_path: Path, zarr_format: int) -> None:
    group = zarr.create_group(tmp_path / "t.zarr", zarr_format=zarr_format)
    group.create_array("x", data=VALUES, chunks=(8, 7))
    group.create_array("more/y", data=NAMES, chunks=(20,), config={"write_empty_chunks": True})
    with pytest.raises(SourceError, match=r"2 arrays and none is chosen; .* of more/y, x"):
        opened(tmp_path)
    with pytest.raises(SourceError, match=r"no array 'w'; expected source.array .* of more/y, x"):
        opened(tmp_path, array="w")
    source = opened(tmp_path, array="x", label_array="more/y")
    assert source.classes == ("a", "b", "c")
    assert source.labels(np.asarray([0, 1, 2, 49])).tolist() == [1, 0, -1, 2]
    assert json.loads(json.dumps(source.fingerprint())) == source.fingerprint()


def test_labels_in_another_folder(tmp_path: Path) -> None:
    write(tmp_path, np.arange(50) % 3 + 1).rename(tmp_path / "y.zarr")
    write(tmp_path, VALUES)
    assert opened(tmp_path, labels="y.zarr").classes == ("1", "2", "3")


@pytest.mark.parametrize(("dtype", "kind"), [("uint8", "image"), ("float32", "array")])
def test_grey_images(tmp_path: Path, dtype: str, kind: str) -> None:
    drawn = np.random.default_rng(1).integers(0, 256, (30, 6, 5)).astype(dtype)
    write(tmp_path, drawn)
    source = opened(tmp_path, limit=20)
    assert source.kind == kind
    found = source.read(np.asarray([3, 19]))
    assert np.array_equal(found.reshape(2, 6, 5), drawn[[3, 19]])
    assert source.input_shape == ((1, 6, 5) if kind == "image" else (6, 5))


def test_no_more_than_one_range_of_rows_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, VALUES)
    source, asked = opened(tmp_path), []
    real = zarrrows._open

    class Watched:
        def __init__(self, array: Any) -> None:
            self.array, self.oindex = array, self

        def __getattr__(self, name: str) -> Any:
            return getattr(self.array, name)

        def __getitem__(self, rows: npt.NDArray[np.int64]) -> Any:
            asked.append(rows.tolist())
            return self.array.oindex[rows]

    monkeypatch.setattr(zarrrows, "_open", lambda path: Watched(real(path)))
    source.read(np.asarray([49, 1, 9, 8]))
    assert asked == [[1], [8, 9], [49]]


def test_the_content_is_its_identity(tmp_path: Path) -> None:
    path = write(tmp_path, VALUES)
    first = opened(tmp_path).fingerprint()
    moved = path.rename(tmp_path / "moved.zarr")
    assert opened(tmp_path, path="moved.zarr").fingerprint()["sha256"] == first["sha256"]
    array = zarr.open_array(moved, mode="r+")
    array[0] = 0
    assert opened(tmp_path, path="moved.zarr").fingerprint()["sha256"] != first["sha256"]


@pytest.mark.parametrize("key", ["c/2/0", "2.0"])
def test_a_missing_chunk_is_named(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, VALUES, 3 if "/" in key else 2)
    source = opened(tmp_path)
    (path / key).unlink()
    message = rf"chunk {key} is missing \(rows 16 and on\), which Zarr reads as 0.0; expected all"
    with pytest.raises(DataError, match=message):
        opened(tmp_path)
    assert np.array_equal(source.read(np.asarray([1])), VALUES[[1]])
    with pytest.raises(DataError, match=message):
        source.read(np.asarray([1, 20]))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_damaged_chunk_is_named(tmp_path: Path, zarr_format: int) -> None:
    path = write(tmp_path, VALUES, zarr_format)
    key = path / ("c/2/0" if zarr_format == 3 else "2.0")
    key.write_bytes(key.read_bytes()[:20])
    with pytest.raises(DataError, match=r"t.zarr: rows 16 to 23 cannot be unpacked") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_nan_is_named(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[33, 2] = np.inf
    write(tmp_path, values)
    with pytest.raises(DataError, match=r"t.zarr, sample 33 \(from 0\): NaN or infinity"):
        opened(tmp_path)
    assert opened(tmp_path, limit=33).n_samples == 33


def test_an_array_that_changes_while_it_is_read(tmp_path: Path) -> None:
    source = (write(tmp_path, VALUES), opened(tmp_path))[1]
    shutil.rmtree(tmp_path / "t.zarr")
    write(tmp_path, VALUES[:40])
    with pytest.raises(DataError, match="the file changed while it was read; start again"):
        source.read(np.arange(3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(20), r"float64 values of shape \[20\]; expected numbers \[sample"),
        (np.ones((20, 2), complex), r"complex128 values of shape \[20, 2\]; expected numbers"),
        (np.ones((20, 2), bool), r"bool values of shape \[20, 2\]; expected numbers"),
        (np.full((20, 1), "a"), r"<U1 values of shape \[20, 1\]; expected numbers"),
        (np.ones((20, 2), [("x", "f4")]), r"\[\('x', '<f4'\)\] values of shape"),
        (np.ones((0, 2)), "no samples; expected at least one"),
    ],
)
def test_wrong_arrays(tmp_path: Path, values: npt.NDArray[Any], message: str) -> None:
    write(tmp_path, values, 2)
    with pytest.raises(KrepesError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [10**15, 7]}, r"chunk 7.0 is missing \(rows 56 and on\)"),
        ({"shape": [50, 10**14]}, r"are unpacked to read one row.*at most 256.*fewer rows in a"),
        ({"shape": []}, r"t.zarr: "),
        ({"shape": [-1, 7]}, r"t.zarr: "),
        ({"chunks": [0, 7]}, r"t.zarr: "),
        ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "Python objects, which are never loaded"),
        ({"dtype": "|O"}, "Python objects, which are never loaded"),
        ({"compressor": {"id": "pickle", "protocol": 5}}, "Python objects, which are never loaded"),
        ({"compressor": {"id": "no-such"}}, r"t.zarr: cannot be read: .*no-such"),
        ({"dtype": "nonsense"}, r"t.zarr: cannot be read: "),
        ({"zarr_format": 9}, r"t.zarr: cannot be read: "),
    ],
)
def test_harmed_metadata(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, VALUES, 2) / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(KrepesError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_zarr_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        opened(tmp_path)
    (tmp_path / "t.zarr").mkdir()
    with pytest.raises(SourceError, match="no Zarr array; expected a Zarr array or group"):
        opened(tmp_path)
    (tmp_path / "t.zarr/zarr.json").write_text("nonsense")
    with pytest.raises(SourceError, match=r"zarr.json: cannot be read"):
        opened(tmp_path)
