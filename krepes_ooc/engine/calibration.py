"""How fast this machine is, measured in about two seconds: the rates behind every estimated time.

All rates are per CPU-second of one thread, because CPU-seconds stay the same on a busy machine.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from krepes_ooc.engine import machine

SIDE = 1536
TRIAL_BYTES = 2**26


@dataclass(frozen=True)
class Rates:
    """Rates of one thread.

    Args:
        single: float32 operations a CPU-second in a large matrix product.
        double: float64 operations a CPU-second.
        read: bytes a CPU-second summed from memory.
        write: bytes a CPU-second written to a file, not flushed.
        disk: bytes a second written to a file and flushed.
    """

    single: float
    double: float
    read: float
    write: float
    disk: float

    def cpu_seconds(self, flops: float, n_bytes: float, *, double: bool = False) -> float:
        """CPU-seconds of these operations and of writing these bytes."""
        return flops / (self.double if double else self.single) + n_bytes / self.write


def calibrate(folder: Path) -> Rates:
    """Measure the rates; the trial file in ``folder`` is removed again.

    Raises:
        OSError: the folder cannot be written to.
    """
    with machine.one_blas_thread():
        single, double = (_product_rate(np.dtype(name)) for name in ("float32", "float64"))
    values = np.ones(TRIAL_BYTES // 4, dtype=np.float32)
    read = values.nbytes / fastest(lambda: values @ values, 3)
    write, disk = _write_rates(folder, values)
    return Rates(single, double, read, write, disk)


def fastest(work: Callable[[], object], repeats: int) -> float:
    """CPU-seconds of the fastest of several calls, the first one not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return max(min(seconds), 1e-9)


def _product_rate(dtype: np.dtype[np.float32] | np.dtype[np.float64]) -> float:
    values = np.ones((SIDE, SIDE), dtype=dtype)
    return 2.0 * SIDE**3 / fastest(lambda: values @ values, 3)


def _write_rates(folder: Path, values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Bytes a CPU-second of a write, and bytes a second of a write that is flushed."""
    path = folder / f".krepes-{uuid.uuid4().hex}.trial"
    try:
        with path.open("wb") as file:
            begin, cpu = time.perf_counter(), time.process_time()
            file.write(values.data)
            file.flush()
            cpu = time.process_time() - cpu
            os.fsync(file.fileno())
            wall = time.perf_counter() - begin
    finally:
        path.unlink(missing_ok=True)
    return values.nbytes / max(cpu, 1e-9), values.nbytes / max(wall, 1e-9)
