"""Pictures in arrays: the place of their channels, and the range of floats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import SourceError
from krepes_ooc.sources.arrays.array_rows import SCAN_BYTES, Rows
from krepes_ooc.sources.base import Int64, SourceSpec
from krepes_ooc.sources.cache import read_scan_result, write_scan_result

CHANNELS = (1, 3, 4)
# Resampling and rounding leave floats a little outside [0, 1].
TOLERANCE = 1e-3


@dataclass(frozen=True)
class PictureRows:
    """Rows of pictures brought to [sample, y, x, channel].

    Args:
        rows: pictures [sample, channel, y, x], or grey ones [sample, y, x].
    """

    rows: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples, y, x, channel."""
        shape = self.rows.shape
        return (*shape, 1) if len(shape) == 3 else (shape[0], *shape[2:], shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.rows.dtype

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the stored array occupies."""
        return self.rows.resident_bytes

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the pictures [sample, y, x, channel] at these positions."""
        stored = self.rows.take(positions)
        return stored[..., None] if stored.ndim == 3 else np.moveaxis(stored, 1, -1)


def channels_last(spec: SourceSpec, rows: Rows, identity: dict[str, Any]) -> Rows:
    """Rows with channels last, from the layout that the recipe declares.

    Raises:
        SourceError: channels lie elsewhere than declared.
    """
    shape = rows.shape
    # A declared range says that [sample, y, x] are grey pictures.
    if len(shape) == 3 and spec.range:
        return PictureRows(rows)
    where = str(identity.get("name", "source"))
    found = f"{rows.dtype} of shape {tuple(shape)}"
    if spec.layout == "nchw":
        if len(shape) != 4 or shape[1] not in CHANNELS:
            raise SourceError(
                f"{found} has no channels at its second place",
                where=where,
                expected="[sample, channel, y, x] with 1, 3 or 4 channels for layout: nchw",
            )
        return PictureRows(rows)
    # Unsigned pictures: as numbers without a scale they would be read wrongly in silence.
    if _looks_channels_first(rows) and rows.dtype.kind == "u":
        raise SourceError(
            f"{found} has its channels first",
            where=where,
            expected="channels last: [sample, y, x, channel]",
            advice="set source.layout: nchw",
        )
    return rows


def _looks_channels_first(rows: Rows) -> bool:
    shape = rows.shape
    return len(shape) == 4 and shape[1] in CHANNELS and shape[3] not in CHANNELS


def image_advice(rows: Rows, identity: dict[str, Any]) -> str:
    """The keys that make images of an array that looks like images; empty otherwise."""
    found = f"if {identity.get('name')} ({rows.dtype} of shape {tuple(rows.shape)}) holds pictures"
    if _looks_channels_first(rows):
        return f"{found} with channels first, set source.layout: nchw"
    if len(rows.shape) == 3 or (len(rows.shape) == 4 and rows.shape[3] in CHANNELS):
        return f"{found}, set source.range to the values of black and full scale"
    return ""


def check_pixel_range(rows: Rows, where: str, cache: Path, digest: str) -> None:
    """Raise if float pictures without a declared range lie outside [0, 1].

    Args:
        rows: the pictures.
        where: file, for the message.
        cache: where the extremes are kept between runs.
        digest: identity of the rows.

    Raises:
        SourceError: names the file, the range found and the key that says the full scale.
    """
    if rows.dtype.kind != "f":
        return
    record = cache / f"pixels-{digest[:16]}.json"
    extremes = read_scan_result(record).get("extremes")
    if extremes is None:
        extremes = list(_extremes(rows))
        write_scan_result(record, {"extremes": extremes})
    low, high = extremes
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise SourceError(
            f"pictures of {rows.dtype} with values from {low:g} to {high:g}",
            where=where,
            expected="values within [0, 1], or source.range",
            advice="say which values are black and full scale, such as source.range: [0, 255]; "
            "[0, 1] takes values as they are",
        )


def _extremes(rows: Rows) -> tuple[float, float]:
    """Smallest and largest value of all rows, read ``SCAN_BYTES`` at a time."""
    low = np.inf
    high = -np.inf
    row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    step = max(1, SCAN_BYTES // max(1, row_bytes))
    for start in range(0, rows.shape[0], step):
        values = rows.take(np.arange(start, min(start + step, rows.shape[0])))
        low = min(low, float(values.min()))
        high = max(high, float(values.max()))
    return float(low), float(high)
