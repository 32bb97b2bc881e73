import base64
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from krepes_ooc.rendering.drawing.thumbnails import SIGNATURE, data_uri, encode_png, shrink


def decode(blob: bytes) -> np.ndarray:
    """A naive reader of unfiltered 8-bit PNG files."""
    assert blob.startswith(SIGNATURE)
    place, chunks = len(SIGNATURE), []
    while place < len(blob):
        (length,) = struct.unpack(">I", blob[place : place + 4])
        kind, body = blob[place + 4 : place + 8], blob[place + 8 : place + 8 + length]
        (crc,) = struct.unpack(">I", blob[place + 8 + length : place + 12 + length])
        assert crc == zlib.crc32(kind + body)
        chunks.append((kind, body))
        place += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[0][1])
    channels = {0: 1, 2: 3, 6: 4}[colour]
    assert depth == 8
    lines = np.frombuffer(zlib.decompress(chunks[1][1]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, channels)


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 4]))


@given(shapes.flatmap(lambda shape: arrays(np.uint8, shape)))
def test_pixels_survive(image):
    assert (decode(encode_png(image)) == image).all()


def test_grey_image_without_channel_axis_and_strided():
    image = np.arange(60, dtype=np.uint8).reshape(6, 10)[::2, ::3]
    assert (decode(encode_png(image))[:, :, 0] == image).all()


@pytest.mark.parametrize("shape", [(200, 100, 3), (97, 3), (96, 96), (1, 500, 4), (300, 300)])
def test_shrink_averages_boxes(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    small = shrink(image)
    assert max(small.shape[:2]) <= 96
    factor = -(-max(shape[:2]) // 96)
    if factor == 1:
        assert small is image
        return
    box = image[: min(factor, shape[0]), : min(factor, shape[1])].astype(float)
    assert (np.abs(small[0, 0] - box.mean(axis=(0, 1))) <= 0.5).all()


def test_data_uri():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    head, _, body = data_uri(image).partition(",")
    assert head == "data:image/png;base64"
    assert (decode(base64.b64decode(body))[:, :, 0] == image).all()
