"""The memory that a run starts from, and giving back what a stage has left behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc

import numpy as np

from krepes_ooc.engine import machine
from krepes_ooc.engine.executor import Executor
from krepes_ooc.widen import to_float32

COLLECT_BYTES = 32 << 20
# What glibc may keep of freed memory. By itself it makes an arena for every worker and keeps tens
# of MiB in each; with these a stage leaves little behind, for 2 % of the CPU time of short blocks.
# What is mapped must stay above the 2 MiB of one matrix product.
ARENAS = 2
MAPPED_BYTES = 3 << 20
KEPT_BYTES = 8 << 20
ALLOCATOR_BYTES = ARENAS * KEPT_BYTES
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def bound_allocator() -> None:
    """Let the C allocator keep at most ``ALLOCATOR_BYTES`` of what was freed; glibc only.

    Arrays of ``MAPPED_BYTES`` and more go back to the system at once; those of one matrix product
    are smaller and are used again.
    """
    chosen = {
        _M_ARENA_MAX: ARENAS,
        _M_MMAP_THRESHOLD: MAPPED_BYTES,
        _M_TRIM_THRESHOLD: KEPT_BYTES,
    }
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
    with machine.one_blas_thread():
        values = to_float32(np.ones((1, 2), dtype=np.float16))
        Executor().run(lambda row: row @ row, [values[0]])
    release()
    return machine.anonymous_bytes()


def release(held_bytes: int = 0) -> None:
    """Give freed memory back to the system, so that one stage does not count what another held.

    Looking for cycles costs tenths of a second with the libraries loaded: it is done only when
    this process has grown by more than COLLECT_BYTES beyond `held_bytes`.
    """
    if machine.anonymous_bytes() - held_bytes > COLLECT_BYTES:
        gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
