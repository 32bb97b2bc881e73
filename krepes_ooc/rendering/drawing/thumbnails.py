"""Small PNG pictures without an imaging library (the PNG specification, RFC 2083)."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from krepes_ooc.rendering.data import Array

COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
THUMBNAIL_SIDE = 96


def encode_png(image: Array) -> bytes:
    """PNG bytes of a uint8 image [y, x] or [y, x, channel] with 1, 3 or 4 channels."""
    pixels = image[:, :, None] if image.ndim == 2 else image
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    # Every line starts with its filter type; 0 = none.
    lines = np.pad(pixels.reshape(height, width * channels), ((0, 0), (1, 0)))
    body = zlib.compress(np.ascontiguousarray(lines, dtype=np.uint8).tobytes(), 9)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def shrink(image: Array, side: int = THUMBNAIL_SIDE) -> Array:
    """The image [y, x, ...] averaged over square boxes until neither side exceeds ``side``."""
    factor = -(-max(image.shape[:2]) // side)
    if factor <= 1:
        return image
    height, width = (max(1, size // factor) for size in image.shape[:2])
    rows, columns = min(factor, image.shape[0]), min(factor, image.shape[1])
    boxes = image[: height * rows, : width * columns].reshape(
        height, rows, width, columns, *image.shape[2:]
    )
    return np.asarray(np.rint(boxes.mean(axis=(1, 3))), dtype=np.uint8)


def data_uri(image: Array, side: int = THUMBNAIL_SIDE) -> str:
    """A thumbnail of the image as an inline ``data:`` address."""
    small = base64.b64encode(encode_png(shrink(image, side))).decode("ascii")
    return f"data:image/png;base64,{small}"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
