from __future__ import annotations

from pathlib import Path

import numpy as np

from krepes_ooc.core.files import checksum
from krepes_ooc.core.partial_files import read_arrays, write_arrays
from tests.storage import stores

PARTIAL = {
    "rows": np.array(3),
    "sums": np.arange(6.0).reshape(2, 3),
    "none": np.empty((0, 4), dtype=np.float32),
}


def test_partial_result_comes_back(tmp_path: Path):
    path = tmp_path / "partials" / "sums.npz"
    write_arrays(path, PARTIAL, tmp_path / "temp")
    found = read_arrays(path)
    assert found is not None
    assert sorted(found) == sorted(PARTIAL)
    for name, values in PARTIAL.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    before = path.read_bytes()
    write_arrays(path, PARTIAL, tmp_path / "temp")
    assert path.read_bytes() == before


def test_damaged_partial_result_is_missing(tmp_path: Path):
    path = tmp_path / "sums.npz"
    assert read_arrays(path) is None
    write_arrays(path, PARTIAL, tmp_path / "temp")
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 37):
        stores.flip(path, bit)
        assert read_arrays(path) is None
        path.write_bytes(good)
    for end in range(0, len(good), 29):
        path.write_bytes(good[:end])
        assert read_arrays(path) is None


def test_signed_partial_result_of_another_form_is_missing(tmp_path: Path):
    path = tmp_path / "sums.npz"
    path.write_bytes(b"no zip" + checksum(b"no zip").to_bytes(4, "little"))
    assert read_arrays(path) is None
    np.savez(path, code=np.array([print], dtype=object))
    data = path.read_bytes()
    path.write_bytes(data + checksum(data).to_bytes(4, "little"))
    assert read_arrays(path) is None


def test_arrays_of_another_key_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sums-000000.npz"
    write_arrays(path, PARTIAL, tmp_path / "temp", "digest/sums-000000.npz")
    assert read_arrays(path, "digest/sums-000000.npz") is not None
    for other in ("digest/sums-000001.npz", "another/sums-000000.npz", ""):
        assert read_arrays(path, other) is None
