"""What runs on a real NVIDIA device alone: ``pytest -m gpu``; skipped with the reason elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from krepes_ooc.engine.cuda_device import SLOT_BYTES, Gpu, open_gpu
from krepes_ooc.engine.device import HOST, eigh_on
from krepes_ooc.errors import UsageError
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences
from tests.stages.newton.test_solvers_on_device import NAMES, solved
from tests.stages.test_devices import AUDITS

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture
def device() -> Gpu:
    try:
        return open_gpu()
    except UsageError as error:
        pytest.skip(f"no device: {error.what}")


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_blocks_larger_than_a_slot_arrive(device: Gpu, dtype: str):
    draw = np.random.default_rng(0)
    rows = 3 * SLOT_BYTES // 2000
    given = [draw.normal(size=(rows + i, 500)).astype(dtype) for i in range(5)]
    there = [device.to_float32(block) for block in given]
    for found, block in zip(there, given, strict=True):
        np.testing.assert_array_equal(device.to_host(found), block.astype("f4"))
    np.testing.assert_array_equal(device.to_host(device.to_float32(*given)), np.concatenate(given))


def test_eigenvectors_rebuild_their_matrix(device: Gpu):
    X = np.random.default_rng(0).normal(size=(200, 300))
    S = X @ X.T
    values, U = eigh_on(device)(S)
    np.testing.assert_allclose(values, eigh_on(HOST)(S)[0], rtol=1e-9)
    np.testing.assert_allclose(U @ np.diag(values) @ U.T, S, atol=1e-9 * values[-1])


def test_a_tensor_of_torch_is_taken_where_it_lies(device: Gpu):
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    tensor = torch.arange(2**20, device="cuda").reshape(1024, -1).to(torch.float16)
    taken = device.from_torch(tensor)
    assert taken.data.ptr == tensor.data_ptr()
    np.testing.assert_array_equal(device.to_host(taken), tensor.cpu().numpy())
    np.testing.assert_array_equal(
        device.to_host(device.from_torch(tensor.cpu())), tensor.cpu().numpy()
    )


@pytest.mark.parametrize("how", ["kronecker", "nystrom", "rotations", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_conjugate_gradients_reach_the_step_of_the_processor(device: Gpu, name: str, how: str):
    wanted, found = solved(name, how, HOST), solved(name, how, device)
    assert device.to_host(found.converged).all() == wanted.converged.all()
    size = float(np.abs(wanted.step).max())
    np.testing.assert_allclose(device.to_host(found.step), wanted.step, rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize("name", AUDITS)
def test_audits_agree_with_the_processor(tmp_path: Path, device: Gpu, name: str):
    small.audit(tmp_path / "cpu", *AUDITS[name])
    small.audit(tmp_path / "gpu", *AUDITS[name], device=device)
    stores = [Workspace(tmp_path / one) for one in ("cpu", "gpu")]
    chosen = [space.reader("landmarks").array("sample_id") for space in stores]
    np.testing.assert_array_equal(*chosen)
    for store, array in (("kernel", "values"), ("moments", "second"), ("influence", "embedding")):
        wanted, found = (space.reader(store).array(array).astype("f8") for space in stores)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


def test_two_runs_on_the_device_have_the_same_bits(tmp_path: Path, device: Gpu):
    for name in ("a", "b"):
        small.audit(tmp_path / name, *AUDITS["byol"], device=device)
    assert differences(tmp_path / "a", tmp_path / "b") == []


def test_nothing_is_left_behind(tmp_path: Path, device: Gpu):
    import cupy

    small.audit(tmp_path, device=device, until="moments")
    pool: Any = cupy.get_default_memory_pool()
    assert pool.used_bytes() == 0
    assert pool.total_bytes() == 0
