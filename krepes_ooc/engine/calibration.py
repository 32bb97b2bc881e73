"""Rates of this machine, measured in about two seconds, from which times are estimated.

All rates are per CPU-second of one thread, because CPU-seconds stay the same on a busy machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import release

SAMPLE_SECONDS = 0.001
SIDE = 1536
TRIAL_BYTES = machine.TRIAL_BYTES


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
    # One thread, as in the workers of a stage.
    with machine.one_blas_thread():
        single = _product_rate(np.dtype("float32"))
        double = _product_rate(np.dtype("float64"))
    # 64 MiB are more than any cache: the dot product waits for memory alone.
    values = np.ones(TRIAL_BYTES // 4, dtype=np.float32)
    read = values.nbytes / fastest(lambda: values @ values, 3)
    cpu, flushed = machine.timed_write(folder, values)
    write = values.nbytes / cpu
    disk = values.nbytes / flushed
    return Rates(single, double, read, write, disk)


def peak_growth(work: Callable[[], object]) -> int:
    """Growth of this process's anonymous memory at its peak while ``work`` runs, in bytes."""
    release()
    before = machine.anonymous_bytes()
    done = threading.Event()
    peaks = [before]

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peaks.append(machine.anonymous_bytes())

    # The kernel records no peak of anonymous memory: a thread reads it a thousand times a second.
    thread = threading.Thread(target=sample, name="krepes-peak", daemon=True)
    thread.start()
    try:
        work()
        peaks.append(machine.anonymous_bytes())
    finally:
        done.set()
        thread.join()
    return max(peaks) - before


def fastest(
    work: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Seconds of the fastest of several calls, the first one not counted.

    Args:
        work: the call.
        repeats: number of calls that are timed.
        clock: CPU-seconds of this process, or wall time.
    """
    # The first call loads libraries and fills caches.
    work()
    seconds = []
    for _ in range(repeats):
        begin = clock()
        work()
        seconds.append(clock() - begin)
    return max(min(seconds), 1e-9)


def _product_rate(dtype: np.dtype[Any]) -> float:
    # A product of two n x n matrices takes 2 n^3 operations.
    values = np.ones((SIDE, SIDE), dtype=dtype)
    return 2.0 * SIDE**3 / fastest(lambda: values @ values, 3)
