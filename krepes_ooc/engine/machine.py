"""Properties of this machine: cores, memory, BLAS, and the numerics that decide bits."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import psutil

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.core.files import remove_leftover
from krepes_ooc.engine.cuda_probe import CupyProbe, check_usable
from krepes_ooc.errors import UsageError

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
            # Version 2 has one hierarchy, without controllers; version 1 one for memory.
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = mount / "memory" if controllers else mount
            limit, used = (
                ("memory.limit_in_bytes", "total_rss") if controllers else ("memory.max", "anon")
            )
            # A group may use no more than every group above it still allows.
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
    """Anonymous resident memory of this process in bytes; mapped files do not count."""
    # The kernel's own count, of Linux; elsewhere all resident memory.
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def trim() -> None:
    """Give the freed memory that the C library keeps back to the system; glibc only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes() -> int:
    """Largest resident memory of this process so far, mapped files included; 0 if unknown."""
    try:
        import resource
    except ImportError:
        return 0
    # Bytes on macOS, KiB elsewhere.
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

    # torch brings a BLAS with it, which computes no block.
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


def recorded_versions() -> dict[str, str]:
    """Versions of Python and of ``LIBRARIES`` by name, for the records of runs and the report."""
    versions = {name: library_version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **versions}


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


# Their versions decide bits and formats: runs and reports record them.
LIBRARIES = ("krepes-ooc", "numpy", "scipy", "torch", "zarr", "dask", "xarray")
OPTIONAL = {
    "cupy": "GPU block kernels (extra cuda)",
    "dask_jobqueue": "clusters (extra hpc)",
    "h5py": "HDF5 arrays (extra hdf5)",
}
TRIAL_BYTES = 2**26


def examine(folder: Path) -> dict[str, str]:
    """Facts in words: versions, cores, memory, BLAS, disk, GPU, optional parts."""
    facts = {"python": sys.version.split()[0]}
    facts |= {name: library_version(name) for name in (*LIBRARIES, "distributed")}
    facts["cores"] = str(cores())
    facts["memory available"] = format_bytes(available_bytes())
    facts["numerics"] = numerics()
    facts["disk free here"] = format_bytes(shutil.disk_usage(folder).free)
    facts["disk write here"] = _write_rate(folder)
    facts["gpu"] = _gpu()
    # Looked up without an import, which may take seconds.
    for module, purpose in OPTIONAL.items():
        present = importlib.util.find_spec(module) is not None
        facts[purpose] = "installed" if present else "not installed"
    return facts


def _write_rate(folder: Path) -> str:
    """Rate of a flushed write, in words."""
    try:
        _, seconds = timed_write(folder, np.zeros(TRIAL_BYTES, dtype=np.uint8))
    except OSError as error:
        return f"cannot write: {error.strerror}"
    return f"{format_bytes(TRIAL_BYTES / seconds)}/s"


def timed_write(folder: Path, values: npt.NDArray[Any]) -> tuple[float, float]:
    """CPU-seconds of writing an array to a trial file, and wall seconds until it is flushed.

    The file is removed again.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = folder / f".krepes-{uuid.uuid4().hex}.trial"
    try:
        with path.open("wb") as file:
            begin = time.perf_counter()
            cpu_begin = time.process_time()
            file.write(values.data)
            file.flush()
            # The flush waits for the disk: it takes wall time and hardly any of the processor.
            cpu = time.process_time() - cpu_begin
            os.fsync(file.fileno())
            wall = time.perf_counter() - begin
    finally:
        remove_leftover(path)
    return max(cpu, 1e-9), max(wall, 1e-9)


def _gpu() -> str:
    """Whether an NVIDIA device can be used, or why not."""
    try:
        check_usable(CupyProbe())
    except UsageError as error:
        return f"not usable: {error.what}"
    return "ready"


INTERVAL_SECONDS = 0.02


class ResourceMeter:
    """CPU-seconds and peak anonymous memory since its creation; sampled while it is entered.

    The kernel records no peak of anonymous memory alone, so a light thread reads it fifty times a
    second.

    Args:
        observe: receives every sample, in bytes.
    """

    def __init__(self, observe: Callable[[int], None] = lambda anonymous: None) -> None:
        self._observe = observe
        self._start = time.monotonic()
        self._cpu = time.process_time()
        self._first = self._peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._sample, name="krepes-meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def facts(self) -> dict[str, float]:
        """Wall seconds, CPU-seconds of all threads, and anonymous bytes before and at the peak."""
        self._peak = max(self._peak, anonymous_bytes())
        return {
            "seconds": time.monotonic() - self._start,
            "cpu_seconds": time.process_time() - self._cpu,
            "anonymous_before": self._first,
            "anonymous_peak": self._peak,
        }

    def _sample(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS):
            anonymous = anonymous_bytes()
            self._peak = max(self._peak, anonymous)
            self._observe(anonymous)
