"""Pictures as a test draws, saves and opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from krepes_ooc.core.settings import read_settings
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source

N = 6
Array = npt.NDArray[Any]


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def colours(count: int = N, channels: int = 3, seed: int = 0) -> Array:
    return draw(seed).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)


def save(folder: Path, images: Any, suffix: str = "png", **options: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(folder / f"{i:02}.{suffix}", **options)


def spec_of(**keys: Any) -> SourceSpec:
    return read_settings(SourceSpec, {"kind": "images", "path": "img", **keys}, "source")


def opened(folder: Path, **keys: Any) -> Source:
    return open_source(spec_of(**keys), folder, folder / "cache")
