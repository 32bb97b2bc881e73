"""What this machine has, for ``krepes doctor``."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
import uuid
from pathlib import Path

from krepes_ooc.blocks import format_bytes
from krepes_ooc.engine import machine
from krepes_ooc.engine.cuda import CupyProbe, check_usable
from krepes_ooc.errors import UsageError

LIBRARIES = ("krepes-ooc", "numpy", "scipy", "torch", "zarr", "dask", "distributed", "xarray")
OPTIONAL = {
    "cupy": "GPU block kernels (extra cuda)",
    "dask_jobqueue": "clusters (extra hpc)",
    "PIL": "image folders (extra images)",
    "h5py": "HDF5 arrays (extra hdf5)",
}
_TRIAL_BYTES = 2**26


def examine(folder: Path) -> dict[str, str]:
    """Facts in words: versions, cores, memory, BLAS, disk, GPU, optional parts."""
    found = {"python": sys.version.split()[0]}
    found |= {name: machine.library_version(name) for name in LIBRARIES}
    found["cores"] = str(machine.cores())
    found["memory available"] = format_bytes(machine.available_bytes())
    found["numerics"] = machine.numerics()
    found["disk free here"] = format_bytes(shutil.disk_usage(folder).free)
    found["disk write here"] = _write_rate(folder)
    found["gpu"] = _gpu()
    for module, words in OPTIONAL.items():
        present = importlib.util.find_spec(module) is not None
        found[words] = "installed" if present else "not installed"
    return found


def _write_rate(folder: Path) -> str:
    """Rate of one synced write of 64 MiB, removed again."""
    path = folder / f".krepes-{uuid.uuid4().hex}.trial"
    try:
        begin = time.perf_counter()
        with path.open("wb") as file:
            file.write(bytes(_TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - begin
    except OSError as error:
        return f"cannot write: {error.strerror}"
    finally:
        path.unlink(missing_ok=True)
    return f"{format_bytes(_TRIAL_BYTES / max(seconds, 1e-9))}/s"


def _gpu() -> str:
    """Whether an NVIDIA device can be used, or why not."""
    try:
        check_usable(CupyProbe())
    except UsageError as error:
        return f"not usable: {error.what}"
    return "ready"
