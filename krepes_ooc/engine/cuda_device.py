"""NVIDIA device through CuPy: blocks are uploaded through page-locked memory, beside the kernels.

A stored block is copied into page-locked memory, from there to the device on a stream for copies,
and converted by the stream that computes. Kernels are launched, not awaited, so that the next block
is uploaded while this one is computed; only ``to_host`` waits. A slot is both halves of one
transfer with the two events that say when either half may be written again.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Hashable, Iterator
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.array_columns import Array
from krepes_ooc.core.blocks import floor_power_of_two
from krepes_ooc.engine.calibration import fastest
from krepes_ooc.engine.cuda_probe import CupyProbe, check_usable, load_cupy
from krepes_ooc.engine.device import Speed
from krepes_ooc.errors import WorkspaceError

SLOT_BYTES = 2**24
TASKS = 4
VISIBLE = "CUDA_VISIBLE_DEVICES"
_DLPACK_CUDA = 2  # kDLCUDA of the standard
# Of the free memory: what a stage may plan with, and what the products of all tasks may take.
PLANNED = 0.9
PRODUCTS = 0.25
_TRIAL_SIDE = 4096
_TRIAL_BYTES = 2**26
_TRIALS = 3


def open_gpu() -> Gpu:
    """The first visible device.

    Raises:
        UsageError: none can be used.
    """
    check_usable(CupyProbe())
    return Gpu(load_cupy())


def reopen_gpu(name: str) -> Gpu:
    """The device of this process, for a run whose client has one of this name.

    Raises:
        UsageError: none can be used.
        WorkspaceError: it is of another kind.
    """
    gpu = open_gpu()
    # The name says what decides bits: device, CuPy and CUDA.
    if gpu.name != name:
        raise WorkspaceError(
            f"this worker has {gpu.name!r}",
            where="--device cuda",
            expected=f"{name!r}, as the client",
            advice="give all workers the same kind of device and the same CuPy",
        )
    return gpu


def visible_devices(count: int) -> tuple[str, ...]:
    """The devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    Args:
        count: number of devices that the driver shows to it.
    """
    named = [one.strip() for one in os.environ.get(VISIBLE, "").split(",") if one.strip()]
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


class Gpu:
    """The device that CuPy has made current; one object for all threads of a process.

    Args:
        cp: the module cupy.

    Attributes:
        name: device, CuPy and CUDA: what decides bits.
        memory: bytes that a stage may allocate.
        tasks: threads that use it at the same time.
    """

    def __init__(self, cp: Any) -> None:
        self._cp = cp
        properties = cp.cuda.runtime.getDeviceProperties(cp.cuda.runtime.getDevice())
        kind = properties["name"].decode()
        version = cp.cuda.runtime.runtimeGetVersion()
        self.name = f"{kind}, cupy {cp.__version__}, CUDA {version}"
        self.memory: int | None = int(PLANNED * cp.cuda.runtime.memGetInfo()[0])
        self.tasks: int | None = TASKS
        self.torch = "cuda"
        self.count = int(cp.cuda.runtime.getDeviceCount())
        self._cache: dict[Hashable, Array] = {}
        self._slots: queue.Queue[_Slot] | None = None
        self._copies: Any = None
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name: a worker opens the device of its machine."""
        return reopen_gpu, (self.name,)

    @cached_property
    def speed(self) -> Speed | None:
        """Measured once, in about a tenth of a second."""
        cp = self._cp
        ones = cp.ones((_TRIAL_SIDE, _TRIAL_SIDE), dtype=cp.float32)
        rows = np.ones(_TRIAL_BYTES // 4, dtype=np.float32).reshape(-1, 1024)
        product = self._seconds(lambda: ones @ ones)
        transfer = self._seconds(lambda: self.to_float32(rows))
        # 2 n^3 operations of a product of n x n matrices.
        return Speed(2.0 * _TRIAL_SIDE**3 / product, _TRIAL_BYTES / transfer)

    def to_device(self, values: npt.NDArray[Any]) -> Array:
        """As ``Device``."""
        return self._cp.asarray(values)

    def upload(self, stored: npt.NDArray[Any]) -> Array:
        """As ``Device``."""
        return self._uploaded((stored,), stored.dtype)

    def from_torch(self, tensor: Any) -> Array:
        """As ``Device``.

        Both libraries work on the device's default stream: what torch computes is done before it is
        read here, and its memory is used again only after what reads it here.
        """
        # A tensor of the host, or of another device, goes through the host's memory.
        if tensor.__dlpack_device__() == (_DLPACK_CUDA, self._cp.cuda.runtime.getDevice()):
            return self._cp.from_dlpack(tensor)
        return self.upload(np.from_dlpack(tensor.cpu()))

    def to_float32(self, *stored: Array) -> Array:
        """As ``Device``; returns as soon as the copy is under way."""
        cp = self._cp
        if isinstance(stored[0], cp.ndarray):
            return stored[0].astype(cp.float32, copy=False)
        return self._uploaded(stored, np.dtype(np.float32))

    def round_trip(self, values: Array, dtype: str) -> Array:
        """As ``Device``."""
        return values.astype(dtype).astype(self._cp.float32, copy=False)

    def to_host(self, values: Array) -> Any:
        """As ``Device``; waits for what the value depends on."""
        return self._cp.asnumpy(values) if isinstance(values, self._cp.ndarray) else values

    def rows_per_product(self, least: int, most: int, row_bytes: int) -> int:
        """As ``Device``: all rows, or as many as the memory allows, a power of two of them."""
        assert self.memory is not None
        # All tasks together may fill PRODUCTS of the memory with the rows of one product each.
        fitting = int(PRODUCTS * self.memory) // TASKS // max(1, row_bytes)
        return min(most, max(least, floor_power_of_two(fitting)))

    def cached(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """As ``Device``."""
        # Two tasks may both make it; all use the one that was stored first.
        if key not in self._cache:
            self._cache.setdefault(key, make())
        return self._cache[key]

    def release(self) -> None:
        """As ``Device``: the pools are given back, so that torch can have the memory."""
        cp = self._cp
        # No copy or kernel may be under way in memory that is freed.
        cp.cuda.runtime.deviceSynchronize()
        with self._lock:
            self._cache = {}
            self._slots = None
            self._copies = None
        cp.get_default_memory_pool().free_all_blocks()
        cp.get_default_pinned_memory_pool().free_all_blocks()

    def _uploaded(self, stored: tuple[npt.NDArray[Any], ...], dtype: npt.DTypeLike) -> Array:
        """Rows of consecutive blocks as one array, cut into transfers of at most a slot."""
        shape = (sum(map(len, stored)), *stored[0].shape[1:])
        out = self._cp.empty(shape, dtype=dtype)
        start = 0
        # ``out`` grows piece by piece while the next piece is copied.
        for part in (part for rows in stored for part in _pieces(rows)):
            self._upload_piece(part, out[start : start + len(part)])
            start += len(part)
        return out

    def _upload_piece(self, part: npt.NDArray[Any], target: Array) -> None:
        slots = self._slot_queue()
        slot = slots.get()
        try:
            # Host to page-locked memory, to the device's half of the slot, to its place.
            slot.fill(part)
            slot.copy(self._copies)
            slot.unload(target, self._cp.cuda.get_current_stream())
        except BaseException:
            # No event says what is under way: nothing may be, before the slot is used again.
            self._cp.cuda.runtime.deviceSynchronize()
            raise
        finally:
            slots.put(slot)

    def _slot_queue(self) -> queue.Queue[_Slot]:
        """Two slots for every task, first in, first out: the one longest in use is free first."""
        with self._lock:
            if self._slots is None:
                self._copies = self._cp.cuda.Stream(non_blocking=True)
                self._slots = queue.Queue()
                for _ in range(2 * TASKS):
                    self._slots.put(_Slot(self._cp))
            return self._slots

    def _seconds(self, work: Callable[[], Any]) -> float:
        """Wall time of the fastest of several calls, until the device is done."""

        def synchronised() -> None:
            work()
            self._cp.cuda.runtime.deviceSynchronize()

        return fastest(synchronised, _TRIALS, time.perf_counter)


class _Slot:
    """Page-locked memory, as much on the device, and the events after which each is free."""

    def __init__(self, cp: Any) -> None:
        self._cp = cp
        self._pinned = cp.cuda.alloc_pinned_memory(SLOT_BYTES)
        self._on_device = cp.cuda.alloc(SLOT_BYTES)
        # Events that were never recorded have happened: a new slot waits for nothing.
        self._copied = cp.cuda.Event(disable_timing=True)
        self._unloaded = cp.cuda.Event(disable_timing=True)
        self._rows: npt.NDArray[Any] = np.empty(0)

    def fill(self, part: npt.NDArray[Any]) -> None:
        """Copy rows into the page-locked half, when its last upload is over."""
        self._copied.synchronize()
        self._rows = np.frombuffer(self._pinned, part.dtype, part.size).reshape(part.shape)
        self._rows[...] = part

    def copy(self, copies: Any) -> None:
        """Start the upload to the device's half, when its last content is unloaded."""
        copies.wait_event(self._unloaded)
        self._on_device.copy_from_host_async(self._pinned.ptr, self._rows.nbytes, copies)
        self._copied.record(copies)

    def unload(self, target: Array, compute: Any) -> None:
        """Let the computing stream wait for the upload, then convert it into its place."""
        compute.wait_event(self._copied)
        rows = self._rows
        target[...] = self._cp.ndarray(rows.shape, dtype=rows.dtype, memptr=self._on_device)
        self._unloaded.record(compute)


def _pieces(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Row ranges that fit a slot; no row of a store is as long as one."""
    step = max(1, SLOT_BYTES // max(1, rows[:1].nbytes))
    return (rows[start : start + step] for start in range(0, len(rows), step))
