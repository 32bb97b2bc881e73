"""What this machine has: cores, memory, BLAS, and the numerics that decide bits."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int:
    """Memory that can be used without swapping, limits of the control groups included."""
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *cgroup_free(Path("/proc/self/cgroup"), CGROUPS)]))


def cgroup_free(membership: Path, mount: Path) -> list[int]:
    """Bytes that each limited control group above this process still allows; cache counts as free.

    Args:
        membership: lines ``id:controllers:path``, as in ``/proc/self/cgroup``.
        mount: where the control groups are mounted; version 1 in its folder ``memory``.
    """
    free: list[int] = []
    with contextlib.suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = mount / "memory" if controllers else mount
            limit, used = (
                ("memory.limit_in_bytes", "total_rss") if controllers else ("memory.max", "anon")
            )
            inside = top / path.lstrip("/")
            for group in (inside, *inside.parents):
                if group.is_relative_to(top):
                    free += _group_free(group / limit, group / "memory.stat", used)
    return free


def _group_free(limit: Path, stat: Path, used: str) -> list[int]:
    """Limit minus anonymous memory of one group; nothing where there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        counts = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
        return [int(limit.read_text(encoding="ascii")) - int(counts.get(used, 0))]
    return []


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process: what a budget is about (mapped files are not)."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Largest resident memory of this process so far, mapped files included; 0 if unknown."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def numerics(device: str = "") -> str:
    """Libraries, BLAS, processor and device: bits are equal only where this text is equal.

    Args:
        device: name of the device that blocks are computed on; empty: this processor.
    """
    return f"{_host_numerics()}; {device}" if device else _host_numerics()


@cache
def _host_numerics() -> str:
    import scipy.linalg  # noqa: F401  loads its own BLAS: the text must not depend on who asks first
    import threadpoolctl

    blas = sorted(
        {
            f"{lib['internal_api']} {lib.get('version')} {lib.get('architecture', '')}".strip()
            for lib in threadpoolctl.threadpool_info()
            if lib["user_api"] == "blas" and "torch" not in Path(lib["filepath"]).parts
        }
    )
    libraries = ", ".join(f"{name} {library_version(name)}" for name in ("numpy", "scipy", "torch"))
    return f"{libraries}; {', '.join(blas) or 'no BLAS'}; {_processor()}"


def library_version(package: str) -> str:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """One BLAS thread in every worker: workers are the parallelism, and bits stay fixed."""
    import scipy.linalg  # noqa: F401  loads its own BLAS: one loaded later would escape the limit
    import threadpoolctl

    with threadpoolctl.threadpool_limits(limits=1):
        yield


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
