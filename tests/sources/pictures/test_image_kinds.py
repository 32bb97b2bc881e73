"""Kinds of pictures that are easily read wrongly: depth, colour, alpha, pages, links, damage."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.base import Source
from krepes_ooc.sources.describe import describe_source
from krepes_ooc.sources.display import display_arrays
from krepes_ooc.sources.new_samples import read_new_samples
from krepes_ooc.views.spec import ViewSpec
from krepes_ooc.views.views import Views
from tests.sources.written_pictures import Array, N, colours, draw, opened, save, spec_of


def opened_array(folder: Path, values: Array, **keys: Any) -> Source:
    np.save(folder / "x.npy", values)
    return opened(folder, kind="arrays", path="x.npy", **keys)


def shown(source: Source) -> Array:
    return source.encode(source.read(np.arange(source.n_samples)))


def first(pixels: Array) -> Array:
    return np.moveaxis(pixels, -1, 1)


def png_of_16_bit_colours(path: Path, pixels: Array) -> None:
    """An RGB PNG of 16 bits, which Pillow reads and cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


# Depth


@pytest.mark.parametrize(("suffix", "order"), [("png", "<"), ("tif", "<"), ("tif", ">")])
def test_16_bit_pictures_keep_every_level(tmp_path: Path, suffix: str, order: str) -> None:
    x = draw().integers(0, 65536, (N, 8, 8)).astype(order + "u2")
    save(tmp_path / "img", x, suffix)
    source = opened(tmp_path)
    assert source.read(np.arange(N)).dtype == np.uint16
    np.testing.assert_allclose(shown(source)[:, 0], x / 65535, atol=1e-7)
    # The stored picture has the scale of the file, not that of the batch.
    stored = display_arrays(source, np.arange(N)).arrays["image"]
    np.testing.assert_array_equal(stored[..., 0], np.round(255 * (x / 65535)))


def test_16_bit_pgm(tmp_path: Path) -> None:
    x = draw().integers(0, 65536, (N, 8, 8)).astype(">u2")
    (tmp_path / "img").mkdir()
    for i, pixels in enumerate(x):
        (tmp_path / "img" / f"{i}.pgm").write_bytes(b"P5 8 8 65535\n" + pixels.tobytes())
    np.testing.assert_allclose(shown(opened(tmp_path))[:, 0], x / 65535, atol=1e-7)


def test_12_bit_in_16_is_scaled_by_the_range_of_the_recipe(tmp_path: Path) -> None:
    x = draw().integers(300, 4001, (N, 8, 8)).astype("u2")
    save(tmp_path / "img", x)
    source = opened(tmp_path)
    np.testing.assert_allclose(shown(source)[:, 0], x / 65535, atol=1e-7)
    assert any("set source.range: [0, 4095]" in line for line in source.warnings)
    np.testing.assert_allclose(shown(opened(tmp_path, range=[0, 4095]))[:, 0], x / 4095, atol=1e-6)
    # Black above 0: what is shifted in by views is black too.
    source = opened(tmp_path, range=[300, 4000])
    np.testing.assert_allclose(shown(source)[:, 0], (x - 300) / 3700, atol=1e-6)
    assert source.fingerprint() != opened(tmp_path).fingerprint()
    narrow = opened(tmp_path, range=[0, 1000])
    assert any("lie beyond source.range" in line for line in narrow.warnings)


def test_16_bit_pictures_are_scaled_to_a_square(tmp_path: Path) -> None:
    x = np.repeat(draw().integers(0, 65536, (N, 1, 1)), 8, 1).repeat(12, 2).astype("u2")
    save(tmp_path / "img", x)
    raw = opened(tmp_path, size=4).read(np.arange(N))
    assert raw.shape == (N, 4, 4, 1)
    np.testing.assert_array_equal(raw[:, 0, 0, 0], x[:, 0, 0])


def test_float_tiff(tmp_path: Path) -> None:
    x = draw().random((N, 8, 8)).astype("f4")
    save(tmp_path / "img", x, "tif")
    np.testing.assert_array_equal(shown(opened(tmp_path))[:, 0], x)
    x = (255 * x).astype("f4")
    save(tmp_path / "img", x, "tif")
    with pytest.raises(SourceError, match=r"\d\d.tif: floats from .* no known full scale.*range"):
        opened(tmp_path)
    np.testing.assert_allclose(shown(opened(tmp_path, range=[0, 255]))[:, 0], x / 255, atol=1e-6)
    x[3, 2, 1] = np.nan
    save(tmp_path / "img", x, "tif")
    with pytest.raises(DataError, match=r"03.tif \(ValueError: a pixel is NaN or infinite"):
        opened(tmp_path)


def test_32_bit_tiff_needs_a_range(tmp_path: Path) -> None:
    x = draw().integers(-1000, 3000, (N, 8, 8)).astype("i4")
    save(tmp_path / "img", x, "tif")
    with pytest.raises(SourceError, match=r"tif: 32-bit whole numbers from -\d+ to .*source.range"):
        opened(tmp_path)
    np.testing.assert_allclose(
        shown(opened(tmp_path, range=[-1000, 3000]))[:, 0], (x + 1000) / 4000, atol=1e-6
    )


def test_depths_are_brought_together_or_refused(tmp_path: Path) -> None:
    deep = draw().integers(0, 65536, (8, 8)).astype("u2")
    flat = colours(1, 1)[0, ..., 0]
    save(tmp_path / "img", [deep, flat])
    source = opened(tmp_path)
    np.testing.assert_allclose(shown(source)[0, 0], deep / 65535, atol=1e-7)
    np.testing.assert_allclose(shown(source)[1, 0], flat / 255, atol=1e-7)
    assert any("1 of 2 pictures (such as 01.png) have 8 bit" in line for line in source.warnings)
    save(tmp_path / "img" / "more", [np.zeros((8, 8), "f4")], "tif")
    with pytest.raises(SourceError, match=r"floats \(more/00.tif\) and 16 bit \(00.png\) and 8"):
        opened(tmp_path)


def tiff_of_16_bit_colours(path: Path, pixels: Array, order: str) -> None:
    """An uncompressed RGB TIFF of 16 bits in either byte order, by hand."""
    height, width = pixels.shape[:2]
    content = pixels.astype(order + "u2").tobytes()
    bits_at = 8 + len(content)
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height)]
    tags += [(279, 4, 1, len(content))]
    entries = b""
    for tag, kind, count, value in tags:
        # Short values stand at the front of their four bytes.
        packed = "HH" if kind == 3 and count == 1 else "I"
        numbers = (value, 0) if packed == "HH" else (value,)
        entries += struct.pack(f"{order}HHI{packed}", tag, kind, count, *numbers)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(
        mark
        + struct.pack(f"{order}I", bits_at + 6)
        + content
        + struct.pack(f"{order}3H", 16, 16, 16)
        + struct.pack(f"{order}H", len(tags))
        + entries
        + struct.pack(f"{order}I", 0)
    )


@pytest.mark.parametrize("kind", ["png", "<", ">"])
def test_colours_of_16_bit_keep_every_level(tmp_path: Path, kind: str) -> None:
    x = draw().integers(0, 4096, (8, 8, 3)).astype("u2")
    (tmp_path / "img").mkdir()
    if kind == "png":
        png_of_16_bit_colours(tmp_path / "img" / "a.png", x)
    else:
        tiff_of_16_bit_colours(tmp_path / "img" / "a.tif", x, kind)
    np.testing.assert_allclose(shown(opened(tmp_path)), first(x[None]) / 65535, atol=1e-7)
    np.testing.assert_allclose(
        shown(opened(tmp_path, range=[0, 4095])), first(x[None]) / 4095, atol=1e-6
    )
    assert opened(tmp_path, size=4).read(np.asarray([0])).shape == (1, 4, 4, 3)


def test_deep_pictures_that_cannot_be_decoded_are_refused(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    x = draw().integers(0, 65536, (8, 8, 3)).astype(">u2")
    (tmp_path / "img" / "a.ppm").write_bytes(b"P6 8 8 65535\n" + x.tobytes())
    with pytest.raises(SourceError, match=r"a.ppm: 1 of 1 pictures hold values deeper than 8 bit"):
        opened(tmp_path)


def test_dark_pictures_are_stored_as_they_are(tmp_path: Path) -> None:
    x = draw().integers(0, 12, (N, 8, 8, 3)).astype("u1")
    save(tmp_path / "img", x)
    assert np.array_equal(display_arrays(opened(tmp_path), np.arange(N)).arrays["image"], x)
    dark = opened_array(tmp_path, x[..., :1])
    assert np.array_equal(display_arrays(dark, np.arange(N)).arrays["image"], x[..., :1])


# Arrays


def test_uint16_arrays_are_scaled_by_their_type_or_the_range(tmp_path: Path) -> None:
    x = draw().integers(0, 4096, (N, 8, 8, 1)).astype("u2")
    np.testing.assert_allclose(shown(opened_array(tmp_path, x)), first(x) / 65535, atol=1e-7)
    np.testing.assert_allclose(
        shown(opened_array(tmp_path, x, range=[0, 4095])), first(x) / 4095, atol=1e-6
    )
    # A declared range says that [sample, y, x] are grey pictures.
    np.testing.assert_allclose(
        shown(opened_array(tmp_path, x[..., 0], range=[0, 4095])), first(x) / 4095, atol=1e-6
    )
    with pytest.raises(SourceError, match=r"x.npy: images of uint32 have no known full scale"):
        opened_array(tmp_path, x.astype("u4"))


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-1.0, 1.0)])
def test_floats_beyond_1_need_a_range(tmp_path: Path, low: float, high: float) -> None:
    x = draw().uniform(low, high, (N, 8, 8, 3)).astype("f4")
    for _ in range(2):
        # The second time from the cache.
        with pytest.raises(SourceError, match=r"x.npy: pictures of float32 with values .*range"):
            opened_array(tmp_path, x)
    source = opened_array(tmp_path, x, range=[low, high])
    np.testing.assert_allclose(shown(source), first((x - low) / (high - low)), atol=1e-6)
    np.testing.assert_array_equal(shown(opened_array(tmp_path, x, range=[0, 1])), first(x))


def test_channels_first(tmp_path: Path) -> None:
    x = colours()
    with pytest.raises(
        SourceError, match=r"x.npy: uint8 of shape \(6, 3, 8, 8\) has its channels first.*nchw"
    ):
        opened_array(tmp_path, first(x))
    source = opened_array(tmp_path, first(x), layout="nchw")
    np.testing.assert_allclose(shown(source), first(x) / 255, atol=1e-7)
    assert np.array_equal(source.read(np.arange(N)), x)
    floats = opened_array(tmp_path, first(x / 255), layout="nchw")
    np.testing.assert_allclose(shown(floats), first(x) / 255, atol=1e-7)
    with pytest.raises(SourceError, match=r"\(6, 8, 8, 3\) has no channels at its second place"):
        opened_array(tmp_path, x, layout="nchw")
    # The same bytes in both layouts are different pictures.
    square = draw().integers(0, 256, (N, 3, 3, 3), dtype=np.uint8)
    last = opened_array(tmp_path, square).fingerprint()
    assert opened_array(tmp_path, square, layout="nchw").fingerprint() != last


def test_ranges_that_make_no_sense(tmp_path: Path) -> None:
    for values in ([255, 0], [0], [0, 1, 2]):
        with pytest.raises(SourceError, match=r"source.range: .* is no range; expected two num"):
            opened_array(tmp_path, colours(), range=values)
    with pytest.raises(SourceError, match=r"range is for images.*\(6, 4\)"):
        opened_array(tmp_path, np.ones((6, 4)), range=[0, 1])


# Mixed


def test_one_picture_with_colour_makes_all_coloured(tmp_path: Path) -> None:
    x = colours()
    x[0] = 99
    save(tmp_path / "img", [x[0, ..., 0], *x[1:]])
    source = opened(tmp_path)
    np.testing.assert_allclose(shown(source), first(x) / 255, atol=1e-7)
    assert source.warnings[0].startswith("1 of 6 pictures (such as 00.png) are grey")
    # A palette, and grey with alpha.
    palette = Image.fromarray(x[1]).quantize(8)
    save(tmp_path / "img", [Image.fromarray(x[0, ..., 0]).convert("LA"), palette])
    want = np.asarray(palette.convert("RGB"))
    assert np.array_equal(opened(tmp_path).read(np.asarray([1]))[0], want)


def test_grey_with_alpha_stays_grey(tmp_path: Path) -> None:
    x = colours(2, 2)
    x[..., 1] = 255
    save(tmp_path / "img", [x[0], x[1, ..., 0]])
    source = opened(tmp_path)
    assert source.input_shape == (1, 8, 8)
    assert source.warnings == ()
    assert np.array_equal(source.read(np.arange(2)), x[..., :1])


@pytest.mark.parametrize("alpha", ["drop", "white", "black"])
def test_alpha(tmp_path: Path, alpha: str) -> None:
    x = colours(channels=4)
    x[..., 3] = 0
    x[:, 2:6, 2:6, 3] = 255
    save(tmp_path / "img", x)
    # A palette with one see-through entry.
    palette = Image.fromarray(np.zeros((8, 8), np.uint8), "P")
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "img" / "99.png", transparency=0)
    source = opened(tmp_path, alpha=alpha)
    raw = source.read(np.arange(N + 1))
    behind = {"white": 255, "black": 0}.get(alpha)
    assert np.array_equal(raw[:N, 2:6, 2:6], x[:, 2:6, 2:6, :3])
    if behind is None:
        assert np.array_equal(raw[:N], x[..., :3])
        assert "7 of 7 pictures (such as 00.png) have see-through pixels" in source.warnings[0]
    else:
        assert (raw[:N, :2] == behind).all()
        assert (raw[N] == behind).all()
        assert source.warnings == ()


# Files


def test_pages_are_chosen_or_refused(tmp_path: Path) -> None:
    x = colours(3, 1)[..., 0]
    pages = [Image.fromarray(page) for page in x]
    (tmp_path / "img").mkdir()
    for name in ("a.tif", "b.gif"):
        pages[0].save(tmp_path / "img" / name, save_all=True, append_images=pages[1:])
    with pytest.raises(SourceError, match=r"2 of 2 files hold several pages, such as a.tif \(3 p"):
        opened(tmp_path)
    for page in range(3):
        raw = opened(tmp_path, page=page).read(np.asarray([0]))
        assert np.array_equal(raw[0, ..., 0], x[page])
    with pytest.raises(DataError, match=r"a.tif \(ValueError: has no page 3: it holds 3\)"):
        opened(tmp_path, page=3)


def test_links_are_followed_once(tmp_path: Path) -> None:
    for name in ("img/cat", "img/eel", "store/dog"):
        save(tmp_path / name, colours(2, seed=len(name)))
    os.symlink("../store/dog", tmp_path / "img" / "dog")
    # Upwards, into each other, and to what is read already.
    os.symlink("..", tmp_path / "img" / "cat" / "up")
    os.symlink("../../img", tmp_path / "store" / "dog" / "back")
    os.symlink("cat", tmp_path / "img" / "again")
    source = opened(tmp_path)
    assert source.n_samples == 6
    assert source.classes == ("cat", "dog", "eel")
    assert source.labels(np.arange(6)).tolist() == [0, 0, 1, 1, 2, 2]
    assert "3 links to folders that are read already: again, cat/up, dog/back" in source.warnings[0]


def test_links_that_lead_nowhere_are_damaged_files(tmp_path: Path) -> None:
    save(tmp_path / "img", colours(2))
    os.symlink("nowhere.png", tmp_path / "img" / "x.png")
    os.symlink("y.png", tmp_path / "img" / "y.png")
    with pytest.raises(DataError, match=r"2 of 4 .*x.png \(a link that leads nowhere\); y.png"):
        opened(tmp_path)
    assert opened(tmp_path, skip_damaged=True).n_samples == 2


def test_hidden_names_are_no_samples_and_others_are_counted(tmp_path: Path) -> None:
    for k, name in enumerate(("cat", "dog", ".ipynb_checkpoints", "__MACOSX/cat")):
        save(tmp_path / "img" / name, colours(2, seed=k))
    (tmp_path / "img" / "cat" / "._00.png").write_bytes(b"resource fork")
    (tmp_path / "img" / "notes.txt").write_text("")
    for name in ("extra.jfif", "extra", "more"):
        Image.fromarray(colours(1)[0]).save(tmp_path / "img" / name, "JPEG")
    source = opened(tmp_path)
    assert source.names(np.arange(5))[-1] == "extra.jfif"
    assert source.classes == ("cat", "dog")
    assert source.warnings == ("3 other files left out (no suffix 2, .txt 1)",)
    lines = describe_source(source)
    assert "2 classes: cat 2, dog 2; 1 without a label" in lines
    assert "5 pictures, colour, uint8, 8 x 8" in lines


def test_the_central_square_is_said_to_be_cut(tmp_path: Path) -> None:
    x = draw().integers(0, 256, (N, 8, 24, 3), dtype=np.uint8)
    save(tmp_path / "img", x)
    source = opened(tmp_path, size=8)
    assert np.array_equal(source.read(np.arange(N)), x[:, :, 8:16])
    assert "6 of 6 pictures (such as 00.png) lose more than half" in source.warnings[0]


def test_sizes_are_those_after_the_rotation_of_the_camera(tmp_path: Path) -> None:
    x = draw().integers(0, 256, (8, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "img").mkdir()
    Image.fromarray(x).save(tmp_path / "img" / "a.png", exif=exif)
    Image.fromarray(np.rot90(x, -1)).save(tmp_path / "img" / "b.png")
    raw = opened(tmp_path).read(np.arange(2))
    assert np.array_equal(raw[0], raw[1])


# New samples


def test_new_pictures_are_read_as_those_of_the_folder(tmp_path: Path) -> None:
    x = draw().integers(300, 4001, (N, 8, 8)).astype("u2")
    save(tmp_path / "img", x)
    keys = {"range": [300, 4000]}
    source = opened(tmp_path, **keys)
    new = read_new_samples(source, spec_of(**keys), tmp_path / "img" / "02.png")
    assert np.array_equal(new.raw, source.read(np.asarray([2])))
    # An array in the units of the file.
    np.save(tmp_path / "new.npy", x[2])
    new = read_new_samples(source, spec_of(**keys), tmp_path / "new.npy")
    assert np.array_equal(new.raw, source.read(np.asarray([2])))


def test_a_new_picture_of_another_depth_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "img", colours(channels=1)[..., 0])
    save(tmp_path / "new", [np.full((8, 8), 4000, "u2")])
    source = opened(tmp_path)
    with pytest.raises(DataError, match=r"00.png: a picture of uint16 values and .*expected uint8"):
        read_new_samples(source, spec_of(), tmp_path / "new" / "00.png")


def test_a_new_array_with_channels_first(tmp_path: Path) -> None:
    x = colours()
    keys = {"kind": "arrays", "path": "x.npy", "layout": "nchw"}
    source = opened_array(tmp_path, first(x), layout="nchw")
    np.save(tmp_path / "new.npy", first(x)[1])
    new = read_new_samples(source, spec_of(**keys), tmp_path / "new.npy")
    assert np.array_equal(new.raw, x[1:2])


def test_arrays_that_may_be_pictures_are_refused_with_the_key(tmp_path: Path) -> None:
    floats = opened_array(tmp_path, first(colours() / 255))
    with pytest.raises(SourceError, match=r"\(6, 3, 8, 8\)\) holds pictures .*layout: nchw"):
        Views(ViewSpec(), floats, 0, tmp_path)
    numbers = opened_array(tmp_path, colours().astype("i2"))
    with pytest.raises(SourceError, match=r"x.npy \(int16 of shape .* set source.range"):
        Views(ViewSpec(), numbers, 0, tmp_path)


# Repeated pictures


@pytest.mark.parametrize("classes", [True, False])
def test_pictures_that_repeat_another_are_counted(tmp_path: Path, classes: bool) -> None:
    pixels = colours()
    for group in ("a", "b"):
        save(tmp_path / "img" / (group * classes), pixels[:4] if group == "a" else pixels[:2])
    save(tmp_path / "img" / ("c" * classes), [pixels[0], pixels[5]], "tif")
    if not classes:
        save(tmp_path / "img", [pixels[0]], "bmp")
        save(tmp_path / "img", [pixels[0], pixels[0]], "ppm")
    lines = [line for line in describe_source(opened(tmp_path)) if "byte for byte" in line]
    # The same pixels in another format are other bytes.
    assert lines == (
        [
            "2 repeat another byte for byte (such as a/00.png = b/00.png), 2 of them under "
            "another label"
        ]
        if classes
        else ["1 repeat another byte for byte (such as 00.ppm = 01.ppm)"]
    )
    save(tmp_path / "other", pixels)
    assert not any(
        "byte for byte" in line for line in describe_source(opened(tmp_path, path="other"))
    )
