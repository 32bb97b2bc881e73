"""An NVIDIA device through CuPy: blocks go there through page-locked memory, beside the kernels.

A stored block is copied into page-locked memory, from there to the device on a stream of its own,
and widened by the stream that computes. Kernels are launched, not awaited, so that the next block
is on its way while this one is computed; only ``back`` waits. A slot is both halves of one transfer
with the two events that say when either half may be written again.
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

from krepes_ooc.core.blocks import floor_power_of_two
from krepes_ooc.engine.cuda_probe import CupyProbe, check_usable, load_cupy
from krepes_ooc.engine.device import Array, Speed
from krepes_ooc.errors import WorkspaceError

SLOT_BYTES = 2**24
TASKS = 4
VISIBLE = "CUDA_VISIBLE_DEVICES"
_DLPACK_CUDA = 2  # kDLCUDA of the standard
# Of the free memory: what a stage may plan with, and what the products of all tasks may take.
PLANNED, PRODUCTS = 0.9, 0.25
_TRIAL_SIDE, _TRIAL_BYTES, _TRIALS = 4096, 2**26, 3


def open_gpu() -> Gpu:
    """The first visible device.

    Raises:
        UsageError: none can be used.
    """
    check_usable(CupyProbe())
    return Gpu(load_cupy())


def reopened(name: str) -> Gpu:
    """The device of this process, for work that began on one of this name.

    Raises:
        UsageError: none can be used.
        WorkspaceError: it is of another kind.
    """
    found = open_gpu()
    if found.name != name:
        raise WorkspaceError(
            f"this worker has {found.name!r}",
            where="--device cuda",
            expected=f"{name!r}, as the client",
            advice="give all workers the same kind of device and the same CuPy",
        )
    return found


def visible_devices(count: int) -> tuple[str, ...]:
    """The devices that this process may use, as the variable names them.

    Args:
        count: how many the driver shows to it.
    """
    named = [one.strip() for one in os.environ.get(VISIBLE, "").split(",") if one.strip()]
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


class Gpu:
    """The device that CuPy has made current; one object for all threads of a process.

    Args:
        cp: the module cupy.

    Attributes:
        name: device, CuPy and CUDA: what decides bits.
        memory: bytes that a stage may hold.
        tasks: threads that feed it.
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
        self._kept: dict[Hashable, Array] = {}
        self._slots: queue.Queue[_Slot] | None = None
        self._copies: Any = None
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach a worker as the device that it has there."""
        return reopened, (self.name,)

    @cached_property
    def speed(self) -> Speed | None:
        """Measured once, in about a tenth of a second."""
        cp = self._cp
        ones = cp.ones((_TRIAL_SIDE, _TRIAL_SIDE), dtype=cp.float32)
        rows = np.ones(_TRIAL_BYTES // 4, dtype=np.float32).reshape(-1, 1024)
        product = self._seconds(lambda: ones @ ones)
        return Speed(
            2.0 * _TRIAL_SIDE**3 / product, _TRIAL_BYTES / self._seconds(self.to_float32, rows)
        )

    def to_device(self, values: npt.NDArray[Any]) -> Array:
        """As ``Device``."""
        return self._cp.asarray(values)

    def upload(self, stored: npt.NDArray[Any]) -> Array:
        """As ``Device``."""
        return self._sent((stored,), stored.dtype)

    def from_torch(self, tensor: Any) -> Array:
        """As ``Device``.

        Both libraries work on the device's default stream: what torch computes is done before it is
        read here, and its memory is used again only after what reads it here.
        """
        if tensor.__dlpack_device__() == (_DLPACK_CUDA, self._cp.cuda.runtime.getDevice()):
            return self._cp.from_dlpack(tensor)
        return self.upload(np.from_dlpack(tensor.cpu()))

    def to_float32(self, *stored: Array) -> Array:
        """As ``Device``; the host goes on as soon as the copy is under way."""
        cp = self._cp
        if isinstance(stored[0], cp.ndarray):
            return stored[0].astype(cp.float32, copy=False)
        return self._sent(stored, np.dtype(np.float32))

    def round_trip(self, values: Array, dtype: str) -> Array:
        """As ``Device``."""
        return values.astype(dtype).astype(self._cp.float32, copy=False)

    def to_host(self, values: Array) -> Any:
        """As ``Device``; waits for what the value depends on."""
        return self._cp.asnumpy(values) if isinstance(values, self._cp.ndarray) else values

    def rows_per_product(self, least: int, most: int, row_bytes: int) -> int:
        """As ``Device``: all rows, or as many as the memory allows, a power of two of them."""
        assert self.memory is not None
        fitting = int(PRODUCTS * self.memory) // TASKS // max(1, row_bytes)
        return min(most, max(least, floor_power_of_two(fitting)))

    def cached(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """As ``Device``."""
        if key not in self._kept:
            self._kept.setdefault(key, make())
        return self._kept[key]

    def release(self) -> None:
        """As ``Device``: the pools are given back, so that torch can have the memory."""
        cp = self._cp
        cp.cuda.runtime.deviceSynchronize()
        with self._lock:
            self._kept, self._slots, self._copies = {}, None, None
        cp.get_default_memory_pool().free_all_blocks()
        cp.get_default_pinned_memory_pool().free_all_blocks()

    def _sent(self, stored: tuple[npt.NDArray[Any], ...], dtype: npt.DTypeLike) -> Array:
        """Rows of consecutive blocks as one array, cut into transfers of at most a slot."""
        shape = (sum(map(len, stored)), *stored[0].shape[1:])
        out, start = self._cp.empty(shape, dtype=dtype), 0
        for part in (part for rows in stored for part in _pieces(rows)):
            self._send(part, out[start : start + len(part)])
            start += len(part)
        return out

    def _send(self, part: npt.NDArray[Any], target: Array) -> None:
        slots = self._opened()
        slot = slots.get()
        try:
            slot.fill(part)
            slot.copy(self._copies)
            slot.take(target, self._cp.cuda.get_current_stream())
        except BaseException:
            # No event says what is under way: nothing may be, before the slot is used again.
            self._cp.cuda.runtime.deviceSynchronize()
            raise
        finally:
            slots.put(slot)

    def _opened(self) -> queue.Queue[_Slot]:
        """Two slots for every task, first in, first out: the one longest in use is free first."""
        with self._lock:
            if self._slots is None:
                self._copies = self._cp.cuda.Stream(non_blocking=True)
                self._slots = queue.Queue()
                for _ in range(2 * TASKS):
                    self._slots.put(_Slot(self._cp))
            return self._slots

    def _seconds(self, work: Callable[..., Any], *given: Any) -> float:
        """Wall time of the fastest of several calls, the first not counted."""
        found = []
        for _ in range(1 + _TRIALS):
            self._cp.cuda.runtime.deviceSynchronize()
            begin = time.perf_counter()
            work(*given)
            self._cp.cuda.runtime.deviceSynchronize()
            found.append(time.perf_counter() - begin)
        return max(min(found[1:]), 1e-9)


class _Slot:
    """Page-locked memory, as much on the device, and when either may be written again."""

    def __init__(self, cp: Any) -> None:
        self._cp = cp
        self._pinned, self._there = (
            cp.cuda.alloc_pinned_memory(SLOT_BYTES),
            cp.cuda.alloc(SLOT_BYTES),
        )
        # Events that were never recorded have happened: a new slot waits for nothing.
        self._copied, self._taken = (cp.cuda.Event(disable_timing=True) for _ in range(2))
        self._rows: npt.NDArray[Any] = np.empty(0)

    def fill(self, part: npt.NDArray[Any]) -> None:
        """Put rows into the page-locked half, when its last copy is over."""
        self._copied.synchronize()
        self._rows = np.frombuffer(self._pinned, part.dtype, part.size).reshape(part.shape)
        self._rows[...] = part

    def copy(self, copies: Any) -> None:
        """Start the copy to the device's half, when what lay there has been taken."""
        copies.wait_event(self._taken)
        self._there.copy_from_host_async(self._pinned.ptr, self._rows.nbytes, copies)
        self._copied.record(copies)

    def take(self, target: Array, compute: Any) -> None:
        """Let the computing stream wait for the copy, then widen it into its place."""
        compute.wait_event(self._copied)
        rows = self._rows
        target[...] = self._cp.ndarray(rows.shape, dtype=rows.dtype, memptr=self._there)
        self._taken.record(compute)


def _pieces(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Row ranges that fit a slot; no row of a store is as long as one."""
    step = max(1, SLOT_BYTES // max(1, rows[:1].nbytes))
    return (rows[start : start + step] for start in range(0, len(rows), step))
