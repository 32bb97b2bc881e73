"""Probe of the NVIDIA device of this machine; one line says why it cannot be used."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from krepes_ooc.errors import UsageError

_TRIAL = 2.0


class Probe(Protocol):
    """Questions to a machine before its device is used, from the outside to the inside."""

    def load(self) -> None:
        """Import CuPy; it raises whatever the import raises."""

    def driver(self) -> int:
        """Version of the driver; 0: none."""

    def count(self) -> int:
        """Number of devices; it raises what the runtime raises."""

    def trial(self) -> float:
        """A product and an eigenvalue of a tiny matrix, 2 if all is well: all libraries load."""


class CupyProbe:
    """The probe of this machine."""

    def load(self) -> None:
        """As ``Probe``."""
        importlib.import_module("cupy")

    def driver(self) -> int:
        """As ``Probe``."""
        return int(importlib.import_module("cupy").cuda.runtime.driverGetVersion())

    def count(self) -> int:
        """As ``Probe``."""
        return int(importlib.import_module("cupy").cuda.runtime.getDeviceCount())

    def trial(self) -> float:
        """As ``Probe``."""
        cp = importlib.import_module("cupy")
        # cuBLAS: 2 x 2 ones squared are twos. cuSOLVER: their largest eigenvalue is 2.
        ones = cp.ones((2, 2), dtype=cp.float32)
        return float((ones @ ones)[0, 0] * cp.linalg.eigh(ones)[0][1] / 2)


def load_cupy() -> Any:
    """The module cupy; it publishes no types."""
    return importlib.import_module("cupy")


def check_usable(probe: Probe) -> None:
    """Refuse a machine on which no device can be used.

    Args:
        probe: of the machine.

    Raises:
        UsageError: CuPy, driver, device or a CUDA library is missing, or gives wrong results.
    """
    # The package.
    try:
        probe.load()
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise _unusable(f"CuPy does not load: {_one_line(error)}", _REINSTALL) from error
        raise _unusable("CuPy is not installed", "pip install 'krepes-ooc[cuda]'") from error
    except ImportError as error:
        raise _unusable(f"CuPy does not load: {_one_line(error)}", _REINSTALL) from error
    # The driver and the devices that it shows.
    try:
        if probe.driver() < 1:
            raise _unusable("there is no NVIDIA driver", "install one, as nvidia-smi shows")
        count = probe.count()
    except RuntimeError as error:
        raise _unusable(f"no device answers: {_one_line(error)}", _LOOK) from error
    if count < 1:
        raise _unusable("no device is visible", _LOOK)
    # The libraries: they load on first use, and a wrong pair may give wrong numbers.
    try:
        result = probe.trial()
    except ImportError as error:
        raise _unusable(f"a CUDA library is missing: {_one_line(error)}", _LIBRARIES) from error
    except (RuntimeError, OSError) as error:
        raise _unusable(f"the device does not compute: {_one_line(error)}", _LOOK) from error
    if result != _TRIAL:
        raise _unusable(f"the device gives {result:g} for {_TRIAL:g}", _LOOK)


_LOOK = "look at nvidia-smi and CUDA_VISIBLE_DEVICES"
_REINSTALL = "reinstall the one CuPy that fits the driver's CUDA"
_LIBRARIES = "install the CUDA libraries: pip install 'cupy-cuda13x[ctk]'"


def _unusable(what: str, advice: str) -> UsageError:
    return UsageError(
        what,
        where="--device cuda",
        expected="an NVIDIA device with its driver, and CuPy",
        advice=f"{advice}, or take --device cpu",
    )


def _one_line(error: BaseException) -> str:
    """An error of a library in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
