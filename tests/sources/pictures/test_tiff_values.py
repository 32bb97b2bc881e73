"""TIFF files whose values Pillow decodes as others: refused by name, never turned or wrapped."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.new_samples import read_new_samples
from krepes_ooc.sources.open import open_source

N = 4
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
_CODES = {3: ("H", 2), 4: ("I", 4)}


def tiff(
    path: Path, values: npt.NDArray[Any], *, photometric: int, form: int, extra: int = 0
) -> None:
    """A TIFF file of one strip, as its tags say and not as Pillow would write it.

    Args:
        path: the file.
        values: [y, x] or [y, x, channel].
        photometric: what 0 means, or RGB.
        form: unsigned, signed or floating-point numbers.
        extra: channels beside those of the photometric interpretation, of no stated meaning.
    """
    order = ">" if values.dtype.byteorder == ">" else "<"
    height, width = values.shape[:2]
    samples = values.size // (height * width)
    short: list[tuple[int, list[int]]] = [
        (256, [width]),
        (257, [height]),
        (258, [8 * values.dtype.itemsize] * samples),
        (259, [1]),
        (262, [photometric]),
        (273, [0]),
        (277, [samples]),
        (278, [height]),
        (279, [values.nbytes]),
        (284, [1]),
        *([(338, [0] * extra)] if extra else []),
        (339, [form] * samples),
    ]
    kind = {tag: 4 if tag in (273, 279) else 3 for tag, _ in short}
    behind = 8 + 2 + 12 * len(short) + 4
    # Values of more than four bytes lie behind the directory, and the pixels behind these.
    sizes = {tag: len(given) * _CODES[kind[tag]][1] for tag, given in short}
    pixels = behind + sum(size for size in sizes.values() if size > 4)
    entries, long = b"", b""
    for tag, given in short:
        given = [pixels] if tag == 273 else given
        raw = struct.pack(f"{order}{len(given)}{_CODES[kind[tag]][0]}", *given)
        entries += struct.pack(f"{order}HHI", tag, kind[tag], len(given))
        if len(raw) > 4:
            entries += struct.pack(f"{order}I", behind + len(long))
            long += raw
        else:
            entries += raw.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(short))
    path.write_bytes(head + entries + struct.pack(f"{order}I", 0) + long + values.tobytes())


def folder_of(folder: Path, values: npt.NDArray[Any], **tags: Any) -> Path:
    (folder / "img").mkdir()
    for index, one in enumerate(values):
        tiff(folder / "img" / f"{index}.tif", one, **tags)
    return folder


def opened(folder: Path, **keys: Any) -> Source:
    spec = read_settings(SourceSpec, {"kind": "images", "path": "img", **keys}, "source")
    return open_source(spec, folder, folder / "cache")


def shown(source: Source) -> npt.NDArray[Any]:
    return source.encode(source.read(np.arange(source.n_samples)))


def draw(dtype: str, *channels: int) -> npt.NDArray[Any]:
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return random.random((N, 8, 8, *channels)).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(
        limits.min, limits.max, (N, 8, 8, *channels), endpoint=True, dtype=np.dtype(dtype).type
    ).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "photometric", "form", "words"),
    [
        ("<u2", WHITE_IS_ZERO, UNSIGNED, "values whose 0 is white"),
        ("<f4", WHITE_IS_ZERO, FLOAT, "values whose 0 is white"),
        ("i1", BLACK_IS_ZERO, SIGNED, "signed numbers of 8 bit"),
        ("<u4", BLACK_IS_ZERO, UNSIGNED, "unsigned numbers of 32 bit beyond 2,147,483,647"),
    ],
)
@pytest.mark.parametrize("keys", [{}, {"range": [0, 1]}], ids=["no range", "range"])
def test_values_that_are_decoded_as_others_are_refused(
    tmp_path: Path, dtype: str, photometric: int, form: int, words: str, keys: dict[str, Any]
) -> None:
    folder_of(tmp_path, draw(dtype), photometric=photometric, form=form)
    with pytest.raises(SourceError, match=rf"0\.tif: 4 of 4 pictures hold {words}") as caught:
        opened(tmp_path, **keys)
    assert caught.value.exit_code == 2


def test_eight_bits_whose_0_is_white_are_turned(tmp_path: Path) -> None:
    values = draw("u1")
    folder_of(tmp_path, values, photometric=WHITE_IS_ZERO, form=UNSIGNED)
    np.testing.assert_allclose(shown(opened(tmp_path))[:, 0], (255 - values) / 255, atol=1e-6)


@pytest.mark.parametrize(("dtype", "form"), [("<i2", SIGNED), (">i4", SIGNED), ("<u4", UNSIGNED)])
def test_whole_numbers_are_scaled_by_the_range(tmp_path: Path, dtype: str, form: int) -> None:
    values = draw("i2") if form == SIGNED else draw("u2")
    folder_of(tmp_path, values.astype(dtype), photometric=BLACK_IS_ZERO, form=form)
    source = opened(tmp_path, range=[-100, 900])
    np.testing.assert_allclose(shown(source)[:, 0], (values + 100.0) / 1000, atol=1e-5)


@pytest.mark.parametrize(("channels", "photometric"), [(4, RGB), (5, RGB), (6, RGB)])
def test_channels_that_are_left_out_are_said(
    tmp_path: Path, channels: int, photometric: int
) -> None:
    values = draw("u1", channels)
    extra = channels - 3
    folder_of(tmp_path, values, photometric=photometric, form=UNSIGNED, extra=extra)
    source = opened(tmp_path)
    assert any(
        "4 of 4 pictures (such as 0.tif) hold further channels" in w for w in source.warnings
    )
    np.testing.assert_allclose(shown(source), np.moveaxis(values[..., :3], -1, 1) / 255, atol=1e-6)


def test_plain_files_have_no_further_channels(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    values = draw("u1", 4)
    for index, mode in enumerate(("L", "RGB", "RGBA", "CMYK")):
        picture = Image.fromarray(values[index]).convert(mode)
        picture.save(tmp_path / "img" / f"{index}.tif")
        picture.convert("RGB").save(tmp_path / "img" / f"{index}.png")
    assert not any("further channels" in line for line in opened(tmp_path).warnings)


def test_a_new_picture_is_refused_as_well(tmp_path: Path) -> None:
    values = draw("<u2")
    folder_of(tmp_path, values, photometric=BLACK_IS_ZERO, form=UNSIGNED)
    spec = read_settings(SourceSpec, {"kind": "images", "path": "img"}, "source")
    source = open_source(spec, tmp_path, tmp_path / "cache")
    np.testing.assert_allclose(shown(source)[:, 0], values / 65535, atol=1e-6)
    new = tmp_path / "new.tif"
    tiff(new, values[0], photometric=WHITE_IS_ZERO, form=UNSIGNED)
    with pytest.raises(DataError, match=r"new\.tif: cannot be decoded: .*0 is white"):
        read_new_samples(source, spec, new)
