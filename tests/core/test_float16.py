from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from krepes_ooc.core.float16 import to_float32

EVERY_FLOAT16 = np.arange(2**16, dtype=np.uint16).view(np.float16)


def test_every_float16_is_widened_exactly():
    wide = to_float32(EVERY_FLOAT16)
    assert wide.dtype == np.float32
    with np.errstate(invalid="ignore"):
        expected = EVERY_FLOAT16.astype(np.float32)
        back = wide.astype(np.float16)
    np.testing.assert_array_equal(wide, expected)
    finite = np.isfinite(EVERY_FLOAT16)
    np.testing.assert_array_equal(
        back[finite].view(np.uint16), EVERY_FLOAT16[finite].view(np.uint16)
    )


@given(hnp.arrays(np.float16, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7)))
def test_shape_is_kept(values: np.ndarray):
    wide = to_float32(values)
    assert wide.shape == values.shape
    np.testing.assert_array_equal(wide, values.astype(np.float32))


@given(st.integers(-3, 3).filter(bool), st.integers(-3, 3).filter(bool), st.booleans())
def test_strided_and_transposed_rows(rows: int, columns: int, turned: bool):
    values = EVERY_FLOAT16[20_000:20_240].reshape(12, 20)[::rows, ::columns]
    values = values.T if turned else values
    np.testing.assert_array_equal(to_float32(values), values.astype(np.float32))


@pytest.mark.parametrize("mode", ["r", "c"])
def test_read_only_maps_are_widened_and_left_alone(tmp_path: Path, mode: str):
    stored = EVERY_FLOAT16[:15_000].reshape(100, 150)
    (tmp_path / "chunk").write_bytes(stored.tobytes() + b"crc!")
    before = (tmp_path / "chunk").stat().st_mtime_ns
    mapped = np.memmap(tmp_path / "chunk", np.float16, mode, shape=(100, 150))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = to_float32(mapped)
        part = to_float32(mapped[10:20])
    wide[:] = 0
    np.testing.assert_array_equal(mapped, stored)
    np.testing.assert_array_equal(part, stored[10:20].astype(np.float32))
    assert (tmp_path / "chunk").stat().st_mtime_ns == before


def test_the_result_outlives_its_input(tmp_path: Path):
    np.full(1000, 3, np.float16).tofile(tmp_path / "chunk")
    mapped = np.memmap(tmp_path / "chunk", np.float16, "r")
    wide = to_float32(mapped)
    del mapped
    assert (wide == 3).all()


def test_float32_is_returned_as_it_is():
    values = np.arange(6, dtype=np.float32)
    assert to_float32(values) is values


def test_other_byte_order_is_read():
    values = np.array([1.5, -2.25, 1e-7], dtype=">f2")
    np.testing.assert_array_equal(to_float32(values), values.astype(np.float32))


def test_torch_is_imported_on_first_use_only():
    code = (
        "import sys, numpy as np\n"
        "from krepes_ooc.core.float16 import to_float32\n"
        "to_float32(np.zeros(3, np.float32)); assert 'torch' not in sys.modules\n"
        "to_float32(np.zeros(3, np.float16)); assert 'torch' in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
