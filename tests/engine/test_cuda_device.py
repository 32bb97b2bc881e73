"""The order of transfers of ``engine.gpu``, over a fake of CuPy whose streams run when they like.

Nothing here runs on a device: that CuPy does what the fake does is for the tests marked ``gpu``.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from krepes_ooc.engine import cuda_device
from krepes_ooc.engine.device import HOST, device_scope, is_host
from krepes_ooc.errors import PlanRefused, UsageError
from krepes_ooc.runner import workers
from tests.engine.fake_cupy import FREE, FakeCupy, Machine


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "SLOT_BYTES", 64)


def blocks(count: int, rows: int = 5, dtype: str = "f2") -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 1000, (rows, 4)).astype(dtype) for _ in range(count)]


def passed(fake: FakeCupy, device: cuda_device.Gpu, given: list[np.ndarray]) -> list[np.ndarray]:
    """All blocks sent before any comes back, as in a shard."""
    there = [device.to_float32(block) for block in given]
    return [device.to_host(block) for block in there]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_blocks_arrive_whatever_runs_first(seed: int, dtype: str):
    fake, given = FakeCupy(seed), blocks(30, dtype=dtype)
    for found, block in zip(passed(fake, cuda_device.Gpu(fake), given), given, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, block.astype("f4"))
    # 40 or 80 bytes of five rows through slots of 64: the tail is a transfer of its own.
    sizes = {"f2": ["copy 40"], "f4": ["copy 64", "copy 16"]}[dtype]
    assert fake.machine.log == sizes * 30


class Never:
    """In place of an event: nobody waits for it."""

    recorded = happened = 0

    def __init__(self, machine: Machine) -> None:
        del machine

    def record(self, stream: Any) -> None:
        del stream

    def synchronize(self) -> None:
        """Too early."""


@pytest.mark.parametrize("hole", ["fill", "copy", "unload"])
def test_each_forgotten_wait_gives_wrong_numbers(monkeypatch: pytest.MonkeyPatch, hole: str):
    right, name = getattr(cuda_device._Slot, hole), {"copy": "_unloaded"}.get(hole, "_copied")

    def wrong(slot: Any, *given: Any) -> None:
        event = getattr(slot, name)
        setattr(slot, name, blind := Never(slot))
        blind.record = event.record  # what is recorded still is
        right(slot, *given)
        setattr(slot, name, event)

    monkeypatch.setattr(cuda_device._Slot, hole, wrong)
    given, bad = blocks(30), 0
    for seed in range(20):
        fake = FakeCupy(seed)
        found = passed(fake, cuda_device.Gpu(fake), given)
        bad += any(not np.array_equal(a, b) for a, b in zip(found, given, strict=True))
    assert bad


def test_blocks_are_joined_and_held():
    fake, given = FakeCupy(), blocks(3)
    device = cuda_device.Gpu(fake)
    np.testing.assert_array_equal(device.to_host(device.to_float32(*given)), np.concatenate(given))
    held = device.upload(given[0])
    assert held.dtype == np.float16
    fake.machine.drain()
    np.testing.assert_array_equal(device.to_host(device.to_float32(held)), given[0])


def test_slots_are_made_once_and_used_in_turn():
    fake = FakeCupy()
    device = cuda_device.Gpu(fake)
    passed(fake, device, blocks(50))
    assert len(fake.pinned) == len(fake.device) == 2 * cuda_device.TASKS
    assert fake.machine.streams[1].non_blocking
    device.release()
    assert fake.machine.log[-3:] == ["synchronize", "free device", "free pinned"]
    passed(fake, device, blocks(1))
    assert len(fake.pinned) == 4 * cuda_device.TASKS


def test_an_error_in_the_middle_leaves_no_slot_behind():
    fake, given = FakeCupy(), blocks(12)
    device = cuda_device.Gpu(fake)
    passed(fake, device, given)
    fake.device[3].fails = True
    failures = 0
    for _ in range(2 * cuda_device.TASKS):
        try:
            device.to_float32(given[0])
        except MemoryError:
            failures += 1
            assert fake.machine.log[-1] == "synchronize"
    assert failures == 1
    fake.device[3].fails = False
    assert device._slots is not None
    assert device._slots.qsize() == 2 * cuda_device.TASKS
    for found, block in zip(passed(fake, device, given), given, strict=True):
        np.testing.assert_array_equal(found, block)


def test_memory_errors_of_a_stage_are_one_line_with_both_numbers():
    fake = FakeCupy()
    device = cuda_device.Gpu(fake)

    def stage() -> None:
        with device_scope(device):
            device.cached("landmarks", lambda: 1)
            raise MemoryError("3 GB asked for")

    with pytest.raises(PlanRefused, match=r"out of memory: 3 GB.*921\.6 MiB") as caught:
        stage()
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert fake.machine.log[-1] == "free pinned"
    assert not device._cache


def test_rows_of_a_product_follow_from_the_memory():
    device = cuda_device.Gpu(FakeCupy())
    each = int(cuda_device.PRODUCTS * int(cuda_device.PLANNED * FREE)) // cuda_device.TASKS
    assert device.rows_per_product(256, 4096, 1) == 4096
    assert device.rows_per_product(256, 4096, each // 1500) == 1024
    assert device.rows_per_product(256, 4096, each) == 256


def test_a_device_reaches_a_worker_as_its_name(monkeypatch: pytest.MonkeyPatch):
    device = cuda_device.Gpu(FakeCupy())
    assert device.name == "Fake, cupy 0.fake, CUDA 13000"
    assert not is_host(device)
    assert device.__reduce__() == (cuda_device.reopen_gpu, (device.name,))
    monkeypatch.setattr(cuda_device, "open_gpu", lambda: cuda_device.Gpu(FakeCupy()))
    assert pickle.loads(pickle.dumps(device)).name == device.name
    from krepes_ooc.errors import WorkspaceError

    with pytest.raises(WorkspaceError, match="same kind of device"):
        cuda_device.reopen_gpu("NVIDIA H200")


def test_cuda_is_refused_and_auto_goes_on_without_a_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):

    def refuse() -> cuda_device.Gpu:
        raise UsageError("there is no NVIDIA driver", where="--device cuda")

    monkeypatch.setattr(workers, "open_gpu", refuse)
    told: list[str] = []
    with pytest.raises(UsageError, match="no NVIDIA driver"):
        workers.open_device("cuda", told.append)
    assert is_host(workers.open_device("cpu", told.append))
    assert told == []
    monkeypatch.setattr(workers, "NVIDIA", tmp_path / "nothing")
    assert is_host(workers.open_device("auto", told.append))
    assert told == []
    monkeypatch.setattr(workers, "NVIDIA", tmp_path)
    assert is_host(workers.open_device("auto", told.append))
    assert told == ["blocks are computed on the CPU: there is no NVIDIA driver"]
    with pytest.raises(UsageError, match="no device 'tpu'"):
        workers.open_device("tpu", told.append)
    monkeypatch.setattr(workers, "open_gpu", lambda: cuda_device.Gpu(FakeCupy()))
    assert workers.open_device("auto", told.append).name.startswith("Fake")
    assert told[1:] == ["blocks are computed on Fake, cupy 0.fake, CUDA 13000, 921.6 MiB free"]


def test_workers_of_one_machine_see_a_device_each(monkeypatch: pytest.MonkeyPatch):
    from types import SimpleNamespace

    from krepes_ooc.engine.cluster.worker_plugins import OneGpuPerWorker
    from krepes_ooc.engine.cuda_device import VISIBLE, visible_devices

    monkeypatch.delenv(VISIBLE, raising=False)
    assert cuda_device.Gpu(FakeCupy()).count == 2
    assert visible_devices(3) == ("0", "1", "2")
    monkeypatch.setenv(VISIBLE, "4, 7")
    plugin = pickle.loads(pickle.dumps(OneGpuPerWorker(visible_devices(2))))
    seen = []
    for name in range(3):
        plugin.setup(SimpleNamespace(name=name))
        seen.append(os.environ[VISIBLE])
    assert seen == ["4", "7", "4"]


class Tensor:
    """What ``take`` sees of a tensor of torch on some device."""

    def __init__(self, values: np.ndarray, device: tuple[int, int]) -> None:
        self.values, self.device = values, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def cpu(self) -> Any:
        return torch.from_numpy(self.values)


@pytest.mark.parametrize(("place", "copied"), [((2, 0), False), ((2, 1), True), ((1, 0), True)])
def test_a_tensor_on_the_same_device_is_taken_without_a_copy(place: tuple[int, int], copied: bool):
    fake, (block,) = FakeCupy(), blocks(1)
    device = cuda_device.Gpu(fake)
    there = device.from_torch(Tensor(block, place))
    assert there.dtype == np.float16
    fake.machine.drain()
    np.testing.assert_array_equal(device.to_host(device.to_float32(there)), block)
    assert fake.machine.log == (["copy 40"] if copied else ["dlpack"])


def test_the_host_takes_the_memory_of_a_tensor():
    tensor = torch.arange(6, dtype=torch.float16).reshape(2, 3)
    taken = HOST.from_torch(tensor)
    tensor += 1
    assert taken.dtype == np.float16
    np.testing.assert_array_equal(taken, tensor.numpy())
