"""From values to places on paper: linear and logarithmic scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_DECADE_TICKS = 6


@dataclass(frozen=True)
class Scale:
    """A map of [low, high] (exponents of ten if ``log``) onto [start, stop] in drawing units."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value; NaN where it cannot be drawn."""
        value = float(value)
        if self.log:
            value = math.log10(value) if value > 0 else math.nan
        if not math.isfinite(value):
            return math.nan
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the range: powers of ten, or steps of 1, 2 or 5."""
        if self.log and self.high - self.low < 2:
            return self._fine_ticks()
        if self.log:
            first, last = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
            every = max(1, -(-(last - first + 1) // MAX_DECADE_TICKS))
            return [10.0**power for power in range(first, last + 1, every)]
        return _even_ticks(self.low, self.high)

    def _fine_ticks(self) -> list[float]:
        """Ticks over less than two decades: 1, 2, 5; even steps if those are too few."""
        low, high = 10.0**self.low, 10.0**self.high
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        inside = [mark for mark in marks if low <= mark <= high]
        return inside if len(inside) >= 3 else [t for t in _even_ticks(low, high) if t > 0]


def fit_scale(
    values: Sequence[Any], log: bool, start: float, stop: float, margin: float = 0.04
) -> Scale | None:
    """The scale that shows all values; None if there is none to show.

    Args:
        values: arrays or lists; what is not finite (or not above 0 if ``log``) is left out.
        log: whether the scale is logarithmic.
        start: where ``low`` is drawn.
        stop: where ``high`` is drawn.
        margin: free share at both ends.
    """
    flat = np.concatenate([np.asarray(v, dtype=np.float64).ravel() for v in values])
    flat = flat[np.isfinite(flat) & ((flat > 0) | (not log))]
    if not flat.size:
        return None
    flat = np.log10(flat) if log else flat
    low, high = float(flat.min()), float(flat.max())
    # A flat line still needs a range to stand in the middle of.
    pad = (high - low) * margin or (0.5 if log else abs(high) * 0.1 or 1.0)
    return Scale(low - pad, high + pad, start, stop, log)


def _even_ticks(low: float, high: float) -> list[float]:
    step = _round_step((high - low) / 4)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
