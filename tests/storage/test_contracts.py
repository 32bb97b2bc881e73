from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.core.resources import dump_yaml
from krepes_ooc.errors import RecipeError, UsageError
from krepes_ooc.storage.contracts import (
    DTYPES,
    ROW_DIMS,
    ArrayContract,
    Contract,
    StoreSpec,
    contract_names,
    load_contract,
    read_contract,
)

ROWS = ArrayContract(("view", "sample", "column"), ("float16", "float32"), "block", "rows")
WHOLE = ArrayContract(("column", "column_"), ("float64",), "whole", "square")
EXTRA = ArrayContract(("sample",), ("int64",), "block", "extra", optional=True)
CONTRACT = Contract(
    "things", 1, "stage", "things", {"rows": ROWS, "square": WHOLE, "extra": EXTRA}, {"made": "how"}
)
SIZES = {"view": 2, "sample": 1000, "column": 7}
DECLARED: dict[str, Any] = {
    "store": "things",
    "version": 1,
    "writer": "stage",
    "about": "things",
    "arrays": {
        "rows": {"dims": ["sample"], "dtype": ["int64"], "chunks": "block", "about": "rows"}
    },
}


def declare(folder: Path, **changes: Any) -> Path:
    path = folder / "things.yaml"
    path.write_text(dump_yaml({**DECLARED, **changes}))
    return path


def declare_rows(folder: Path, **changes: Any) -> Path:
    return declare(folder, arrays={"rows": {**DECLARED["arrays"]["rows"], **changes}})


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_contract(path)
    return str(caught.value)


@pytest.mark.parametrize("name", contract_names())
def test_shipped_contract_is_sound(name: str):
    contract = load_contract(name)
    assert contract.store == name
    assert contract.version >= 1
    for array in contract.arrays.values():
        assert array.dims
        assert len(set(array.dims)) == len(array.dims)
        assert set(array.dtype) <= set(DTYPES)
    assert load_contract(name) is contract


@pytest.mark.parametrize("name", contract_names())
def test_arrays_that_may_hold_nan_say_so_to_people_and_to_the_writer(name: str):
    for array in load_contract(name).arrays.values():
        assert array.missing == ("NaN" in array.about), array.about


def test_unknown_contract_is_named_with_the_known_ones():
    told = r"no 'nothing' in stores; expected one of .*features, .*spectrum"
    with pytest.raises(UsageError, match=told):
        load_contract("nothing")


def test_declared_contract_is_read(tmp_path: Path):
    contract = read_contract(declare(tmp_path, attributes={"made": "how"}))
    assert contract.arrays["rows"] == ArrayContract(("sample",), ("int64",), "block", "rows")
    assert contract.attributes == {"made": "how"}


def test_unknown_key_names_file_key_and_allowed_keys(tmp_path: Path):
    told = refusal(declare(tmp_path, codec="zstd"))
    assert told == (
        "things.yaml: unknown key 'codec'; "
        "expected one of about, arrays, attributes, store, version, writer"
    )
    told = refusal(declare_rows(tmp_path, chunk="whole"))
    assert told == (
        "things.yaml.arrays.rows: unknown key 'chunk'; "
        "expected one of about, chunks, dims, dtype, missing, optional; "
        "did you mean 'chunks'?"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"store": "other"}, "things.yaml: store is 'other'; expected 'things'"),
        ({"version": 0}, "things.yaml.version: 0 is not allowed; expected at least 1"),
    ],
)
def test_wrong_store_is_refused(tmp_path: Path, changes: dict[str, Any], told: str):
    assert refusal(declare(tmp_path, **changes)) == told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": ["object"]}, "dtype object; expected one or more of float16, float32, float64"),
        ({"dtype": []}, "dtype []; expected one or more of float16, float32, float64"),
        ({"dims": ["column"]}, "dims ['column']; expected sample or audited or group first, or s"),
        ({"dims": []}, "dims []; expected sample or audited or group first"),
        ({"dims": ["sample", "view"], "chunks": "rows"}, "'rows' is not allowed; expected one of"),
    ],
)
def test_wrong_array_is_refused(tmp_path: Path, changes: dict[str, Any], told: str):
    said = refusal(declare_rows(tmp_path, **changes))
    assert said.startswith("things.yaml")
    assert told in said


def test_whole_arrays_need_no_rows(tmp_path: Path):
    contract = read_contract(declare_rows(tmp_path, dims=["column"], chunks="whole"))
    assert contract.arrays["rows"].chunk_shape((9,), 4) == (9,)


def test_shapes_chunks_and_dtypes_follow_from_sizes():
    spec = StoreSpec(CONTRACT, SIZES, {"rows": "float32"}, block_rows=256)
    assert spec.names() == ("rows", "square")
    assert spec.shape("rows") == (2, 1000, 7)
    assert spec.chunk_shape("rows") == (1, 256, 7)
    assert spec.dtype("rows") == np.float32
    assert spec.shape("square") == spec.chunk_shape("square") == (7, 7)
    assert StoreSpec(CONTRACT, SIZES).chunk_shape("rows") == (2, 1000, 7)
    assert StoreSpec(CONTRACT, SIZES).dtype("rows") == np.float16
    assert StoreSpec(CONTRACT, SIZES, arrays=("extra", "square", "rows")).names() == (
        "rows",
        "square",
        "extra",
    )


def test_empty_dimensions_keep_a_chunk():
    assert WHOLE.chunk_shape((0, 0), None) == (1, 1)
    assert ROWS.chunk_shape((2, 0, 7), 256) == (1, 256, 7)
    assert ROW_DIMS == ("sample", "audited", "group")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            StoreSpec(CONTRACT, SIZES, {"rows": "float64"}),
            "stores/things.yaml: array 'rows' has dtype float64; expected float16 or float32",
        ),
        (
            StoreSpec(CONTRACT, {"view": 2, "sample": 9}),
            "stores/things.yaml: no size for dimension 'column' of 'rows'; expected all dims",
        ),
        (
            StoreSpec(CONTRACT, SIZES, arrays=("rows", "square", "more")),
            "stores/things.yaml: array 'more' is not in the contract; expected rows, square, extra",
        ),
        (
            StoreSpec(CONTRACT, SIZES, arrays=("rows",)),
            "stores/things.yaml: array 'square' is missing; expected dims ['column', 'column_']",
        ),
    ],
)
def test_spec_that_breaks_its_contract_is_refused(spec: StoreSpec, told: str):
    with pytest.raises(RecipeError) as caught:
        [(spec.chunk_shape(name), spec.dtype(name)) for name in spec.names()]
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({}, "stores/things.yaml: attribute 'made' is missing; expected made"),
        (
            {"made": 1, "more": 2},
            "stores/things.yaml: attribute 'more' is not in the contract; expected made",
        ),
    ],
)
def test_attributes_must_be_those_of_the_contract(attributes: dict[str, Any], told: str):
    with pytest.raises(RecipeError) as caught:
        StoreSpec(CONTRACT, SIZES).check_attributes(attributes)
    assert str(caught.value) == told
    StoreSpec(CONTRACT, SIZES).check_attributes({"made": None})
