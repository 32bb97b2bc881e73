"""A device that is not the host's, on a machine without one: array-api-strict on its fake device.

Its namespace knows the array API alone, and a host array, a host number or an array of another
device among its own is an error. A stage that passes here hides no transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import array_api_strict as strict
import numpy as np
import numpy.typing as npt

from krepes_ooc.engine.device import HOST, Speed

THERE, CPU = strict.Device("device1"), strict.Device("CPU_DEVICE")


@dataclass
class StrictDevice:
    """Arrays of array-api-strict on ``device1``; everything that passes is counted.

    Args:
        whole: whether a product takes all rows at hand, as on a real device, or the host's.
        memory: bytes that a stage may hold.
        speed: what kernel rows are recomputed or streamed by.

    Attributes:
        moved: arrays that went there.
        came: arrays that came back.
        taken: tensors of torch that were taken.
    """

    whole: bool = False
    memory: int | None = 2**30
    speed: Speed | None = field(default_factory=lambda: Speed(flops=1.0, bandwidth=1e12))
    name: str = "array-api-strict"
    tasks: int | None = 2
    torch: str = "cpu"
    count: int = 0
    moved: int = 0
    came: int = 0
    taken: int = 0
    freed: int = 0
    kept: dict[Hashable, Any] = field(default_factory=dict)

    def to_device(self, values: npt.NDArray[Any]) -> Any:
        assert isinstance(values, np.ndarray), type(values)
        self.moved += 1
        return strict.asarray(np.array(values), device=THERE)

    def upload(self, stored: npt.NDArray[Any]) -> Any:
        return self.to_float32(stored)  # the namespace has no float16

    def from_torch(self, tensor: Any) -> Any:
        self.taken += 1
        return self.upload(HOST.from_torch(tensor))

    def to_float32(self, *stored: Any) -> Any:
        there = isinstance(stored[0], strict._array_object.Array)
        return stored[0] if there else self.to_device(HOST.to_float32(*stored))

    def round_trip(self, values: Any, dtype: str) -> Any:
        return self.to_device(HOST.round_trip(self.to_host(values), dtype))

    def to_host(self, values: Any) -> Any:
        if not isinstance(values, strict._array_object.Array):
            assert isinstance(values, int), f"{type(values)} never went there"
            return values
        assert values.device == THERE
        self.came += 1
        return np.array(values.to_device(CPU))

    def rows_per_product(self, least: int, most: int, row_bytes: int) -> int:
        return most if self.whole else least

    def cached(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def release(self) -> None:
        self.freed += 1
        self.kept = {}
