"""Packed values of NetCDF and xarray: scale_factor, add_offset and fill values in attributes."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import DataError, SourceError

_MISSING = ("_FillValue", "missing_value")


@dataclass(frozen=True)
class Packing:
    """Map from stored to meant values: ``stored * scale + offset`` (CF conventions, section 8.1).

    Args:
        scale: attribute scale_factor.
        offset: attribute add_offset.
        missing: stored values that stand for no value.
    """

    scale: float = 1.0
    offset: float = 0.0
    missing: tuple[float, ...] = ()

    @property
    def scaled(self) -> bool:
        """Whether the meant values differ from the stored ones."""
        return (self.scale, self.offset) != (1.0, 0.0)

    def dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """Type of the meant values: float32 holds every integer of 16 bits."""
        if not self.scaled:
            return stored
        return np.dtype(np.float32 if stored.itemsize <= 2 else np.float64)

    def decode(
        self, stored: npt.NDArray[Any], positions: npt.NDArray[np.int64], where: str
    ) -> npt.NDArray[Any]:
        """Meant values [sample, ...] of stored ones.

        Raises:
            DataError: a value is missing; names the sample at its position.
        """
        for value in self.missing:
            holes = np.argwhere(stored == value)
            if holes.size:
                raise DataError(
                    f"a value is missing ({value:g}, which the attribute _FillValue or "
                    "missing_value says)",
                    where=f"{where}, sample {int(positions[holes[0][0]])}, "
                    f"position {holes[0][1:].tolist()}",
                    expected="a number everywhere",
                    advice="fill the gaps or leave those samples out",
                )
        if not self.scaled:
            return stored
        # In float64, as xarray does: float32 products would differ in the last bit.
        meant = stored.astype(np.float64) * self.scale + self.offset
        return meant.astype(self.dtype(stored.dtype))


def find_packing(attributes: Mapping[str, Any], dtype: np.dtype[Any], where: str) -> Packing | None:
    """Packing that the attributes of an array of numbers state; None if they state none.

    Raises:
        SourceError: an attribute is no number.
    """
    if dtype.kind not in "uif":
        return None
    if str(attributes.get("_Unsigned", "")).lower() == "true" and dtype.kind == "i":
        raise SourceError(
            f"{dtype} values with the attribute _Unsigned",
            where=where,
            expected="unsigned values stored as such",
            advice="write the array again as xarray decodes it",
        )
    scale = _number(attributes, "scale_factor", where, 1.0)
    offset = _number(attributes, "add_offset", where, 0.0)
    # NaN as fill value is found by the check for NaN.
    missing = {_number(attributes, name, where, np.nan) for name in _MISSING}
    packing = Packing(scale, offset, tuple(sorted(value for value in missing if value == value)))
    return packing if packing.scaled or packing.missing else None


def _number(attributes: Mapping[str, Any], name: str, where: str, default: float) -> float:
    """A number that is an attribute, an array of one value, or base64 of a float64 (Zarr 3)."""
    value = attributes.get(name)
    if value is None:
        return default
    try:
        if isinstance(value, str) and name in _MISSING:
            return float(struct.unpack("<d", base64.b64decode(value, validate=True))[0])
        return float(np.asarray(value).reshape(()))
    except (ValueError, TypeError, struct.error, binascii.Error) as error:
        raise SourceError(
            f"attribute {name} is {value!r}", where=where, expected="a number"
        ) from error
