"""Thumbnails of images as inline PNG."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from krepes_ooc.rendering.data import Array

THUMBNAIL_SIDE = 96


def to_picture(image: Array) -> Image.Image:
    """A Pillow image of uint8 pixels [y, x] or [y, x, channel] with 1, 3 or 4 channels."""
    is_grey = image.ndim == 3 and image.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if is_grey else image))


def shrink(image: Array, side: int = THUMBNAIL_SIDE) -> Array:
    """The image [y, x, ...] averaged over boxes until neither side exceeds ``side``."""
    picture = to_picture(image)
    picture.thumbnail((side, side), Image.Resampling.BOX)
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], *image.shape[2:])


def encode_png(image: Array) -> bytes:
    """PNG bytes of a uint8 image [y, x] or [y, x, channel] with 1, 3 or 4 channels."""
    out = io.BytesIO()
    to_picture(image).save(out, "PNG", optimize=True)
    return out.getvalue()


def data_uri(image: Array, side: int = THUMBNAIL_SIDE) -> str:
    """A thumbnail of the image as an inline ``data:`` address."""
    png = base64.b64encode(encode_png(shrink(image, side))).decode("ascii")
    return f"data:image/png;base64,{png}"
