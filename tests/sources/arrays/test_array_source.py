from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import DataError, KrepesError, SourceError, UsageError
from krepes_ooc.sources.arrays import array_files, array_rows
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source
from krepes_ooc.views.spec import ViewSpec
from krepes_ooc.views.views import Views

IDX_CODES = {"uint8": 8, "int32": 12, "float32": 13}


def images(count: int = 30) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 6, 5), dtype=np.uint8)


def idx(values: npt.NDArray[Any]) -> bytes:
    header = struct.pack(">HBB", 0, IDX_CODES[str(values.dtype)], values.ndim)
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return header + sizes + values.astype(values.dtype.newbyteorder(">")).tobytes()


def opened(folder: Path, **keys: Any) -> Source:
    return open_source(read_settings(SourceSpec, keys, "source"), folder, folder / "cache")


@pytest.mark.parametrize("packed", [False, True])
def test_idx_images_and_labels(tmp_path: Path, packed: bool) -> None:
    labels = (np.arange(30) % 3).astype(np.uint8)
    for name, values in [("x", images()), ("y", labels)]:
        content = gzip.compress(idx(values)) if packed else idx(values)
        (tmp_path / name).write_bytes(content)
    source = opened(tmp_path, kind="idx", path="x", labels="y")
    picked = np.asarray([29, 0, 7, 7])
    assert source.kind == "image"
    assert source.input_shape == (1, 6, 5)
    assert np.array_equal(source.read(picked)[..., 0], images()[picked])
    assert source.labels(picked).tolist() == labels[picked].tolist()
    assert source.classes == ("0", "1", "2")
    np.testing.assert_allclose(source.encode(source.read(picked))[:, 0], images()[picked] / 255.0)
    assert json.loads(json.dumps(source.fingerprint())) == source.fingerprint()
    again = opened(tmp_path, kind="idx", path="x", labels="y")
    assert again.fingerprint() == source.fingerprint()
    travelled = pickle.dumps(source)
    assert len(travelled) < 3000, "the pixels travel with the source"
    assert np.array_equal(pickle.loads(travelled).read(picked), source.read(picked))


def test_idx_numbers_are_big_endian(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)
    (tmp_path / "x").write_bytes(idx(values))
    source = opened(tmp_path, kind="idx", path="x")
    assert source.kind == "array"
    assert np.array_equal(source.encode(source.read(np.arange(9))), values)


@pytest.mark.parametrize("suffix", ["npy", "npz", "h5"])
def test_array_files(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(2).normal(size=(50, 7)).astype(np.float32)
    names = np.asarray(["b", "a", ""] * 16 + ["c", "c"])
    save(tmp_path / f"t.{suffix}", {"x": values, "y": names})
    keys: dict[str, Any] = {"array": "x", "label_array": "y"}
    if suffix == "npy":
        keys = {"labels": "t-y.npy"}
    source = opened(tmp_path, kind="arrays", path=f"t.{suffix}", **keys)
    picked = np.asarray([49, 3, 3, 0])
    assert np.array_equal(source.read(picked), values[picked])
    assert source.read(picked[:0]).shape == (0, 7)
    assert source.classes == ("a", "b", "c")
    assert source.labels(np.asarray([0, 1, 2, 49])).tolist() == [1, 0, -1, 2]
    limited = opened(tmp_path, kind="arrays", path=f"t.{suffix}", limit=20, **keys)
    assert limited.n_samples == 20
    with pytest.raises(UsageError, match="no sample 20"):
        limited.read(np.asarray([20]))
    assert limited.fingerprint() != source.fingerprint()


def save(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    if path.suffix == ".npy":
        for name, values in arrays.items():
            np.save(path if name == "x" else path.with_name(f"{path.stem}-{name}.npy"), values)
    elif path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values.astype(object) if values.dtype.kind == "U" else values


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "inputs"),
    [
        ((4, 6, 5), "uint8", "image", (1, 6, 5)),
        ((4, 6, 5, 3), "uint8", "image", (3, 6, 5)),
        ((4, 6, 5, 3), "float32", "image", (3, 6, 5)),
        ((4, 3, 6, 5), "float32", "array", (3, 6, 5)),
        ((4, 6, 5), "float32", "array", (6, 5)),
        ((4, 6), "int64", "array", (6,)),
    ],
)
def test_shape_and_type_decide_the_kind(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, kind: str, inputs: tuple[int, ...]
) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape, dtype))
    source = opened(tmp_path, kind="arrays", path="x.npy")
    assert (source.kind, source.input_shape) == (kind, inputs)
    encoded = source.encode(source.read(np.arange(2)))
    assert encoded.shape == (2, *inputs)
    assert encoded.dtype == np.float32
    assert encoded.max() == np.float32(1 / 255 if dtype == "uint8" else 1)


def test_views_of_vectors_corrupt_cells(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(300, 7))
    np.save(tmp_path / "x.npy", values)
    source = opened(tmp_path, kind="arrays", path="x.npy")
    ids = np.arange(300)
    made = Views(ViewSpec(noise=0.0, corruption=0.25), source, 3).apply(source.read(ids), ids, 0)
    assert (made != values).mean() == pytest.approx(0.25, abs=0.03)
    for column in range(7):
        assert np.isin(made[:, column], values[:, column]).all()
    noisy = Views(ViewSpec(noise=0.5, corruption=0.0), source, 3).apply(values, ids, 0)
    np.testing.assert_allclose((noisy - values).std(axis=0), 0.5 * values.std(axis=0), rtol=0.15)


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_views_of_whole_numbers_have_no_noise(tmp_path: Path, dtype: str) -> None:
    tokens = np.random.default_rng(2).integers(0, 90, (60, 5)).astype(dtype)
    np.save(tmp_path / "x.npy", tokens)
    source = opened(tmp_path, kind="arrays", path="x.npy")
    views = Views(ViewSpec(noise=0.5), source, 3)
    made = views.apply(source.read(np.arange(60)), np.arange(60), 0)
    assert (made != tokens).any()
    for column in range(5):
        assert np.isin(made[:, column], tokens[:, column]).all()
    assert views.describe()["noise_of_integers"] == 0
    # Digests of sources that always had noise, or none, stay as they are.
    assert "noise_of_integers" not in Views(ViewSpec(noise=0.0), source, 3).describe()
    np.save(tmp_path / "f.npy", tokens.astype("f4"))
    other = opened(tmp_path, kind="arrays", path="f.npy")
    assert "noise_of_integers" not in Views(ViewSpec(), other, 3).describe()


def test_nan_is_found_when_the_file_is_opened_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_rows, "SCAN_BYTES", 100)
    values = np.zeros((40, 7), np.float32)
    np.save(tmp_path / "x.npy", values)
    opened(tmp_path, kind="arrays", path="x.npy")
    monkeypatch.setattr(array_files, "check_all_finite", None)
    opened(tmp_path, kind="arrays", path="x.npy")
    monkeypatch.undo()
    values[33, 2] = np.nan
    np.save(tmp_path / "x.npy", values)
    message = r"x.npy, sample 33, position \[2\]: a value is nan; expected"
    with pytest.raises(DataError, match=message):
        opened(tmp_path, kind="arrays", path="x.npy")
    assert opened(tmp_path, kind="arrays", path="x.npy", limit=33).n_samples == 33


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images())
    source = opened(tmp_path, kind="arrays", path="x.npy")
    np.save(tmp_path / "x.npy", images(31))
    with pytest.raises(DataError, match="the file changed while it was read; start again"):
        source.read(np.arange(3))


def wrong_files() -> dict[str, tuple[bytes, str, dict[str, Any]]]:
    body = idx(images())
    return {
        "x.idx": (b"nonsense", "no idx header; expected an idx file", {"kind": "idx"}),
        "cut.idx": (body[:100], r"100 bytes; expected 916 bytes for shape \[30, 6, 5, 1\]", {}),
        "short.idx": (b"\0\0", "no idx header", {}),
        "none.idx": (idx(images(0)), "no samples; expected at least one", {}),
        "cut.gz": (gzip.compress(body)[:100], "cannot be unpacked into the cache", {"kind": "idx"}),
        "x.npy": (b"nonsense", "x.npy: cannot be read", {}),
        "x.npz": (b"nonsense", "x.npz: cannot be read: File is not a zip file", {}),
        "x.txt": (
            b"1 2",
            "unknown kind of array file; expected a .npy, .npz or .h5 file, or a .zarr folder",
            {},
        ),
    }


@pytest.mark.parametrize("name", wrong_files())
def test_damaged_files(tmp_path: Path, name: str) -> None:
    content, message, keys = wrong_files()[name]
    kind = "idx" if name.endswith((".idx", ".gz")) else "arrays"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        opened(tmp_path, **{"kind": kind, "path": name, **keys})
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize(
    ("arrays", "keys", "message"),
    [
        ({"x": np.ones((3, 2)), "z": np.ones(3)}, {}, r"2 arrays and none is chosen; .* of x, z"),
        ({"x": np.ones((3, 2))}, {"array": "w"}, r"no array 'w'; expected source.array .*one of x"),
        ({"x": np.asarray([[None]])}, {}, "holds Python objects, which are never loaded"),
        ({"x": np.ones((3, 2)).T}, {}, "Fortran order.*save numpy.ascontiguousarray"),
        ({"x": np.ones(3)}, {}, r"float64 values of shape \[3\]; expected numbers \[sample"),
        ({"x": np.asarray([["a"]])}, {}, r"<U1 values of shape \[1, 1\]; expected numbers"),
        ({"x": np.ones((3, 2))}, {"mean": [0.5]}, "mean and std are for images"),
        (
            {"x": np.ones((3, 2)), "y": np.arange(4)},
            {"array": "x", "label_array": "y"},
            "4 labels for 3 samples; expected one label for each sample",
        ),
        (
            {"x": np.ones((3, 2)), "y": np.full(3, 0.5)},
            {"array": "x", "label_array": "y"},
            r"labels are float64 of shape \[3\]; expected whole numbers or text",
        ),
        (
            {"x": np.ones((1100, 2)), "y": np.arange(1100)},
            {"array": "x", "label_array": "y"},
            "1100 classes; expected at most 1024 classes",
        ),
        (
            {"x": np.ones((3, 2)), "y": np.array([0, 1, 2])},
            {"array": "x", "label_array": "y", "classes": ["cat", "dog"]},
            "label 2 has no name; expected labels from 0 to 1, as many as source.classes names",
        ),
        (
            {"x": np.ones((3, 2)), "y": np.array(["cat", "dog", "cat"])},
            {"array": "x", "label_array": "y", "classes": ["cat", "dog"]},
            "label cat has no name; expected labels from 0 to 1",
        ),
        (
            {"x": np.ones((3, 0))},
            {},
            r"samples without a value, shape \[3, 0\]; expected at least one number a sample",
        ),
        (
            {"x": np.ones((3, 2)), "y": np.arange(3)},
            {"array": "x", "label_array": "y", "classes": ["cat", "dog", "cat"]},
            "source.classes names a class twice",
        ),
    ],
)
def test_wrong_arrays(
    tmp_path: Path, arrays: dict[str, npt.NDArray[Any]], keys: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(KrepesError, match=message):
        opened(tmp_path, kind="arrays", path="t.npz", **keys)


def test_the_recipe_names_the_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.ones((5, 2)), y=np.array([2, 0, -1, 2, 0]))
    keys: dict[str, Any] = {"kind": "arrays", "path": "t.npz", "array": "x", "label_array": "y"}
    named = opened(tmp_path, classes=["cat", "dog", "fox"], **keys)
    assert named.classes == ("cat", "dog", "fox")
    codes = named.labels(np.arange(5))
    assert [named.classes[code] if code >= 0 else "" for code in codes] == [
        "fox", "cat", "", "fox", "cat",
    ]  # fmt: skip
    plain = opened(tmp_path, **keys)
    assert plain.classes == ("0", "2")
    assert named.fingerprint() == plain.fingerprint()


def test_missing_labels_are_minus_one() -> None:
    coded = array_files.code_labels(np.asarray([[7], [-3], [10], [7]]), "t")
    assert coded.codes.tolist() == [0, -1, 1, 0]
    assert coded.classes == ("7", "10")
    assert array_files.code_labels(np.asarray([b"b", b"a"]), "t").classes == ("a", "b")


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"need h5py; pip install 'krepes-ooc\[hdf5\]'"):
        opened(tmp_path, kind="arrays", path="x.h5")


def test_a_damaged_hdf5_file(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "x.h5").write_bytes(b"nonsense")
    with pytest.raises(SourceError, match=r"x.h5: cannot be read"):
        opened(tmp_path, kind="arrays", path="x.h5")
