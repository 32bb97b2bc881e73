"""Values that are not on disk, links, packed values and odd contents of HDF5 and Zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import DataError, KrepesError, SourceError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source

h5py = pytest.importorskip("h5py")
X = np.random.default_rng(2).normal(size=(24, 6)).astype(np.float32) + 5


def opened(folder: Path, path: str, **keys: Any) -> Source:
    spec = read_settings(SourceSpec, {"kind": "arrays", "path": path, **keys}, "source")
    return open_source(spec, folder, folder / "cache")


def values(source: Source) -> npt.NDArray[Any]:
    return source.read(np.arange(source.n_samples))


def refused(folder: Path, path: str, message: str, **keys: Any) -> None:
    with pytest.raises(KrepesError, match=message) as caught:
        opened(folder, path, **keys)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in (1, 2)


def sharded(path: Path, skip: slice, **keys: Any) -> Any:
    keys = {"chunks": (2, 3), "shards": (8, 6), "config": {"write_empty_chunks": True}} | keys
    array = zarr.create_array(path, shape=X.shape, dtype="f4", **keys)
    for row in range(0, 24, 2):
        if not skip.start <= row < skip.stop:
            array[row : row + 2] = X[row : row + 2]
    return array


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {},
            "chunk of shard c/0/0 with values of samples 2 to 3 .* fill value 0.0.*missing_chunks",
        ),
        ({"shards": (16, 6)}, "chunk of shard c/0/0 with values of samples 2 to 3"),
        ({"fill_value": 7}, "fill value 7"),
    ],
)
def test_a_hole_in_a_shard(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    array = sharded(tmp_path / "x.zarr", slice(2, 4), **keys)
    refused(tmp_path, "x.zarr", message)
    source = opened(tmp_path, "x.zarr", missing_chunks="fill")
    assert np.array_equal(values(source), array[...])
    assert "2 chunks are read as the fill value" in source.warnings[0]
    # The filled copy in the cache is no way around the refusal.
    refused(tmp_path, "x.zarr", message)


def test_shards_whose_index_comes_first_or_that_reach_over_the_edge(tmp_path: Path) -> None:
    start = zarr.codecs.ShardingCodec(chunk_shape=(2, 6), index_location="start")
    for name, skip in (("whole", slice(0, 0)), ("hole", slice(20, 22))):
        array = zarr.create(
            store=tmp_path / f"{name}.zarr", shape=X.shape, chunks=(16, 6), dtype="f4",
            codecs=[start], zarr_format=3,
        )  # fmt: skip
        for row in range(0, 24, 2):
            if not skip.start <= row < skip.stop:
                array[row : row + 2] = X[row : row + 2]
    assert np.array_equal(values(opened(tmp_path, "whole.zarr")), X)
    refused(tmp_path, "hole.zarr", "shard c/1/0 with values of samples 20 to 21")


def test_black_pictures_need_the_key(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(1, 256, (12, 4, 4, 3), dtype=np.uint8)
    pixels[4:8] = 0
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=pixels.shape, dtype="u1", chunks=(4, 4, 4, 3)
    )
    array[...] = pixels
    refused(tmp_path, "x.zarr", r"c/1/0/0/0 is not on disk .*source.missing_chunks: fill")
    source = opened(tmp_path, "x.zarr", missing_chunks="fill")
    assert np.array_equal(values(source), pixels)
    assert source.warnings == ("x.zarr: 1 chunks are read as the fill value 0",)


@pytest.mark.parametrize("version", [2, 3])
def test_packed_integers_in_zarr(tmp_path: Path, version: Any) -> None:
    xarray = pytest.importorskip("xarray")
    packed = np.random.default_rng(3).integers(-500, 500, (24, 6)).astype(np.int16)
    store = zarr.create_group(tmp_path / "g.zarr", zarr_format=version)
    keys: dict[str, Any] = {} if version == 2 else {"dimension_names": ["n", "c"]}
    array = store.create_array(
        "x", shape=packed.shape, dtype="i2", chunks=(8, 6), fill_value=-9999, **keys
    )
    array[...] = packed
    attributes = {"scale_factor": 0.01, "add_offset": 3.0, "_FillValue": -9999}
    array.attrs.update(attributes | ({"_ARRAY_DIMENSIONS": ["n", "c"]} if version == 2 else {}))
    with xarray.open_zarr(tmp_path / "g.zarr", consolidated=False) as data:
        want = data["x"].values
    np.testing.assert_allclose(values(opened(tmp_path, "g.zarr")), want, rtol=1e-6)
    array[5, 2] = -9999
    refused(tmp_path, "g.zarr", r"sample 5, position \[2\]: a value is missing .*_FillValue")


def test_packed_integers_in_hdf5(tmp_path: Path) -> None:
    packed = np.arange(48, dtype=np.int16).reshape(8, 6)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = packed
        file["x"].attrs["scale_factor"] = np.float32(0.5)
        file["x"].attrs["_FillValue"] = np.int16([-1])
    assert np.array_equal(values(opened(tmp_path, "x.h5")), packed * 0.5)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["x"][3, 1] = -1
    with pytest.raises(DataError, match=r"sample 3, position \[1\]: a value is missing"):
        values(opened(tmp_path, "x.h5"))
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["x"].attrs["scale_factor"] = "half"
    refused(tmp_path, "x.h5", "attribute scale_factor is 'half'; expected a number")


def test_rows_of_hdf5_that_were_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("x", X.shape, "f4", chunks=(4, 3), fillvalue=9)
        data[:8], data[12:] = X[:8], X[12:]
        half = file.create_dataset("half", X.shape, "f4", chunks=(4, 3))
        half[:, :3], half[:20] = X[:, :3], X[:20]
        file.create_dataset("never", X.shape, "f4")
        file.create_dataset("no_chunk", X.shape, "f4", chunks=(4, 6))
        whole = file.create_dataset("whole", X.shape, "f4", chunks=(5, 4), maxshape=(None, 6))
        whole[...] = X
        whole.resize((17, 6))
    refused(tmp_path, "x.h5", r"array x: rows 8 to 11 were never .*value 9.*missing_ch", array="x")
    refused(tmp_path, "x.h5", "parts of rows 20 to 23 were never written", array="half")
    refused(tmp_path, "x.h5", "rows 0 to 23 were never written", array="never")
    refused(tmp_path, "x.h5", "rows 0 to 23 were never written", array="no_chunk")
    assert np.array_equal(values(opened(tmp_path, "x.h5", array="whole")), X[:17])
    source = opened(tmp_path, "x.h5", array="x", missing_chunks="fill")
    want = X.copy()
    want[8:12] = 9
    assert np.array_equal(values(source), want)
    assert source.warnings == (
        "x.h5: rows 8 to 11 were never written: reads as the fill value 9.0",
    )


def virtual(folder: Path, stop: int = 24) -> None:
    layout = h5py.VirtualLayout(X.shape, "f4")
    for name, first, last in (("left", 0, 12), ("right", 12, stop)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["x"] = X[first:last]
        layout[first:last] = h5py.VirtualSource(f"{name}.h5", "x", shape=(last - first, 6))
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_virtual_dataset("x", layout, fillvalue=0)


def test_virtual_data_sets(tmp_path: Path) -> None:
    virtual(tmp_path)
    source = opened(tmp_path, "x.h5")
    assert np.array_equal(values(source), X)
    # The content of the sources is content of the source.
    with h5py.File(tmp_path / "right.h5", "a") as file:
        file["x"][0, 0] = 99
    assert opened(tmp_path, "x.h5").fingerprint() != source.fingerprint()
    with pytest.raises(DataError, match=r"right.h5: the file changed"):
        values(source)
    (tmp_path / "right.h5").rename(tmp_path / "moved.h5")
    refused(tmp_path, "x.h5", "array x: its source file right.h5 is not there")
    assert not values(opened(tmp_path, "x.h5", missing_chunks="fill"))[12:].any()


def test_virtual_data_sets_with_gaps(tmp_path: Path) -> None:
    virtual(tmp_path, 20)
    refused(tmp_path, "x.h5", "24 of its 144 values have no source")
    virtual(tmp_path)
    with h5py.File(tmp_path / "right.h5", "w") as file:
        file.create_dataset("x", (12, 6), "f4", chunks=(3, 6))[:9] = X[:9]
    refused(tmp_path, "x.h5", "in its source right.h5:x rows 9 to 11 were never written")
    with h5py.File(tmp_path / "right.h5", "w") as file:
        file["x"] = X[:5]
    refused(tmp_path, "x.h5", r"its source right.h5:x has shape \[5, 6\], too small")
    with h5py.File(tmp_path / "right.h5", "w") as file:
        file["z"] = X
    refused(tmp_path, "x.h5", "its source right.h5:x is not there")


def test_raw_files_of_hdf5(tmp_path: Path) -> None:
    raw = tmp_path / "x.bin"
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", X.shape, "f4", external=[(str(raw), 0, X.nbytes)])[...] = X
    assert np.array_equal(values(opened(tmp_path, "x.h5")), X)
    raw.write_bytes(raw.read_bytes()[:100])
    refused(tmp_path, "x.h5", r"the file .*x.bin with its values ends early \(100 bytes\)")
    raw.unlink()
    refused(tmp_path, "x.h5", r"the file .*x.bin with its values is not there")


def test_links_of_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["deep/x"] = X
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["out"] = h5py.ExternalLink("b.h5", "deep/x")
        file["folder"] = h5py.ExternalLink("b.h5", "deep")
        file["y"] = X[:3]
        file["again"] = file["y"]
        file["soft"] = h5py.SoftLink("/y")
        file["dead"] = h5py.SoftLink("/nowhere")
    with h5py.File(tmp_path / "alone.h5", "w") as file:
        file["x"] = h5py.ExternalLink("b.h5", "deep/x")
    for path, name in (("x.h5", "out"), ("x.h5", "/out"), ("x.h5", "folder/x"), ("alone.h5", "")):
        source = opened(tmp_path, path, array=name)
        assert np.array_equal(values(source), X)
    assert np.array_equal(values(opened(tmp_path, "x.h5")), X[:3]), "links are no further arrays"
    for name in ("soft", "again"):
        assert np.array_equal(values(opened(tmp_path, "x.h5", array=name)), X[:3])
    refused(tmp_path, "x.h5", "array dead is a link to /nowhere, which cannot", array="dead")
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file["deep/x"][0] = 1
    assert opened(tmp_path, "alone.h5").fingerprint() != source.fingerprint()
    (tmp_path / "b.h5").unlink()
    refused(tmp_path, "x.h5", "array out is a link to b.h5:deep/x, which cannot", array="out")


def test_contents_of_hdf5_that_are_no_numbers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        pictures = file.create_dataset("img", (3,), dtype=h5py.vlen_dtype(np.uint8))
        pictures[0] = np.frombuffer(b"\xff\xd8jpeg", np.uint8)
        file.create_dataset("text", data=[b"Z\xfcrich", b"b"], dtype=h5py.string_dtype())
        file.create_dataset("record", (3,), dtype=[("a", "f4")])[...] = 1
        file.create_dataset("nothing", data=h5py.Empty("f4"))
        file.create_dataset("one", data=1.0)
        file["x"] = X[:2]
    for name, message in {
        "img": "x.h5, array img: holds uint8 values of variable length",
        "text": "x.h5, array text: holds bytes that are no UTF-8 text",
        "record": "x.h5, array record: values of type",
        "nothing": "x.h5, array nothing: no values",
        "one": r"float64 values of shape \[\]",
    }.items():
        refused(tmp_path, "x.h5", message, array=name)
    refused(tmp_path, "x.h5", "x.h5: a single value; expected labels", array="x", label_array="one")


def test_grey_pictures_in_hdf5_are_those_of_npy(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 6, 5), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=pixels, chunks=(2, 6, 5), compression="gzip")
    one, other = opened(tmp_path, "x.npy"), opened(tmp_path, "x.h5")
    assert (other.kind, other.input_shape) == ("image", (1, 6, 5))
    picked = np.asarray([8, 2, 2, 0])
    assert np.array_equal(one.encode(one.read(picked)), other.encode(other.read(picked)))
    assert opened(tmp_path, "x.h5", limit=4).read(np.asarray([3])).shape == (1, 6, 5, 1)


def test_paths_inside_a_store_and_folders(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr")
    for name in ("0", "deep/1"):
        group.create_array(name, shape=X.shape, dtype="f4", chunks=(8, 6))[...] = X
    for path in ("x.zarr/0", "x.zarr/deep", "x.zarr/deep/1"):
        assert np.array_equal(values(opened(tmp_path, path)), X)
    refused(tmp_path, "x.zarr", "2 arrays and none is chosen; .* 0, deep/1")
    (tmp_path / "plain").mkdir()
    (tmp_path / "y.zarr").write_bytes(b"PK")
    refused(tmp_path, "plain", "plain: a folder without Zarr metadata; expected .*images")
    refused(tmp_path, "y.zarr", "y.zarr: a file, but Zarr stores are folders")
    refused(tmp_path, "absent.npy", "no such file")


LABELS: dict[str, tuple[npt.NDArray[Any], dict[str, Any], list[str]]] = {
    "floats": (np.asarray([0.0, 1.0, 1.0, np.nan]), {}, ["0", "1", "1", ""]),
    "named floats": (
        np.asarray([0.0, 1.0, 1.0, -1.0]),
        {"classes": ["cat", "dog"]},
        ["cat", "dog", "dog", ""],
    ),
    "bools": (np.asarray([True, False] * 2), {"classes": ["no", "yes"]}, ["yes", "no"] * 2),
    "bools without names": (np.asarray([True, False] * 2), {}, ["True", "False"] * 2),
    "one-hot": (np.eye(3)[[2, 0, 1, 1]], {}, ["2", "0", "1", "1"]),
    "one-hot bytes": (
        np.eye(3, dtype=np.uint8)[[2, 0, 1, 1]],
        {"classes": ["a", "b", "c"]},
        ["c", "a", "b", "b"],
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_beside_an_array(tmp_path: Path, name: str) -> None:
    labels, keys, want = LABELS[name]
    np.save(tmp_path / "x.npy", X[:4])
    np.save(tmp_path / "y.npy", labels)
    source = opened(tmp_path, "x.npy", labels="y.npy", **keys)
    codes = source.labels(np.arange(4)).tolist()
    assert [source.classes[code] if code >= 0 else "" for code in codes] == want


@pytest.mark.parametrize(
    "labels", [np.asarray([0.5, 1, 0]), np.ones((3, 2)), np.asarray([0, np.inf, 1])]
)
def test_labels_that_are_none(tmp_path: Path, labels: npt.NDArray[Any]) -> None:
    np.save(tmp_path / "x.npy", X[:3])
    np.save(tmp_path / "y.npy", labels)
    with pytest.raises(SourceError, match=r"y.npy: labels are float64 of .* store one integer"):
        opened(tmp_path, "x.npy", labels="y.npy")


def test_a_hole_without_a_fill_value_has_no_values(tmp_path: Path) -> None:
    """Format 2 may state no fill value, which no key can mean."""
    keys: dict[str, Any] = {"chunks": (8, 6), "dtype": "f4", "zarr_format": 2, "fill_value": None}
    array = zarr.create_array(tmp_path / "x.zarr", shape=X.shape, **keys)
    array[:8] = X[:8]
    for choice in ("refuse", "fill"):
        message = r"chunk 1.0 is not on disk, and the array states no fill value"
        refused(tmp_path, "x.zarr", message, missing_chunks=choice)
    array[8:] = X[8:]
    np.testing.assert_array_equal(values(opened(tmp_path, "x.zarr", missing_chunks="fill")), X)


@pytest.mark.parametrize("shape", [(24, 6), (24, 2, 3)])
def test_values_that_float32_does_not_hold(tmp_path: Path, shape: tuple[int, ...]) -> None:
    numbers = X.astype(np.float64).reshape(shape)
    place = (7, *(n - 1 for n in shape[1:]))
    numbers[place] = -1e39
    np.save(tmp_path / "x.npy", numbers)
    source = opened(tmp_path, "x.npy")
    position = str(list(place[1:])).replace("[", r"\[").replace("]", r"\]")
    message = rf"sample 7, position {position}: a value is -1e\+39, which float32 does not hold"
    with pytest.raises(DataError, match=message):
        values(source)
    numbers[place] = 3e38
    np.save(tmp_path / "x.npy", numbers)
    source = opened(tmp_path, "x.npy")
    np.testing.assert_array_equal(source.encode(values(source)), numbers.astype(np.float32))


@pytest.mark.parametrize(("xarray", "packed"), [(True, False), (True, True), (False, False)])
def test_the_fill_value_of_a_zarr_array_that_xarray_wrote(
    tmp_path: Path, xarray: bool, packed: bool
) -> None:
    """In format 2 xarray states what is missing as the fill value of the array alone."""
    stored = np.round(100 * X).astype("i2")
    stored[5, 2] = -9999
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=X.shape, dtype="i2", zarr_format=2, fill_value=-9999
    )
    array[...] = stored
    array.attrs.update({"_ARRAY_DIMENSIONS": ["n", "c"]} if xarray else {})
    array.attrs.update({"scale_factor": 0.01} if packed else {})
    if xarray:
        refused(tmp_path, "x.zarr", r"sample 5, position \[2\]: a value is missing \(-9999")
    else:
        np.testing.assert_array_equal(values(opened(tmp_path, "x.zarr")), stored)


def test_parts_of_a_sparse_matrix_are_named(tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    for form in ("csr", "coo", "csc"):
        matrix = sparse.random(24, 9, 0.3, format=form, random_state=0)
        sparse.save_npz(tmp_path / f"{form}.npz", matrix)
        refused(tmp_path, f"{form}.npz", "holds the parts of a sparse matrix.*toarray")
        refused(tmp_path, f"{form}.npz", "sparse matrix", array="data")
    np.savez(tmp_path / "x.npz", data=X, shape=X[:1])
    np.testing.assert_array_equal(values(opened(tmp_path, "x.npz", array="data")), X)


def test_an_archive_in_fortran_order_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.asfortranarray(X))
    refused(tmp_path, "x.npz", r"/x\.npz, array x: columns lie first")


def test_whole_numbers_that_look_like_pictures_are_pointed_out(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((24, 4, 4, 3), dtype=np.int64))
    (line,) = opened(tmp_path, "x.npy").warnings
    assert "values are taken as they are: if x.npy (int64 of shape" in line
    assert "source.range" in line
    assert opened(tmp_path, "x.npy", range=[0, 255]).warnings == ()
