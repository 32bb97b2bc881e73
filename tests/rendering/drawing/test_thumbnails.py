import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from krepes_ooc.rendering.drawing.thumbnails import data_uri, encode_png, shrink


def decode(blob: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(blob)) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 4]))


@given(shapes.flatmap(lambda shape: arrays(np.uint8, shape)))
def test_pixels_survive(image):
    assert (decode(encode_png(image)) == image).all()


def test_grey_image_without_channel_axis_and_strided():
    image = np.arange(60, dtype=np.uint8).reshape(6, 10)[::2, ::3]
    assert (decode(encode_png(image))[:, :, 0] == image).all()


@pytest.mark.parametrize(
    ("shape", "small"),
    [
        ((200, 100, 3), (96, 48, 3)),
        ((97, 3), (96, 3)),
        ((96, 96), (96, 96)),
        ((1, 500, 4), (1, 96, 4)),
        ((300, 300, 1), (96, 96, 1)),
    ],
)
def test_shrink_averages_and_keeps_proportions(shape, small):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image[..., 3:] = 255
    found = shrink(image)
    assert found.shape == small
    assert abs(found.mean() - image.mean()) < 3
    if shape == small:
        assert (found == image).all()


def test_shrink_of_a_whole_number_of_boxes_is_their_mean():
    image = np.random.default_rng(1).integers(0, 256, (192, 96), dtype=np.uint8)
    boxes = image.reshape(48, 4, 24, 4).mean(axis=(1, 3))
    assert (np.abs(shrink(image, 48) - boxes) <= 1.5).all()  # rounded after each of two passes


def test_data_uri():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    head, _, body = data_uri(image).partition(",")
    assert head == "data:image/png;base64"
    assert (decode(base64.b64decode(body))[:, :, 0] == image).all()
    assert data_uri(image) == data_uri(image.copy())
