"""Memory budget in bytes: the number of workers follows from it, or the stage is refused."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.engine import machine
from krepes_ooc.engine.executor import Executor
from krepes_ooc.errors import PlanRefused, UsageError


@dataclass(frozen=True)
class MemoryNeed:
    """Anonymous memory of one stage, in bytes.

    Args:
        fixed: allocated once, whatever the number of workers.
        per_worker: allocated by every worker at the same time.
        tasks: largest number of tasks at the same time; None: any number.
    """

    fixed: int = 0
    per_worker: int = 0
    tasks: int | None = None

    def of_process(self, base: int) -> MemoryNeed:
        """The same for workers that are processes: each has its base and its fixed part.

        Args:
            base: anonymous bytes of one process before the stage.

        """
        # Processes stay for all stages, however few tasks one of them has.
        return MemoryNeed(0, base + self.fixed + self.per_worker)


@dataclass(frozen=True)
class Budget:
    """Limits of a run: anonymous memory and number of workers.

    Args:
        memory: bytes in all, the interpreter included.
        workers: threads at most.
    """

    memory: int
    workers: int

    def workers_for(self, stage: str, need: MemoryNeed, base: int) -> int:
        """Number of workers that fit beside the fixed part.

        Args:
            stage: name, for the message.
            need: memory of the stage.
            base: anonymous bytes before the stage.

        Raises:
            PlanRefused: not even one worker fits.
        """
        workers = self.workers_that_fit(need, base)
        if not workers:
            raise self.refusal_error(stage, base + need.fixed + need.per_worker)
        return workers

    def refusal_error(
        self,
        stage: str,
        total: int,
        other: str = "",
        beside: Sequence[str] = (),
        *,
        at_least: bool = False,
        needs: str = "one worker needs",
    ) -> PlanRefused:
        """The error for a stage that needs ``total`` bytes, the base included.

        Args:
            stage: name, for the message: the one that needs most.
            total: bytes of one worker.
            other: further advice behind that to raise the limit: ", or ..." or ", because ...".
            beside: further stages that do not fit.
            at_least: whether the bytes are a lower bound.
            needs: what takes the bytes, in words.
        """
        further = f" (nor do {', '.join(beside)} fit)" if beside else ""
        # A tenth of slack above the smallest limit that fits.
        enough = f"{'at least ' if at_least else ''}{format_bytes(1.1 * total)}"
        return PlanRefused(
            f"{needs} {format_bytes(total)} of memory{further}",
            where=f"stage {stage}",
            expected=f"at most --memory {format_bytes(self.memory)}",
            advice=f"raise --memory to {enough}{other}",
        )

    def planned_bytes(self, need: MemoryNeed, base: int) -> int:
        """Anonymous memory of a stage with all workers that fit, at least one, in bytes."""
        workers = max(1, self.workers_that_fit(need, base))
        return base + need.fixed + workers * need.per_worker

    def workers_that_fit(self, need: MemoryNeed, base: int) -> int:
        """Number of workers that fit; 0 if not even one does."""
        # base + fixed + workers x per_worker <= memory, and no more workers than tasks.
        free = self.memory - base - need.fixed
        if free < need.per_worker:
            return 0
        most = self.workers if need.tasks is None else min(self.workers, need.tasks)
        return min(most, free // need.per_worker) if need.per_worker else most


def default_budget(memory: int | None, workers: int | None) -> Budget:
    """The budget asked for, or three quarters of the available memory and all cores.

    Raises:
        UsageError: less than one worker.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers", where="--workers", expected="at least 1")
    # A quarter stays for the page cache, which the reads of stored blocks live on.
    limit = memory if memory is not None else machine.available_bytes() * 3 // 4
    return Budget(limit, workers if workers is not None else machine.cores())


COLLECT_BYTES = 32 << 20
# What glibc may keep of freed memory. By itself it makes an arena for every worker and keeps tens
# of MiB in each; with these a stage leaves little behind, for 2 % of the CPU time of short blocks.
# What is mapped must stay above the 2 MiB of one matrix product.
ARENAS = 2
MAPPED_BYTES = 3 << 20
KEPT_BYTES = 8 << 20
ALLOCATOR_BYTES = ARENAS * KEPT_BYTES
# Activations of a large network are mapped, filled with zeros and given back at every layer: a
# fifth of the time of a row. Where a batch takes this much, what it freed is kept for the next one,
# and given back at the end of the stage.
LARGE_BATCH = 1 << 30
LARGE_MAPPED_BYTES = 32 << 20  # the most that glibc takes from an arena
LARGE_KEPT_BYTES = 128 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def allocator_bytes(batch: int = 0) -> int:
    """Bytes that the C allocator takes at most above what is in use at the peak.

    Args:
        batch: bytes of a batch of the network; 0: no network runs.
    """
    return ARENAS * LARGE_KEPT_BYTES if batch >= LARGE_BATCH else ALLOCATOR_BYTES


def bound_allocator(batch: int = 0) -> None:
    """Bound what the C allocator takes above what is in use, ``allocator_bytes``; glibc only.

    Arrays of ``MAPPED_BYTES`` and more go back to the system at once; those of one matrix product
    are smaller and are used again, as are most of a large network.

    Args:
        batch: bytes of a batch of the network; 0: no network runs.
    """
    large = batch >= LARGE_BATCH
    chosen = {
        _M_ARENA_MAX: ARENAS,
        _M_MMAP_THRESHOLD: LARGE_MAPPED_BYTES if large else MAPPED_BYTES,
        _M_TRIM_THRESHOLD: LARGE_KEPT_BYTES if large else KEPT_BYTES,
    }
    # Another C library has no mallopt: nothing to do.
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in chosen.items():
            library.mallopt(option, value)


def base_bytes() -> int:
    """Anonymous bytes of this process with every library loaded that the block tasks use.

    Libraries load on first use; a budget that is compared with what a process has before would
    forget about 200 MB of them.
    """
    bound_allocator()
    # One tiny task loads torch (float16), BLAS, Dask and its threads.
    with machine.one_blas_thread():
        values = to_float32(np.ones((1, 2), dtype=np.float16))
        Executor().run(lambda row: row @ row, [values[0]])
    release()
    return machine.anonymous_bytes()


def release(baseline_bytes: int = 0) -> None:
    """Give freed memory back to the system, so that a stage is not charged for the one before.

    Args:
        baseline_bytes: anonymous bytes of this process that are no leftovers.
    """
    # Looking for cycles costs tenths of a second with the libraries loaded.
    if machine.anonymous_bytes() - baseline_bytes > COLLECT_BYTES:
        gc.collect()
    machine.trim()
