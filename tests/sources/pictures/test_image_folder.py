from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source
from krepes_ooc.sources.pictures import image_check

Image = pytest.importorskip("PIL.Image")


def fill(folder: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> dict[str, Any]:
    """Five images in two classes and one outside; (width, height) as Pillow wants it."""
    draw, made = np.random.default_rng(3), {}
    for name in ["cat/b.png", "cat/a.PNG", "dog/deep/c.png", "dog/d.bmp", "lone.png"]:
        depth = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
        pixels = draw.integers(0, 256, (size[1], size[0], *depth), dtype=np.uint8)
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        made[name] = pixels
    (folder / "images" / "notes.txt").write_text("not an image")
    return made


def opened(folder: Path, **keys: Any) -> Source:
    return open_source(SourceSpec(kind="images", path="images", **keys), folder, folder / "cache")


def test_images_classes_and_names(tmp_path: Path) -> None:
    made = fill(tmp_path)
    source = opened(tmp_path)
    everything = np.arange(5)
    names = ["cat/a.PNG", "cat/b.png", "dog/d.bmp", "dog/deep/c.png", "lone.png"]
    assert source.names(everything) == names
    assert source.classes == ("cat", "dog")
    assert source.labels(everything).tolist() == [0, 0, 1, 1, -1]
    assert source.input_shape == (3, 4, 6)
    assert np.array_equal(source.read(everything[::-1]), [made[name] for name in names[::-1]])
    assert np.array_equal(
        pickle.loads(pickle.dumps(source)).read(everything), source.read(everything)
    )
    assert opened(tmp_path, limit=2).n_samples == 2


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGBA", 3)])
def test_grey_stays_grey_and_alpha_is_dropped(tmp_path: Path, mode: str, channels: int) -> None:
    made = fill(tmp_path, mode)
    raw = opened(tmp_path).read(np.asarray([1]))
    assert raw.shape == (1, 4, 6, channels)
    assert np.array_equal(raw[0], made["cat/b.png"].reshape(4, 6, -1)[:, :, :channels])


def test_size_crops_to_the_centre_and_scales(tmp_path: Path) -> None:
    fill(tmp_path)
    Image.new("RGB", (40, 20), (10, 20, 30)).save(tmp_path / "images" / "zoo.png")
    source = opened(tmp_path, size=3)
    raw = source.read(np.arange(6))
    assert raw.shape == (6, 3, 3, 3)
    assert (raw[5] == (10, 20, 30)).all()
    with pytest.raises(DataError, match=r"zoo.png: image of 20 x 40 pixels; expected 4 x 6 as in"):
        opened(tmp_path).read(np.arange(6))


def test_contents_make_the_fingerprint_and_are_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    first = opened(tmp_path).fingerprint()
    monkeypatch.setattr(image_check, "check_picture", None)
    assert opened(tmp_path).fingerprint() == first
    monkeypatch.undo()
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "lone.png")
    assert opened(tmp_path).fingerprint() != first


def test_bad_files_are_named_before_and_while_they_are_read(tmp_path: Path) -> None:
    fill(tmp_path)
    source = opened(tmp_path)
    (tmp_path / "images" / "cat" / "b.png").write_bytes(b"changed")
    with pytest.raises(DataError, match=r"cat/b.png: the file changed while it was read"):
        source.read(np.asarray([1]))
    (tmp_path / "images" / "dog" / "d.bmp").write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"images: 2 of 5 pictures cannot be decoded: cat/b.png \(UnidentifiedImageError: "
        r"cannot identify image file\); dog/d.bmp \(the file is empty\).*source.skip_damaged: true",
    ):
        opened(tmp_path)


def test_missing_folder_and_images(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder; expected an existing folder"):
        opened(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError, match=r"images: no images; expected files named .bmp, .gif"):
        opened(tmp_path)
