"""Pixels of picture files: header facts, and decoding to one depth and number of channels."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from krepes_ooc.errors import DataError

Alpha = Literal["drop", "white", "black"]
FULL_SCALES: dict[str, float] = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
# Formats whose several pictures are not several samples: the first is the photo, the rest previews.
_ONE_PICTURE = {"MPO"}
# Formats that store 16 bits in Pillow's 32-bit mode.
_SIXTEEN_BIT_FORMATS = {"PNG", "PPM"}


@dataclass(frozen=True)
class PixelFormat:
    """How pictures are brought to one array.

    Args:
        mode: L, RGB or RGBA.
        depth: type of the decoded values.
        side: side of the square that is cut from the centre and scaled, or None.
        alpha: what lies behind see-through pixels; ``drop`` shows their stored colour.
        page: page of files that hold several, or None.
    """

    mode: str
    depth: str = "uint8"
    side: int | None = None
    alpha: Alpha = "drop"
    page: int | None = None

    @property
    def channels(self) -> int:
        """Channels of a decoded picture."""
        return {"L": 1, "RGB": 3, "RGBA": 4}[self.mode]


@dataclass(frozen=True)
class PictureFacts:
    """Header and extremes of one picture.

    Args:
        width: pixels along x, after the rotation that cameras store.
        height: pixels along y.
        depth: type that holds every value.
        grey: whether it has no colour.
        pages: pictures in the file.
        see_through: whether a pixel has alpha below full.
        reduced: whether its values are deeper than the decoder gives them.
        low: smallest value, where the depth is not uint8; 0 there.
        high: largest value; 0 for uint8.
    """

    width: int
    height: int
    depth: str
    grey: bool
    pages: int = 1
    see_through: bool = False
    reduced: bool = False
    low: float = 0.0
    high: float = 0.0


def inspect_picture(content: bytes, page: int | None) -> PictureFacts:
    """Facts of one picture; every pixel is decoded.

    Raises:
        Exception: of any class, as Pillow's decoders raise them, with the cause in its text.
    """
    with Image.open(io.BytesIO(content)) as file:
        pages = _pages(file)
        if page is not None:
            _go_to_page(file, page)
        depth = _depth(file)
        reduced = _is_reduced(file, content)
        image = ImageOps.exif_transpose(file)
        image.load()
        low, high = 0.0, 0.0
        # Only deeper pictures need a scale: their extremes tell which one.
        if depth != "uint8":
            values = np.asarray(image)
            if not np.isfinite(values).all():
                raise ValueError("a pixel is NaN or infinite")
            low, high = float(values.min()), float(values.max())
        grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
        return PictureFacts(
            image.width,
            image.height,
            depth,
            grey,
            pages,
            _is_see_through(image),
            reduced,
            low,
            high,
        )


def decode(path: Path, form: PixelFormat) -> npt.NDArray[Any]:
    """Pixels [y, x, channel] of one picture in the depth of the format.

    Raises:
        DataError: the file is no image, is damaged, too large to be decoded safely, or deeper than
            the format.
    """
    with _decoding(path), Image.open(path) as file:
        if form.page is not None:
            _go_to_page(file, form.page)
        elif _pages(file) > 1:
            raise ValueError(f"holds {_pages(file)} pages, and source.page chooses none")
        depth = _depth(file)
        # Cameras store the rotation beside the pixels: apply it before anything is measured.
        image = ImageOps.exif_transpose(file)
        pixels = _shallow(image, form) if depth == "uint8" else _deep(image, form.side, depth)
    # Eight bits in a folder of sixteen: 257 x / 65535 is x / 255 exactly.
    if (depth, form.depth) == ("uint8", "uint16"):
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    elif depth != form.depth:
        raise DataError(
            f"a picture of {depth} values",
            where=str(path),
            expected=f"{form.depth} as in the source",
            advice="convert the picture",
        )
    # Grey pictures come without a channel axis, and are repeated among colours.
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return np.repeat(pixels, form.channels // pixels.shape[2], axis=2)


def _shallow(image: Image.Image, form: PixelFormat) -> npt.NDArray[Any]:
    """Pixels of eight bits, converted and scaled by Pillow."""
    if form.alpha != "drop" and _has_alpha(image):
        # What shows through is one colour, chosen by the recipe.
        back = Image.new("RGBA", image.size, form.alpha)
        image = Image.alpha_composite(back, image.convert("RGBA"))
    image = image.convert(form.mode)
    if form.side:
        image = ImageOps.fit(image, (form.side, form.side), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def _deep(image: Image.Image, side: int | None, depth: str) -> npt.NDArray[Any]:
    """Pixels of one channel deeper than eight bits; scaled as floats, which hold each level."""
    values = np.asarray(image)
    if not side:
        return values.astype(depth)
    scaled = ImageOps.fit(
        Image.fromarray(values.astype(np.float32)), (side, side), Image.Resampling.BILINEAR
    )
    values = np.asarray(scaled)
    return values.astype(depth) if depth == "float32" else np.rint(values).astype(depth)


def _pages(file: Image.Image) -> int:
    """Number of pictures in the file that may be samples."""
    return 1 if file.format in _ONE_PICTURE else int(getattr(file, "n_frames", 1))


def _go_to_page(file: Image.Image, page: int) -> None:
    """Go to a page, counted from 0.

    Raises:
        ValueError: the file has no such page.
    """
    if page >= _pages(file):
        raise ValueError(f"has no page {page}: it holds {_pages(file)}")
    file.seek(page)


def _depth(image: Image.Image) -> str:
    """Type that holds every value of the picture."""
    if image.mode.startswith("I;16"):
        return "uint16"
    if image.mode == "I":
        return "uint16" if image.format in _SIXTEEN_BIT_FORMATS else "int32"
    return "float32" if image.mode == "F" else "uint8"


def _is_reduced(image: Image.Image, content: bytes) -> bool:
    """Whether Pillow gives eight bits of deeper values: colours, and grey beside alpha."""
    if _depth(image) != "uint8":
        return False
    if image.format == "PNG":
        # Byte 24 is the bit depth of the header chunk, which comes first.
        return content[24] > 8
    if image.format == "PPM":
        header = re.match(rb"P\d(?:\s+|#[^\n]*\n)+\d+\s+\d+\s+(\d+)", content[:200])
        return header is not None and int(header[1]) > 255
    # Tag 258 of TIFF: bits of each channel.
    bits = getattr(image, "tag_v2", {}).get(258, (8,))
    return int(max(bits)) > 8


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _is_see_through(image: Image.Image) -> bool:
    if not _has_alpha(image) or _depth(image) != "uint8":
        return False
    lowest = image.convert("RGBA").getchannel("A").getextrema()[0]
    return isinstance(lowest, int | float) and lowest < 255


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Guard around Pillow, whose many decoders raise exceptions of any class."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"cannot be decoded: {type(error).__name__}: {error}",
            where=str(path),
            expected="an image",
            advice="repair or remove the file",
        ) from error
