"""Where blocks are computed: in this process's own memory, or on a device that they are moved to.

The algebra speaks the array API, so a stage asks a device for three things only: the block over
there, the small result back, and how many rows make one matrix product.
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

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.engine.budget import Budget, MemoryNeed
from krepes_ooc.errors import PlanRefused

Array = Any  # of the device's namespace
Values = TypeVar("Values")
Eigh = Callable[[npt.NDArray[np.float64]], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]


@dataclass(frozen=True)
class Speed:
    """What decides between reading kernel rows and computing them again.

    Args:
        flops: float32 operations a second of a large matrix product.
        bandwidth: bytes a second from the host's memory to the device.
    """

    flops: float
    bandwidth: float


class Device(Protocol):
    """Where the arrays of a block task live.

    Results are back on the host before a task ends: nothing on a device passes between tasks.
    """

    @property
    def name(self) -> str:
        """What the journal adds to the numerics of the host; empty for the host itself."""

    @property
    def memory(self) -> int | None:
        """Bytes that a stage may hold there; None: those of the host's budget."""

    @property
    def tasks(self) -> int | None:
        """Tasks that may work there at the same time; None: any number."""

    @property
    def speed(self) -> Speed | None:
        """How fast it is; None where blocks need no transfer."""

    @property
    def count(self) -> int:
        """Devices of this kind that this process sees; 0 for the host."""

    @property
    def torch(self) -> str:
        """The device of torch that the network runs on."""

    def to_device(self, values: npt.NDArray[Any]) -> Array:
        """The array over there, its dtype kept."""

    def upload(self, stored: npt.NDArray[Any]) -> Array:
        """One stored block over there as it is, for ``widen``."""

    def from_torch(self, tensor: Any) -> Array:
        """A tensor of torch over there, its dtype kept; by DLPack, not copied, if it lies there."""

    def to_float32(self, *stored: Array) -> Array:
        """Rows of consecutive stored blocks over there, or of one that is held, as float32."""

    def round_trip(self, values: Array, dtype: str) -> Array:
        """Float32 values as they would come back from a store of this dtype."""

    def to_host(self, values: Array) -> Any:
        """The array in the host's memory, when all that it depends on is computed."""

    def rows_per_product(self, least: int, most: int, row_bytes: int) -> int:
        """Rows of one matrix product.

        Args:
            least: what suits a processor's cache.
            most: all rows at hand.
            row_bytes: held for every row of the product.
        """

    def cached(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """What was kept under this key, else what ``make`` gives, kept until ``free``."""

    def release(self) -> None:
        """Give back what a stage leaves behind."""


@dataclass(frozen=True)
class Host:
    """The host itself: nothing is moved, and no bit differs from plain NumPy."""

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
        """What suits the cache."""
        return least

    def cached(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """Nothing is kept: the page cache does that."""
        return make()

    def release(self) -> None:
        """Nothing is held."""


HOST = Host()


def is_host(device: Device) -> bool:
    """Whether arrays stay where they are."""
    return device.memory is None


def to_device(device: Device, value: Values) -> Values:
    """The same function or record, with every array that it carries moved to the device.

    Arrays are looked for in the arguments of partial functions, in the fields of dataclasses and in
    tuples, at any depth. What an ordinary function has closed over cannot be seen.
    """
    return value if is_host(device) else _dataclass_to_device(device, value)


def _dataclass_to_device(device: Device, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return device.to_device(value)
    if isinstance(value, partial):
        function, given = (
            _dataclass_to_device(device, value.func),
            [_dataclass_to_device(device, one) for one in value.args],
        )
        named = {name: _dataclass_to_device(device, one) for name, one in value.keywords.items()}
        return partial(function, *given, **named)
    if isinstance(value, tuple) and any(_holds_arrays(one) for one in value):
        return tuple(_dataclass_to_device(device, one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        found = {
            name: _dataclass_to_device(device, one)
            for name, one in fields.items()
            if _holds_arrays(one)
        }
        return dataclasses.replace(value, **found) if found else value
    return value


def _holds_arrays(value: Any) -> bool:
    """Whether a value may hold an array: numbers, text and plain tuples of them do not."""
    if isinstance(value, tuple):
        return any(_holds_arrays(one) for one in value)
    if isinstance(value, np.ndarray | partial):
        return True
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def workers_on(device: Device, stage: str, need: MemoryNeed, workers: int) -> int:
    """Tasks that a device has room for at the same time, at most ``workers``.

    Raises:
        PlanRefused: not even one.
    """
    if device.memory is None:
        return workers
    fitting = Budget(device.memory, device.tasks or workers).fitting(need, 0)
    if not fitting:
        raise PlanRefused(
            f"{format_bytes(need.fixed + need.per_worker)} of device memory needed, "
            f"{format_bytes(device.memory)} free on {device.name}",
            where=f"stage {stage}",
            expected="a device that holds the landmarks and one product",
            advice="stop what else runs on it, lower the number of landmarks, or take --device cpu",
        )
    return min(workers, fitting)


@contextlib.contextmanager
def device_scope(device: Device) -> Iterator[None]:
    """Let a stage work on a device: afterwards it holds nothing there.

    Raises:
        PlanRefused: the device has run out of memory.
    """
    try:
        yield
    except MemoryError as error:
        if device.memory is None:
            raise
        raise PlanRefused(
            f"the device is out of memory: {error}",
            where=device.name,
            expected=f"at most {format_bytes(device.memory)} at a time",
            advice="stop what else runs on it, lower the number of landmarks, or take --device cpu",
        ) from error
    finally:
        device.release()


def eigh_on(device: Device) -> Eigh:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix, computed on the device.

    They come back to the host if the matrix was there, and stay with it if it was not.
    """
    return np.linalg.eigh if is_host(device) else partial(_eigh, device)


def _eigh(device: Device, S: Array) -> tuple[Any, Any]:
    came = isinstance(S, np.ndarray)
    there = device.to_device(np.ascontiguousarray(S)) if came else S
    values, vectors = array_namespace(there).linalg.eigh(there)
    return (device.to_host(values), device.to_host(vectors)) if came else (values, vectors)
