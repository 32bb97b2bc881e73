"""Pixels of picture files: header facts, and decoding to one depth and number of channels."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import DataError

Alpha = Literal["drop", "white", "black"]
FULL_SCALES: dict[str, float] = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
# Formats of one picture a file; of MPO the first is the photo, the rest previews.
_ONE_PICTURE = {"JPEG", "MPO"}
# Pillow keeps the high byte of deep colours; read in the other byte order, that is the low byte.
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
# Values of the orientation by which x and y change places.
_TURNED = {5, 6, 7, 8}
_OVERSHOOTING = {"bicubic", "lanczos"}
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 339
REDUCED = "values deeper than 8 bit in a form that is decoded with 8 bit alone"
# Formats that store 16 bits in Pillow's 32-bit mode.
_SIXTEEN_BIT_FORMATS = {"PNG", "PPM"}


@dataclass(frozen=True)
class PixelFormat:
    """Conversion of pictures to one array.

    Args:
        mode: L, RGB or RGBA.
        depth: type of the decoded values.
        side: side of the square that is cut from the centre and scaled, or None.
        alpha: what lies behind see-through pixels; ``drop`` shows their stored colour.
        page: page of files that hold several, or None.
        interpolation: how the square is scaled; empty: bilinear.
    """

    mode: str
    depth: str = "uint8"
    side: int | None = None
    alpha: Alpha = "drop"
    page: int | None = None
    interpolation: str = ""

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's name of the interpolation."""
        return Image.Resampling[(self.interpolation or "bilinear").upper()]

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
        misread: values that Pillow does not decode as they are stored, in words; else empty.
        low: smallest value, where the depth is not uint8; 0 there.
        high: largest value; 0 for uint8.
        left_out: channels beside grey or colour and alpha, which are not decoded.
    """

    width: int
    height: int
    depth: str
    grey: bool
    pages: int = 1
    see_through: bool = False
    misread: str = ""
    low: float = 0.0
    high: float = 0.0
    left_out: int = 0


# Most pictures of a source have the same facts: one object for all of them.
_shared_facts = functools.lru_cache(4_096)(PictureFacts)


def inspect_picture(content: bytes, page: int | None) -> PictureFacts:
    """Facts of one picture; every pixel is decoded.

    Raises:
        Exception: of any class, as Pillow's decoders raise them, with the cause in its text.
    """
    with _open(content, page) as image:
        pages = _pages(image)
        depth = _depth(image)
        deep_colour = depth == "uint8" and _has_deep_channels(image, content)
        readable = deep_colour and _low_byte_tiles(image) is not None
        image.load()
        # Cameras store how the picture is turned: the pixels themselves need no turning here.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
        width, height = image.size[::-1] if turned else image.size
        low, high = 0.0, 0.0
        # Only deeper pictures need a scale: their extremes tell which one.
        if depth != "uint8" or readable:
            values = _deep_colours(content, page) if readable else np.asarray(image)
            depth = "uint16" if readable else depth
            if not np.isfinite(values).all():
                raise ValueError("a pixel is NaN or infinite")
            low, high = float(values.min()), float(values.max())
        grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
        misread = REDUCED if deep_colour and not readable else _misread_tiff(image, depth)
        clear = _is_see_through(image)
        left_out = max(0, int(_tags(image).get(_SAMPLES, 1)) - len(image.getbands()))
        return _shared_facts(width, height, depth, grey, pages, clear, misread, low, high, left_out)


def decode(path: Path, form: PixelFormat) -> npt.NDArray[Any]:
    """Pixels [y, x, channel] of one picture file; see ``decode_bytes``.

    Raises:
        SourceError: the file cannot be read.
        DataError: as ``decode_bytes``.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, source=True) from error
    return decode_bytes(content, form, str(path))


def decode_bytes(content: bytes, form: PixelFormat, where: str) -> npt.NDArray[Any]:
    """Pixels [y, x, channel] of one picture in the depth of the format.

    Args:
        content: of the picture's file.
        form: channels, depth and size.
        where: name of the picture, for messages.

    Raises:
        DataError: it is no image, is damaged, too large to be decoded safely, or deeper than the
            format.
    """
    with _decoding(where), _open(content, form.page) as file:
        if form.page is None and _pages(file) > 1:
            raise ValueError(f"holds {_pages(file)} pages, and source.page chooses none")
        depth = _depth(file)
        if misread := _misread_tiff(file, depth):
            raise ValueError(misread)
        if depth == "uint8" and _has_deep_channels(file, content):
            depth = "uint16"
            pixels = _opaque(_deep_colours(content, form.page), form.alpha)
            pixels = _fitted(pixels, form, depth)
        elif depth == "uint8":
            pixels = _shallow(ImageOps.exif_transpose(file), form)
        else:
            pixels = _fitted(np.asarray(ImageOps.exif_transpose(file)), form, depth)
    # Eight bits in a folder of sixteen: 257 x / 65535 is x / 255 exactly.
    if (depth, form.depth) == ("uint8", "uint16"):
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    # Grey pictures come without a channel axis, and are repeated among colours.
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    deeper = depth != form.depth and (depth, form.depth) != ("uint8", "uint16")
    if deeper or pixels.shape[2] not in (1, form.channels):
        raise DataError(
            f"a picture of {depth} values and {pixels.shape[2]} channels",
            where=where,
            expected=f"{form.depth} and {form.channels} channels as in the source",
            advice="convert the picture",
        )
    return np.repeat(pixels, form.channels // pixels.shape[2], axis=2)


@contextlib.contextmanager
def _open(content: bytes, page: int | None) -> Iterator[Image.Image]:
    """The picture in a file's bytes, on its page."""
    with Image.open(io.BytesIO(content)) as file:
        if page is not None:
            _go_to_page(file, page)
        yield file


def _shallow(image: Image.Image, form: PixelFormat) -> npt.NDArray[Any]:
    """Pixels of eight bits, converted and scaled by Pillow."""
    if form.alpha != "drop" and _has_alpha(image):
        # What shows through is one colour, chosen by the recipe.
        back = Image.new("RGBA", image.size, form.alpha)
        image = Image.alpha_composite(back, image.convert("RGBA"))
    image = image.convert(form.mode)
    if form.side:
        image = ImageOps.fit(image, (form.side, form.side), form.resampling)
    return np.asarray(image, dtype=np.uint8)


def _fitted(values: npt.NDArray[Any], form: PixelFormat, depth: str) -> npt.NDArray[Any]:
    """Deep pixels [y, x, ...], scaled as floats, which hold each level of 16 bits."""
    if not form.side:
        return values.astype(depth)
    # One channel at a time: Pillow has no deep colours.
    channels = [
        np.asarray(
            ImageOps.fit(
                Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32)),
                (form.side, form.side),
                form.resampling,
            )
        )
        for channel in np.moveaxis(np.atleast_3d(values), 2, 0)
    ]
    scaled = np.stack(channels, axis=-1)
    # Cubic curves reach beyond the levels that they pass through.
    if depth != "float32" and form.interpolation in _OVERSHOOTING:
        scaled = np.clip(scaled, np.iinfo(depth).min, np.iinfo(depth).max)
    return scaled.astype(depth) if depth == "float32" else np.rint(scaled).astype(depth)


def _deep_colours(content: bytes, page: int | None) -> npt.NDArray[np.uint16]:
    """Colours of 16 bits [y, x, channel]: high and low bytes, decoded one after the other.

    Raises:
        ValueError: Pillow gives the high byte alone.
    """
    with _open(content, page) as file:
        high = np.asarray(ImageOps.exif_transpose(file), dtype=np.uint16)
    with _open(content, page) as file:
        tiles = _low_byte_tiles(file)
        if tiles is None:
            raise ValueError(REDUCED)
        file.tile = tiles  # type: ignore[attr-defined]
        low = np.asarray(ImageOps.exif_transpose(file), dtype=np.uint16)
    return high << np.uint16(8) | low


def _low_byte_tiles(file: Image.Image) -> list[Any] | None:
    """Tiles of a file of deep colours whose low bytes are decoded; None where that is unknown."""
    tiles: list[Any] = []
    for codec, extents, offset, arguments in getattr(file, "tile", ()):
        # The raw mode is the argument, or the first one.
        raw_mode = arguments if isinstance(arguments, str) else arguments[0]
        if raw_mode not in _LOW_BYTES:
            return None
        swapped = _LOW_BYTES[raw_mode]
        changed = swapped if isinstance(arguments, str) else (swapped, *arguments[1:])
        tiles.append((codec, extents, offset, changed))
    return tiles or None


def _opaque(values: npt.NDArray[np.uint16], alpha: Alpha) -> npt.NDArray[Any]:
    """Deep colours [y, x, 3]: laid on one colour, or without their alpha."""
    if values.shape[2] == 3 or alpha == "drop":
        return values[..., :3]
    share = values[..., 3:] / 65535.0
    back = 65535.0 if alpha == "white" else 0.0
    return np.rint(values[..., :3] * share + back * (1 - share)).astype(np.uint16)


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


def _has_deep_channels(image: Image.Image, content: bytes) -> bool:
    """Whether Pillow gives eight bits of deeper values: colours, and grey beside alpha."""
    if image.format == "JPEG":
        return False
    if image.format == "PNG":
        # Byte 24 is the bit depth of the header chunk, which comes first.
        return content[24] > 8
    if image.format == "PPM":
        header = re.match(rb"P\d(?:\s+|#[^\n]*\n)+\d+\s+\d+\s+(\d+)", content[:200])
        return header is not None and int(header[1]) > 255
    return int(max(_tags(image).get(_BITS, (8,)))) > 8


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Tags of a TIFF file by number; empty for other formats."""
    return getattr(image, "tag_v2", {})


def _misread_tiff(image: Image.Image, depth: str) -> str:
    """Values of a TIFF file that Pillow decodes as others, in words; else empty."""
    tags = _tags(image)
    signed = 2 in tags.get(_SAMPLE_FORMAT, (1,))
    # Pillow turns grey of 8 bit, and leaves deeper grey as it is.
    if depth != "uint8" and tags.get(_PHOTOMETRIC) == 0:
        return "values whose 0 is white, which are decoded as if it were black"
    if depth == "uint8" and signed:
        return "signed numbers of 8 bit, which are decoded as unsigned ones"
    if depth == "int32" and not signed and tags and np.asarray(image).min() < 0:
        return "unsigned numbers of 32 bit beyond 2,147,483,647, which are decoded as negative ones"
    return ""


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _is_see_through(image: Image.Image) -> bool:
    if not _has_alpha(image) or _depth(image) != "uint8":
        return False
    lowest = image.convert("RGBA").getchannel("A").getextrema()[0]
    return isinstance(lowest, int | float) and lowest < 255


@contextlib.contextmanager
def _decoding(where: str) -> Iterator[None]:
    """Guard around Pillow, whose many decoders raise exceptions of any class."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"cannot be decoded: {type(error).__name__}: {error}",
            where=where,
            expected="an image",
            advice="repair or remove the file",
        ) from error
