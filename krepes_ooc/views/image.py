"""Views of images: random crop, mirror, shift, brightness and contrast, noise; NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.sources.base import Float32, Int64, Source

# Streams of the counter-based generator.
_CROP, _FLIP, _SHIFT, _JITTER, _NOISE = 1, 2, 3, 4, 5


class ImageSettings(Protocol):
    """The keys of ``views`` that image views read."""

    @property
    def noise(self) -> float:
        """Standard deviation of the noise, in full scales."""

    @property
    def shift(self) -> int | str:
        """Largest shift in pixels, or ``auto``."""

    @property
    def flip(self) -> bool:
        """Whether half of the views are mirrored."""

    @property
    def crop(self) -> float:
        """Smallest area of a crop, 1 for none."""

    @property
    def jitter(self) -> float:
        """Largest relative change of brightness and contrast."""


@dataclass(frozen=True)
class ImageViews:
    """Views of raw images [sample, y, x, channel] as float32 in raw units.

    Args:
        noise: standard deviation of the noise, in raw units; values are not clipped.
        shift: largest shift in pixels along each axis; what moves in is 0.
        flip: whether half of the views are mirrored left to right.
        crop: smallest area of a square-law crop, 1 for none.
        jitter: largest relative change of brightness and of contrast.
    """

    noise: float
    shift: int
    flip: bool
    crop: float
    jitter: float

    @classmethod
    def from_settings(cls, spec: ImageSettings, source: Source) -> ImageViews:
        """The declared views, in the units and the size of this source's images."""
        full_scale = float(source.scaling.full) if hasattr(source, "scaling") else 1.0
        side = min(source.input_shape[-2:])
        # An eighth of the shorter side, at least one pixel.
        shift = max(1, side // 8) if isinstance(spec.shift, str) else spec.shift
        return cls(spec.noise * full_scale, min(shift, side), spec.flip, spec.crop, spec.jitter)

    def __call__(self, raw: npt.NDArray[Any], sample_id: Int64, view: int, seed: int) -> Float32:
        """One view of each image, keyed by its sample id."""
        # The order of the steps is part of the stored bits.
        images = raw.astype(np.float32)
        if self.crop < 1.0:
            images = self._cropped(images, sample_id, view, seed)
        if self.flip:
            mirrored = counter_rng.uniform(seed, view, _FLIP, sample_id) < 0.5
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        if self.shift:
            images = self._shifted(images, sample_id, view, seed)
        if self.jitter:
            images = self._jittered(images, sample_id, view, seed)
        if self.noise:
            # Noise is keyed by sample and pixel, so that it does not depend on the batch.
            pixel = np.arange(images[0].size).reshape(1, *images.shape[1:])
            drawn = counter_rng.normal(seed, view, _NOISE, sample_id[:, None, None, None], pixel)
            images = images + (self.noise * drawn).astype(np.float32)
        return images

    def describe(self) -> dict[str, Any]:
        """Resolved values of ``auto``, as JSON."""
        return {"pixel_noise": self.noise, "pixel_shift": self.shift}

    def _cropped(self, images: Float32, sample_id: Int64, view: int, seed: int) -> Float32:
        """Random crops of the image's aspect ratio, scaled back by bilinear interpolation."""
        height, width = images.shape[1:3]
        drawn = counter_rng.uniform(seed, view, _CROP, sample_id[:, None], np.arange(3))
        # The area is uniform on [crop, 1]; the side is its root.
        side = np.sqrt(self.crop + (1.0 - self.crop) * drawn[:, 0])
        # The corner is uniform among those that keep the crop inside the image.
        rows = _source_coordinates(drawn[:, 1] * (1.0 - side), side, height)
        columns = _source_coordinates(drawn[:, 2] * (1.0 - side), side, width)
        return _bilinear(images, rows, columns)

    def _shifted(self, images: Float32, sample_id: Int64, view: int, seed: int) -> Float32:
        count, height, width = images.shape[:3]
        steps = counter_rng.integers(
            seed, 2 * self.shift + 1, view, _SHIFT, sample_id[:, None], np.arange(2)
        )
        # Pad by the largest shift, then cut a window of the original size at a drawn offset.
        padding = [(0, 0), (self.shift, self.shift), (self.shift, self.shift), (0, 0)]
        padded = np.pad(images, padding)
        rows = steps[:, :1] + np.arange(height)
        columns = steps[:, 1:] + np.arange(width)
        shifted: Float32 = padded[
            np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        return shifted

    def _jittered(self, images: Float32, sample_id: Int64, view: int, seed: int) -> Float32:
        drawn = counter_rng.uniform(seed, view, _JITTER, sample_id[:, None], np.arange(2))
        factor = (1.0 + self.jitter * (2.0 * drawn - 1.0)).astype(np.float32)
        brightness = factor[:, 0]
        contrast = factor[:, 1]
        flat = images.reshape(len(images), -1)
        # Contrast scales around the mean of the image, brightness scales all of it.
        mean = flat.mean(axis=1, dtype=np.float64).astype(np.float32)[:, None]
        changed = brightness[:, None] * (mean + contrast[:, None] * (flat - mean))
        return np.asarray(changed.reshape(images.shape))


def _source_coordinates(
    start: npt.NDArray[np.float64], side: npt.NDArray[np.float64], size: int
) -> npt.NDArray[np.float64]:
    """Input coordinates of the output pixels, in pixels [sample, pixel]; centres at halves."""
    centres = (np.arange(size) + 0.5) / size
    return np.asarray((start[:, None] + side[:, None] * centres) * size - 0.5)


def _bilinear(
    images: Float32, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
) -> Float32:
    """Bilinear interpolation at separable coordinates; the border is repeated outside."""
    sample = np.arange(len(images))[:, None, None]
    top, down = _neighbours(rows, images.shape[1])
    left, right = _neighbours(columns, images.shape[2])
    # Fractional parts are the weights of the right and the lower neighbours.
    across = (columns - np.floor(columns)).astype(np.float32)[:, None, :, None]
    below = (rows - np.floor(rows)).astype(np.float32)[:, :, None, None]

    def pixels(row: Int64, column: Int64) -> Float32:
        return images[sample, row[:, :, None], column[:, None, :]]

    upper = pixels(top, left) * (1 - across) + pixels(top, right) * across
    lower = pixels(down, left) * (1 - across) + pixels(down, right) * across
    return np.asarray(upper * (1 - below) + lower * below, dtype=np.float32)


def _neighbours(coordinates: npt.NDArray[np.float64], size: int) -> tuple[Int64, Int64]:
    first = np.floor(coordinates).astype(np.int64)
    return np.clip(first, 0, size - 1), np.clip(first + 1, 0, size - 1)
