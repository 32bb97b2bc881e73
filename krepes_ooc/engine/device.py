"""Devices that compute blocks: the host, whose memory they are in, or one that they are copied to.

The algebra uses the array API, so a stage needs three things of a device: the block copied to it,
the small result copied back, and the number of rows of one matrix product.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from krepes_ooc.core.array_columns import Array as Array
from krepes_ooc.core.array_columns import Eigh
from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.engine.budget import Budget, MemoryNeed
from krepes_ooc.errors import PlanRefused

Values = TypeVar("Values")


@dataclass(frozen=True)
class Speed:
    """Rates of a device, which decide between reading kernel rows and computing them again.

    Args:
        flops: float32 operations a second of a large matrix product.
        bandwidth: bytes a second from the host's memory to the device.
    """

    flops: float
    bandwidth: float


class Device(Protocol):
    """Memory and arithmetic of a block task.

    Results are copied to the host before a task ends: no device array passes between tasks.
    """

    @property
    def name(self) -> str:
        """Name that the journal adds to the numerics of the host; empty for the host itself."""

    @property
    def memory(self) -> int | None:
        """Bytes that a stage may allocate on the device; None: those of the host's budget."""

    @property
    def tasks(self) -> int | None:
        """Tasks that may use the device at the same time; None: any number."""

    @property
    def speed(self) -> Speed | None:
        """Measured rates; None where blocks need no transfer."""

    @property
    def count(self) -> int:
        """Devices of this kind that this process sees; 0 for the host."""

    @property
    def torch(self) -> str:
        """The device of torch that the network runs on."""

    def to_device(self, values: npt.NDArray[Any]) -> Array:
        """The array on the device, dtype unchanged."""

    def upload(self, stored: npt.NDArray[Any]) -> Array:
        """One stored block on the device, dtype unchanged; ``to_float32`` converts it."""

    def from_torch(self, tensor: Any) -> Array:
        """A tensor of torch on the device, dtype unchanged; by DLPack, not copied, if it can be."""

    def to_float32(self, *stored: Array) -> Array:
        """Rows of consecutive stored blocks, or of one uploaded block, on the device as float32."""

    def round_trip(self, values: Array, dtype: str) -> Array:
        """Float32 values rounded to the dtype of a store and back."""

    def to_host(self, values: Array) -> Any:
        """The array in the host's memory; waits until it is computed."""

    def rows_per_product(self, least: int, most: int, row_bytes: int) -> int:
        """Rows of one matrix product.

        Args:
            least: rows that fit a processor's cache.
            most: number of rows of the block.
            row_bytes: memory of every row of the product.
        """

    def cached(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """The cached value of this key, else that of ``make``, cached until ``release``."""

    def release(self) -> None:
        """Free the memory that a stage used on the device."""


@dataclass(frozen=True)
class Host:
    """The host itself: nothing is copied, and no bit differs from plain NumPy."""

    name: str = ""
    memory: int | None = None
    tasks: int | None = None
    speed: Speed | None = None
    torch: str = "cpu"
    count: int = 0

    def to_device(self, values: npt.NDArray[Any]) -> Array:
        """The very same array."""
        return values

    def upload(self, stored: npt.NDArray[Any]) -> Array:
        """The very same block."""
        return stored

    def from_torch(self, tensor: Any) -> Array:
        """As ``Device``: the memory of a tensor of the processor."""
        return np.from_dlpack(tensor)

    def to_float32(self, *stored: Array) -> Array:
        """As ``Device``; a single block of float32 is not copied."""
        if len(stored) == 1:
            return to_float32(stored[0])
        # Each block is converted into its place: one copy, not a conversion and a concatenation.
        out = np.empty((sum(map(len, stored)), *stored[0].shape[1:]), dtype=np.float32)
        start = 0
        for rows in stored:
            out[start : start + len(rows)] = to_float32(rows)
            start += len(rows)
        return out

    def round_trip(self, values: Array, dtype: str) -> Array:
        """As ``Device``."""
        return to_float32(values.astype(dtype))

    def to_host(self, values: Array) -> Any:
        """The very same array, or number."""
        return values

    def rows_per_product(self, least: int, most: int, row_bytes: int) -> int:
        """Rows that fit the cache."""
        return least

    def cached(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """Not cached here: the page cache does that."""
        return make()

    def release(self) -> None:
        """Nothing to free."""


HOST = Host()


def is_host(device: Device) -> bool:
    """Whether the device is the host, so that nothing is copied."""
    return device.memory is None


def to_device(device: Device, value: Values) -> Values:
    """The same function or record, with every array in it copied to the device.

    Arrays are searched in the arguments of partial functions, in the fields of dataclasses and in
    tuples, at any depth. The closure of an ordinary function is not searched.
    """
    return value if is_host(device) else _copy_arrays(device, value)


def _copy_arrays(device: Device, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return device.to_device(value)
    # The arguments of block functions are bound by functools.partial.
    if isinstance(value, partial):
        function = _copy_arrays(device, value.func)
        arguments = [_copy_arrays(device, one) for one in value.args]
        keywords = {name: _copy_arrays(device, one) for name, one in value.keywords.items()}
        return partial(function, *arguments, **keywords)
    if isinstance(value, tuple) and any(_holds_arrays(one) for one in value):
        return tuple(_copy_arrays(device, one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Only fields that may hold arrays are replaced: a record without any stays the same object.
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        copied = {
            name: _copy_arrays(device, one) for name, one in fields.items() if _holds_arrays(one)
        }
        return dataclasses.replace(value, **copied) if copied else value
    return value


def _holds_arrays(value: Any) -> bool:
    """Whether a value may hold an array: numbers, text and plain tuples of them do not."""
    if isinstance(value, tuple):
        return any(_holds_arrays(one) for one in value)
    if isinstance(value, np.ndarray | partial):
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def tasks_that_fit(device: Device, need: MemoryNeed, workers: int) -> int:
    """Tasks that a device has room for at the same time, at most ``workers``; 0: none."""
    if device.memory is None:
        return workers
    # The device has no interpreter: the base is 0.
    tasks = Budget(device.memory, device.tasks or workers).workers_that_fit(need, 0)
    return min(workers, tasks)


def workers_on(
    device: Device, stage: str, need: MemoryNeed, workers: int, advice: Callable[[], str] = str
) -> int:
    """Tasks that a device has room for at the same time, at most ``workers``.

    Args:
        device: what computes.
        stage: name, for the message.
        need: device memory of the stage.
        workers: tasks at most.
        advice: further words of the message, such as settings with which the stage would fit.

    Raises:
        PlanRefused: not even one.
    """
    tasks = tasks_that_fit(device, need, workers)
    if not tasks:
        raise PlanRefused(
            f"{format_bytes(need.fixed + need.per_worker)} of device memory needed, "
            f"{format_bytes(device.memory or 0)} free on {device.name}",
            where=f"stage {stage}",
            expected="a device that holds the landmarks and one product",
            advice=f"stop what else runs on it, or take --device cpu{advice()}",
        )
    return tasks


@contextlib.contextmanager
def device_scope(device: Device) -> Iterator[None]:
    """Free device memory when the stage ends.

    Raises:
        PlanRefused: the device has run out of memory.
    """
    try:
        yield
    # CuPy's own error is a MemoryError too.
    except MemoryError as error:
        if device.memory is None:
            raise
        raise PlanRefused(
            f"the device is out of memory: {error}",
            where=device.name,
            expected=f"at most {format_bytes(device.memory)} at a time",
            advice="stop what else runs on it, or take --device cpu",
        ) from error
    finally:
        device.release()


def eigh_on(device: Device) -> Eigh:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix, computed on the device.

    For a matrix of the host they are copied back to the host; else they stay on the device.
    """
    return np.linalg.eigh if is_host(device) else partial(_eigh, device)


def _eigh(device: Device, S: Array) -> tuple[Any, Any]:
    if not isinstance(S, np.ndarray):
        return tuple(array_namespace(S).linalg.eigh(S))
    on_device = device.to_device(np.ascontiguousarray(S))
    values, vectors = array_namespace(on_device).linalg.eigh(on_device)
    return device.to_host(values), device.to_host(vectors)
