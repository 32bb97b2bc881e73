"""A recording fake of the few CuPy calls that ``engine.gpu`` makes. It is no device.

What it does model is time: copies and kernels are queued on their streams and run later, in any
order that the events allow. A transfer that forgets to wait therefore gives wrong numbers.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

FREE = 2**30


class Machine:
    """The streams, and a scheduler that runs what may run in an order of its own."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.streams: list[Stream] = []
        self.log: list[str] = []

    def run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            ready = [stream for stream in self.streams if stream.ready()]
            assert ready, "all streams wait for each other"
            self.draw.choice(ready).step()

    def drain(self) -> None:
        self.run_until(lambda: not any(stream.queue for stream in self.streams))


class Event:
    def __init__(self, machine: Machine) -> None:
        self.machine, self.recorded, self.happened = machine, 0, 0

    def record(self, stream: Stream) -> None:
        self.recorded += 1
        stream.queue.append((lambda: True, lambda turn=self.recorded: self._happen(turn)))

    def _happen(self, turn: int) -> None:
        self.happened = turn

    def synchronize(self) -> None:
        turn = self.recorded
        self.machine.run_until(lambda: self.happened >= turn)


class Stream:
    def __init__(self, machine: Machine, non_blocking: bool = False) -> None:
        self.queue: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        self.non_blocking = non_blocking
        machine.streams.append(self)

    def wait_event(self, event: Event) -> None:
        turn = event.recorded
        self.queue.append((lambda: event.happened >= turn, lambda: None))

    def ready(self) -> bool:
        return bool(self.queue) and self.queue[0][0]()

    def step(self) -> None:
        self.queue.popleft()[1]()


class Memory(bytearray):
    """A piece of memory, of the host or of the device; ``ptr`` is the piece itself."""

    def __init__(self, machine: Machine, size: int) -> None:
        super().__init__(size)
        self.machine, self.ptr, self.fails = machine, self, False

    def copy_from_host_async(self, pinned: Memory, size: int, stream: Stream) -> None:
        if self.fails:
            raise MemoryError("planted")
        self.machine.log.append(f"copy {size}")

        def copy() -> None:
            memoryview(self)[:size] = bytes(memoryview(pinned)[:size])

        stream.queue.append((lambda: True, copy))


class FakeCupy:
    """The module."""

    __version__ = "0.fake"
    float32 = np.float32

    def __init__(self, seed: int = 0) -> None:
        machine = self.machine = Machine(seed)
        self.compute = compute = Stream(machine)
        self.pinned: list[Memory] = []
        self.device: list[Memory] = []

        class Array(np.ndarray):
            def __new__(cls, shape: Any, dtype: Any, memptr: Memory) -> Any:
                count = int(np.prod(shape))
                return np.frombuffer(memptr, dtype, count).reshape(shape).view(cls)

            def __setitem__(self, key: Any, value: Any) -> None:
                place = self.view(np.ndarray)
                compute.queue.append((lambda: True, lambda: place.__setitem__(key, value)))

        self.ndarray = Array
        runtime = SimpleNamespace(
            getDevice=lambda: 0,
            getDeviceCount=lambda: 2,
            getDeviceProperties=lambda index: {"name": b"Fake"},
            runtimeGetVersion=lambda: 13000,
            memGetInfo=lambda: (FREE, FREE),
            deviceSynchronize=self._synchronize,
        )
        self.cuda = SimpleNamespace(
            runtime=runtime,
            Stream=lambda non_blocking: Stream(machine, non_blocking),
            Event=lambda disable_timing: Event(machine),
            alloc_pinned_memory=lambda size: self._given(self.pinned, size),
            alloc=lambda size: self._given(self.device, size),
            get_current_stream=lambda: compute,
        )

    def _given(self, of: list[Memory], size: int) -> Memory:
        of.append(Memory(self.machine, size))
        return of[-1]

    def _synchronize(self) -> None:
        self.machine.log.append("synchronize")
        self.machine.drain()

    def empty(self, shape: Any, dtype: Any) -> Any:
        return np.full(shape, 77, dtype=dtype).view(self.ndarray)

    def from_dlpack(self, tensor: Any) -> Any:
        self.machine.log.append("dlpack")
        return np.array(tensor.values).view(self.ndarray)

    def asarray(self, values: Any) -> Any:
        return np.array(values).view(self.ndarray)

    def asnumpy(self, values: Any) -> Any:
        self.machine.drain()
        return np.array(values)

    def _pool(self, name: str) -> Any:
        return SimpleNamespace(free_all_blocks=lambda: self.machine.log.append(f"free {name}"))

    def get_default_memory_pool(self) -> Any:
        return self._pool("device")

    def get_default_pinned_memory_pool(self) -> Any:
        return self._pool("pinned")
