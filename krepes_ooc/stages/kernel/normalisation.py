"""Centring and normalisation of raw kernel values.

    kc(x, y) = k(x, y) - c_x - c_y + c0,    c_x = <phi_x, centre>,  c0 = <centre, centre>
    k^(x, y) = kc(x, y) / sqrt(kc(x, x) kc(y, y))                                (ccos)

where centre is the mean of phi over all rows. Centring removes the one direction that all rows of
a trained network share; without it every sample has the same few influential landmarks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from array_api_compat import array_namespace, device

from krepes_ooc.errors import DataError, StageFailed, UsageError

Array = Any  # of any namespace of the array API; None where a mode needs no such array
Mode = Literal["ccos", "cosine", "mean-diagonal", "none"]

# Below this share of k(x, x) + c0 a centred self kernel is rounding noise of float32 products.
COLLAPSED = 2.0**-20


@dataclass(frozen=True)
class Normalisation:
    """Normalisation of kernel values, the same for landmarks, store, audit and new samples.

    Args:
        mode: ``ccos`` (centred, then cosine), ``cosine``, ``mean-diagonal`` or ``none``.
        centre_self: c0 = <centre, centre>, for ``ccos``.
        scale: mean of k(x, x) over all rows, for ``mean-diagonal``.

    Raises:
        UsageError: no such mode.
        DataError: ``centre_self`` is negative or not finite.
        StageFailed: ``scale`` is not above 0, so every feature row is zero.
    """

    mode: Mode = "ccos"
    centre_self: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UsageError(
                f"no normalisation {self.mode!r}",
                where="stages.kernel.normalise",
                expected="one of " + ", ".join(get_args(Mode)),
            )
        # Both numbers come from stores, and a NaN would spread to every kernel value.
        if not (math.isfinite(self.centre_self) and self.centre_self >= 0):
            raise DataError(
                f"centre_self is {self.centre_self}",
                where="landmarks",
                expected="a finite number of at least 0",
                advice="look for NaN or infinity in the features",
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise StageFailed(
                f"the mean self kernel is {self.scale}",
                where="features",
                expected="a finite number above 0",
                advice="check that the chosen outputs depend on the chosen parameters",
            )


def normalise(
    k: Array,
    c_x: Array,
    c_y: Array,
    s_x: Array,
    s_y: Array,
    normalisation: Normalisation,
) -> Array:
    """Normalised kernel k^ [x, y] in the type of k.

    A row or column whose (centred) self kernel is rounding noise gives 0, never NaN: that sample is
    the centre itself, and its direction from the centre is unknown. ccos and cosine lie in [-1, 1].

    Args:
        k: raw kernel [x, y].
        c_x: <phi_x, centre> [x], float64; unused (None) without centring.
        c_y: <phi_y, centre> [y], likewise.
        s_x: k(x, x) [x], float64; unused (None) unless ccos or cosine.
        s_y: k(y, y) [y], likewise.
        normalisation: mode, c0 and scale.
    """
    xp = array_namespace(k)
    if normalisation.mode == "none":
        return k
    if normalisation.mode == "mean-diagonal":
        return k / normalisation.scale
    # kc(x, y), for ccos alone
    if normalisation.mode == "ccos":
        k = _centred(k, c_x, c_y, normalisation.centre_self)
    # kc(x, y) / sqrt(kc(x, x) kc(y, y)); the roots are taken in float64
    root_x = xp.astype(_inverse_root(c_x, s_x, normalisation), k.dtype)
    root_y = xp.astype(_inverse_root(c_y, s_y, normalisation), k.dtype)
    # float32 products can exceed the bound of Cauchy and Schwarz by rounding
    return xp.clip(k * root_x[:, None] * root_y[None, :], -1.0, 1.0)


def normalised_self(c_x: Array, s_x: Array, normalisation: Normalisation) -> Array:
    """k^(x, x) [x]: 1 for ccos and cosine (0 for a collapsed row), else the scaled self kernel."""
    xp = array_namespace(s_x)
    if normalisation.mode == "none":
        return s_x
    if normalisation.mode == "mean-diagonal":
        return s_x / normalisation.scale
    return xp.where(is_collapsed(c_x, s_x, normalisation), xp.zeros_like(s_x), xp.ones_like(s_x))


def centred_self(c_x: Array, s_x: Array, normalisation: Normalisation) -> Array:
    """kc(x, x) = k(x, x) - 2 c_x + c0 [x] for ccos, k(x, x) for the other modes."""
    if normalisation.mode != "ccos":
        return s_x
    return s_x - 2.0 * c_x + normalisation.centre_self


def is_collapsed(c_x: Array, s_x: Array, normalisation: Normalisation) -> Array:
    """Whether a row [x] is, within rounding, the centre itself (or zero for cosine)."""
    floor = s_x + normalisation.centre_self if normalisation.mode == "ccos" else s_x
    return ~(centred_self(c_x, s_x, normalisation) > COLLAPSED * floor)


def _inverse_root(c_x: Array, s_x: Array, normalisation: Normalisation) -> Array:
    """1 / sqrt(kc(x, x)) [x] in float64, 0 for a collapsed row."""
    xp = array_namespace(s_x)
    kc_xx = centred_self(c_x, s_x, normalisation)
    collapsed = is_collapsed(c_x, s_x, normalisation)
    # 1 in place of a collapsed value, so that no branch divides by zero
    root = xp.sqrt(xp.where(collapsed, xp.ones_like(kc_xx), kc_xx))
    return xp.where(collapsed, xp.zeros_like(kc_xx), 1.0 / root)


def _centred(k: Array, c_x: Array, c_y: Array, c0: float) -> Array:
    """Kc [x, y] without cancellation: k, c_x and c_y are all close to c0, subtracted first."""
    xp = array_namespace(k)
    rounded = xp.astype(xp.full((1,), c0, dtype=xp.float64, device=device(k)), k.dtype)
    row = xp.astype(c_x - c0, k.dtype)
    column = xp.astype(c_y - xp.astype(rounded, xp.float64), k.dtype)
    return ((k - rounded) - row[:, None]) - column[None, :]
