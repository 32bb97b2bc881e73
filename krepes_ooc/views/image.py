"""Views of images: random crop, mirror, shift, brightness and contrast, noise; NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.sources.base import Float32, Int64, Source

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
    def fitted(cls, spec: ImageSettings, source: Source) -> ImageViews:
        """The declared views for images of this source."""
        full = float(source.scaling.full) if hasattr(source, "scaling") else 1.0
        side = min(source.input_shape[-2:])
        shift = max(1, side // 8) if isinstance(spec.shift, str) else spec.shift
        return cls(spec.noise * full, min(shift, side), spec.flip, spec.crop, spec.jitter)

    def __call__(self, raw: npt.NDArray[Any], sample_id: Int64, view: int, seed: int) -> Float32:
        """One view of each image, keyed by its sample id."""
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
            pixel = np.arange(images[0].size).reshape(1, *images.shape[1:])
            drawn = counter_rng.normal(seed, view, _NOISE, sample_id[:, None, None, None], pixel)
            images = images + (self.noise * drawn).astype(np.float32)
        return images

    def describe(self) -> dict[str, Any]:
        """The numbers that ``auto`` stands for, as JSON."""
        return {"pixel_noise": self.noise, "pixel_shift": self.shift}

    def _cropped(self, images: Float32, sample_id: Int64, view: int, seed: int) -> Float32:
        """Crop a random rectangle of the image's shape and scale it back, bilinear."""
        height, width = images.shape[1:3]
        drawn = counter_rng.uniform(seed, view, _CROP, sample_id[:, None], np.arange(3))
        side = np.sqrt(self.crop + (1.0 - self.crop) * drawn[:, 0])
        rows = _places(drawn[:, 1] * (1.0 - side), side, height)
        columns = _places(drawn[:, 2] * (1.0 - side), side, width)
        return _bilinear(images, rows, columns)

    def _shifted(self, images: Float32, sample_id: Int64, view: int, seed: int) -> Float32:
        count, height, width = images.shape[:3]
        steps = counter_rng.integers(
            seed, 2 * self.shift + 1, view, _SHIFT, sample_id[:, None], np.arange(2)
        )
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
        bright, contrast = factor[:, 0], factor[:, 1]
        flat = images.reshape(len(images), -1)
        mean = flat.mean(axis=1, dtype=np.float64).astype(np.float32)[:, None]
        changed = bright[:, None] * (mean + contrast[:, None] * (flat - mean))
        return np.asarray(changed.reshape(images.shape))


def _places(
    start: npt.NDArray[np.float64], side: npt.NDArray[np.float64], size: int
) -> npt.NDArray[np.float64]:
    """Where output pixels lie in the input, in pixel units [sample, pixel]; centres half-way."""
    centres = (np.arange(size) + 0.5) / size
    return np.asarray((start[:, None] + side[:, None] * centres) * size - 0.5)


def _bilinear(
    images: Float32, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
) -> Float32:
    """Sample images at separable places; outside the image its border is repeated."""
    sample = np.arange(len(images))[:, None, None]
    top, down = _neighbours(rows, images.shape[1])
    left, right = _neighbours(columns, images.shape[2])
    across = (columns - np.floor(columns)).astype(np.float32)[:, None, :, None]
    below = (rows - np.floor(rows)).astype(np.float32)[:, :, None, None]

    def at(row: Int64, column: Int64) -> Float32:
        return images[sample, row[:, :, None], column[:, None, :]]

    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(down, left) * (1 - across) + at(down, right) * across
    return np.asarray(upper * (1 - below) + lower * below, dtype=np.float32)


def _neighbours(places: npt.NDArray[np.float64], size: int) -> tuple[Int64, Int64]:
    first = np.floor(places).astype(np.int64)
    return np.clip(first, 0, size - 1), np.clip(first + 1, 0, size - 1)
