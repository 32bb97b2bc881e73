"""Feature rows rounded to float16 with a power-of-two scale per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.errors import DataError, StageFailed

if TYPE_CHECKING:
    import torch

Float32 = npt.NDArray[np.float32]

# Largest accepted share of numbers that lose digits or vanish.
SUBNORMAL_SHARE = 0.01
# Bits of float16.
_MAGNITUDE = 0x7FFF
_INFINITY = 0x7C00
_NORMAL = 0x400


def store_rows(features: Float32, layout: FeatureLayout) -> npt.NDArray[np.float16]:
    """Stored form of feature rows: 2**exponent times the value, rounded to float16.

    Args:
        features: unscaled rows [sample, feature].
        layout: the layout with its calibrated scales.

    Raises:
        DataError: a feature is NaN or infinite.
        StageFailed: a column range overflows float16 or loses more than 1 % to subnormals.
    """
    import torch

    scale = np.empty(layout.n_features, dtype=np.float32)
    # Multiplication by a power of two is exact.
    for start, stop, exponent in layout.scales:
        scale[start:stop] = 2.0**exponent
    scaled = features * scale
    # torch rounds several times faster than NumPy.
    stored = np.asarray(torch.from_numpy(scaled).to(torch.float16).numpy())
    # If all losses together would pass in the narrowest range, they pass in every range.
    narrowest = min(stop - start for start, stop, _ in layout.scales) * len(stored)
    if _overflows(stored) or _count_underflow(scaled, stored) > SUBNORMAL_SHARE * narrowest:
        for start, stop, exponent in layout.scales:
            _check_range(features, scaled, stored, slice(start, stop), exponent)
    return stored


def _overflows(stored: npt.NDArray[np.float16]) -> bool:
    """Whether a value is infinite or NaN, from the bits."""
    return bool(stored.size) and int((stored.view(np.uint16) & _MAGNITUDE).max()) >= _INFINITY


def _count_underflow(scaled: Float32, stored: npt.NDArray[np.float16]) -> int:
    """Number of values that became subnormal or zero, from the bits: this runs on every row."""
    magnitude = stored.view(np.uint16) & _MAGNITUDE
    # Unsigned subtraction: 0 wraps around, so only 1 to 0x3FF, the subnormals, are counted.
    subnormal = np.count_nonzero(magnitude - np.uint16(1) < 0x3FF)
    return int(subnormal + np.count_nonzero(scaled != 0) - np.count_nonzero(magnitude))


def _check_range(
    features: Float32,
    scaled: Float32,
    stored: npt.NDArray[np.float16],
    columns: slice,
    exponent: int,
) -> None:
    """Raise if one column range overflows or underflows, or is not finite."""
    where = f"features, scale 2**{exponent}"
    name = f"columns {columns.start} to {columns.stop}"
    # An infinite feature is a fault of the sample, not of the scale.
    wrong = ~np.isfinite(features[:, columns]).all(axis=1)
    if wrong.any():
        raise DataError(
            f"{name} of row {int(wrong.argmax())} are NaN or infinite",
            where="features",
            expected="finite Jacobian rows",
            advice="look at this sample's values",
        )
    advice = "calibrate on more samples, or check for samples of another scale"
    part = scaled[:, columns]
    rounded = np.ascontiguousarray(stored[:, columns])
    if _overflows(rounded):
        raise StageFailed(
            f"{name} overflow float16: {float(np.abs(part).max()):.3g}",
            where=where,
            expected=f"at most {np.finfo(np.float16).max:g}",
            advice=advice,
        )
    n_lost = _count_underflow(part, rounded)
    if n_lost > SUBNORMAL_SHARE * part.size:
        raise StageFailed(
            f"{n_lost} of {part.size} values of {name} are subnormal in float16",
            where=where,
            expected=f"at most {SUBNORMAL_SHARE:.0%}",
            advice=advice,
        )


def store_rows_on_device(
    features: torch.Tensor, layout: FeatureLayout
) -> tuple[torch.Tensor, bool]:
    """The bits of ``store_rows``, on the device of the rows, and whether they pass its checks.

    Rows that fail go to ``store_rows``, which names the problem: only that bit comes to the host.

    Args:
        features: unscaled rows [sample, feature], float32.
        layout: the layout with its calibrated scales.
    """
    import torch

    scale = torch.empty(layout.n_features, dtype=torch.float32, device=features.device)
    for start, stop, exponent in layout.scales:
        scale[start:stop] = 2.0**exponent
    # As on the host, by the same bits.
    scaled = features * scale
    stored = scaled.to(torch.float16)
    magnitude = stored.view(torch.int16) & _MAGNITUDE
    subnormal = torch.count_nonzero((magnitude > 0) & (magnitude < _NORMAL))
    n_lost = subnormal + torch.count_nonzero(scaled) - torch.count_nonzero(magnitude)
    narrowest = min(stop - start for start, stop, _ in layout.scales) * len(stored)
    # One synchronisation of the device for all checks.
    wrong = (magnitude >= _INFINITY).any() | (n_lost > SUBNORMAL_SHARE * narrowest)
    return stored, not bool(wrong)
