from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from krepes_ooc.core.blocks import Block
from krepes_ooc.errors import DamageError, WorkspaceError
from krepes_ooc.storage.zarr_metadata import (
    ArrayInfo,
    array_document,
    fill_value,
    read_document,
    read_info,
    root_document,
    to_bytes,
    write_root,
)

INFO = ArrayInfo((2, 600, 5), (1, 256, 5), np.dtype("<f2"), ("view", "sample", "feature"), {"a": 1})


def write(folder: Path, document: Any) -> Path:
    (folder / "zarr.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8"])
def test_document_is_the_one_that_zarr_writes(tmp_path: Path, dtype: str):
    zarr.create_array(
        tmp_path / "array",
        shape=INFO.shape,
        chunks=INFO.chunks,
        dtype=dtype,
        fill_value=fill_value(np.dtype(dtype)),
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        filters=None,
        dimension_names=INFO.dims,
        attributes=INFO.attributes,
        zarr_format=3,
    )
    written = json.loads((tmp_path / "array" / "zarr.json").read_text())
    info = ArrayInfo(INFO.shape, INFO.chunks, np.dtype(dtype), INFO.dims, {"a": 1})
    assert json.loads(to_bytes(array_document(info))) == written
    assert read_info(tmp_path / "array") == info


def test_chunks_of_blocks():
    assert INFO.n_chunks == (2, 3, 1)
    assert INFO.chunk_bytes == 2 * 256 * 5
    assert INFO.chunk_of(2, 1) == (1, 2, 0)
    assert INFO.is_chunk(Block(0, 0, 256))
    assert INFO.is_chunk(Block(2, 512, 600))
    assert INFO.is_chunk(Block(2, 512, 513))
    for wrong in (Block(0, 0, 257), Block(1, 0, 256), Block(2, 512, 601), Block(0, 0, 0)):
        assert not INFO.is_chunk(wrong)


@pytest.mark.parametrize(
    ("dims", "axis"),
    [
        (("sample",), 0),
        (("view", "sample"), 1),
        (("view", "audited", "x"), 1),
        (("landmark", "sample"), None),
        (("view",), None),
        ((), None),
    ],
)
def test_axis_of_the_rows(dims: tuple[str, ...], axis: int | None):
    ones = (1,) * len(dims)
    info = ArrayInfo(ones, ones, np.dtype("<f8"), dims, {})
    assert info.row_axis == axis
    assert info.is_chunk(Block(0, 0, 1)) == (axis is not None)


def test_missing_document(tmp_path: Path):
    with pytest.raises(WorkspaceError) as caught:
        read_info(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'zarr.json'}: the store has no metadata; "
        "expected a store written by krepes; `krepes status` shows what the workspace holds"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "[" * 100_000, '{"a": 1e', "\x00"])
def test_document_that_is_no_object(tmp_path: Path, text: str):
    (tmp_path / "zarr.json").write_text(text)
    for read in (read_document, read_info):
        with pytest.raises(DamageError) as caught:
            read(tmp_path)
        assert str(caught.value).endswith(
            "; expected metadata written by krepes; `krepes verify` lists all damage"
        )
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("shape", [10**18, 5, 5], "impossible lengths [1000000000000000000, 5, 5]"),
        ("shape", [-1, 5, 5], "impossible lengths [-1, 5, 5]"),
        ("shape", [2.0, 600, 5], "impossible lengths [2.0, 600, 5]"),
        ("shape", [True, 600, 5], "impossible lengths [True, 600, 5]"),
        ("shape", [600, 5], "shape [600, 5], chunks [1, 256, 5] and dims"),
        ("shape", 5, "the metadata has no usable"),
        ("shape", None, "the metadata has no usable"),
        ("data_type", "object", "data type 'object'; known: float16, float32, float64, int64"),
        ("data_type", {"name": "numpy.datetime64"}, "data type {'name': 'numpy.datetime64'}"),
        ("data_type", "<f8", "data type '<f8'"),
        ("dimension_names", [1, 2, 3], "and dims [1, 2, 3] do not fit"),
        ("dimension_names", ["a"], "and dims ['a'] do not fit"),
        ("node_type", "group", "not that of a Zarr v3 array"),
        ("zarr_format", 2, "not that of a Zarr v3 array"),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0, 256, 5]}}, "impos"),
        (
            "chunk_grid",
            {"name": "regular", "configuration": {"chunk_shape": [2**20, 2**20, 2**20]}},
            "chunks of 2305843009213693952 bytes; at most 2147483647",
        ),
        ("chunk_grid", {"name": "regular"}, "the metadata has no usable 'configuration'"),
        ("chunk_key_encoding", "default", "the metadata has no usable"),
        ("attributes", 3, "the metadata has no usable"),
        ("codecs", None, "codecs None; expected"),
    ],
)
def test_hostile_document_is_one_clear_error(tmp_path: Path, key: str, value: Any, told: str):
    folder = write(tmp_path, {**array_document(INFO), key: value})
    with pytest.raises(DamageError) as caught:
        read_info(folder)
    assert told in str(caught.value)
    assert caught.value.where == str(folder / "zarr.json")


@pytest.mark.parametrize("key", sorted(array_document(INFO)))
def test_missing_key_is_an_error_or_a_default(tmp_path: Path, key: str):
    document = array_document(INFO)
    del document[key]
    folder = write(tmp_path, document)
    if key in ("attributes", "dimension_names", "fill_value", "storage_transformers"):
        assert read_info(folder).shape == INFO.shape
    else:
        with pytest.raises(DamageError, match=f"the metadata has no usable '{key}'"):
            read_info(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
        {"codecs": [*array_document(INFO)["codecs"], {"name": "zstd"}]},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
        {"chunk_key_encoding": {"name": "v2"}},
        {"chunk_grid": {**array_document(INFO)["chunk_grid"], "name": "odd"}},
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, change: dict[str, Any]):
    assert read_info(write(tmp_path, array_document(INFO))) == INFO
    folder = write(tmp_path, {**array_document(INFO), **change})
    with pytest.raises(DamageError, match="expected"):
        read_info(folder)


def test_root_document_is_that_of_its_copies(tmp_path: Path) -> None:
    """Its text is put together from the texts of the copies; every byte is that of the whole."""
    audit = tmp_path / "audit.zarr"
    audit.mkdir()
    names = ["b", "a/values", "a", "ab", "long"]
    for turn in range(3):
        for name in names[: 3 * turn]:
            (audit / name).mkdir(parents=True, exist_ok=True)
            attributes = {"text": 'a "quoted"\nline, {"metadata": {}}', "n": [turn, {}, []]}
            document = {"zarr_format": 3, "attributes": attributes, "x": float("nan")}
            if name == "long":
                document["rows"] = list(range(20_000))
            (audit / name / "zarr.json").write_text(json.dumps(document))
        write_root(audit, tmp_path / "temp")
        copies = {name: read_document(audit / name) for name in sorted(names[: 3 * turn])}
        assert (audit / "zarr.json").read_bytes() == to_bytes(root_document(copies))
    # A document that is damaged, or a stranger's, is passed over.
    (audit / "a/zarr.json").write_text("[]")
    write_root(audit, tmp_path / "temp")
    assert '"a":' not in (audit / "zarr.json").read_text()
    (audit / "kernel").mkdir()
    (audit / "kernel/zarr.json").write_text("[]")
    write_root(audit, tmp_path / "temp")
    assert '"kernel":' not in (audit / "zarr.json").read_text()
