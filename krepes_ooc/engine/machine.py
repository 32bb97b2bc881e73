"""What this machine has: cores, memory, BLAS, and the numerics that decide bits."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import psutil


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int:
    """Memory that can be used without swapping, cgroup limit included."""
    limit = int(psutil.virtual_memory().available)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = min(limit, int(Path(path).read_text(encoding="ascii")))
    return limit


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process: what a budget is about (mapped files are not)."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Largest resident memory of this process so far, mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def numerics() -> str:
    """Backend, BLAS and processor: results are bitwise equal only where this text is equal."""
    import threadpoolctl

    blas = sorted(
        {f"{lib['internal_api']} {lib.get('version')} {lib.get('architecture', '')}".strip()
         for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"}
    )
    return f"numpy {np.__version__}; {', '.join(blas) or 'no BLAS'}; {_processor()}"


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """One BLAS thread in every worker: workers are the parallelism, and bits stay fixed."""
    import threadpoolctl

    with threadpoolctl.threadpool_limits(limits=1):
        yield


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
