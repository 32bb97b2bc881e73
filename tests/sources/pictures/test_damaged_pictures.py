"""Damaged pictures are named all at once, or skipped and recorded; checks are kept."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from krepes_ooc.errors import DataError, KrepesError, UsageError
from krepes_ooc.sources.open import row_order
from krepes_ooc.sources.pictures import image_check
from tests.sources.written_pictures import colours, opened, save, spec_of


def damaged(folder: Path) -> dict[str, bytes]:
    """Twelve pictures, three of them damaged in different ways; their good bytes."""
    save(folder / "img", colours(11), "jpg")
    Image.fromarray(colours(1)[0]).save(folder / "img" / "11.png")
    good = {n: (folder / "img" / n).read_bytes() for n in ("03.jpg", "07.jpg", "11.png")}
    (folder / "img" / "03.jpg").write_bytes(good["03.jpg"][:-200])
    (folder / "img" / "07.jpg").write_bytes(b"")
    (folder / "img" / "11.png").write_bytes(good["11.png"][:60])
    return good


def test_all_damaged_files_are_named_at_once(tmp_path: Path) -> None:
    damaged(tmp_path)
    with pytest.raises(DataError, match=r"3 of 12 .* 03.jpg .*; 07.jpg .*; 11.png ") as error:
        opened(tmp_path)
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)


def test_a_long_list_of_damaged_files_stands_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for i in range(30):
        (tmp_path / "img" / f"{i:02}.png").write_bytes(b"x")
    with pytest.raises(KrepesError, match=r"30 of 30 .* and 10 more, all listed in"):
        opened(tmp_path, skip_damaged=True)
    assert len((tmp_path / "cache" / "damaged-pictures.txt").read_text().splitlines()) == 30


def test_damaged_files_are_skipped_and_recorded(tmp_path: Path) -> None:
    good = damaged(tmp_path)
    source = opened(tmp_path, skip_damaged=True)
    assert source.n_samples == 9
    # Positions count all files; the skipped ones are no samples.
    valid = np.asarray([i for i in range(12) if i not in (3, 7, 11)])
    names = [f"{i:02}.jpg" for i in valid]
    assert source.names(valid) == names
    one = np.asarray(Image.open(tmp_path / "img" / "08.jpg"))
    assert np.array_equal(source.read(np.asarray([8]))[0], one)
    for read in (source.read, source.labels, source.names):
        with pytest.raises(UsageError, match="the file of sample 7 is skipped"):
            read(np.asarray([8, 7]))
        with pytest.raises(UsageError, match="no sample 12; expected 0 to 11"):
            read(np.asarray([12]))
    order = row_order(source, spec_of(skip_damaged=True), 0)
    assert sorted(order.positions(0, 9).tolist()) == valid.tolist()
    assert source.fingerprint()["skipped"] == sorted(good)
    assert source.warnings[0].startswith("skip_damaged leaves out 3 files: 03.jpg (")
    # A mended file is read again, and the source is another one.
    (tmp_path / "img" / "07.jpg").write_bytes(good["07.jpg"])
    mended = opened(tmp_path, skip_damaged=True)
    assert mended.n_samples == 10
    assert mended.fingerprint()["skipped"] == ["03.jpg", "11.png"]
    for name, content in good.items():
        (tmp_path / "img" / name).write_bytes(content)
    # Without damage the key changes nothing.
    assert opened(tmp_path, skip_damaged=True).fingerprint() == opened(tmp_path).fingerprint()


def test_only_a_mended_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = damaged(tmp_path)
    read: list[str] = []
    check = image_check.check_picture

    def counted(path: str, page: int | None) -> image_check.PictureCheck:
        read.append(Path(path).name)
        return check(path, page)

    monkeypatch.setattr(image_check, "check_picture", counted)
    opened(tmp_path, skip_damaged=True)
    assert len(read) == 12
    read.clear()
    (tmp_path / "img" / "03.jpg").write_bytes(good["03.jpg"])
    opened(tmp_path, skip_damaged=True)
    assert read == ["03.jpg"]


def test_records_of_checks_are_few_and_survive_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_check, "_PER_RECORD", 4)
    monkeypatch.setattr(image_check, "_MOST_RECORDS", 3)
    save(tmp_path / "img", colours(10))
    read: list[str] = []
    check = image_check.check_picture
    monkeypatch.setattr(
        image_check,
        "check_picture",
        lambda path, page: read.append(Path(path).name) or check(path, page),
    )
    before = opened(tmp_path).fingerprint()

    def records() -> list[Path]:
        return sorted((tmp_path / "cache").glob("pictures-*.json"))

    assert (len(records()), len(read)) == (3, 10)
    # Files that are touched one after the other are read again alone.
    for _ in range(9):
        read.clear()
        os.utime(tmp_path / "img" / "05.png", ns=(0, len(records()) + 1))
        assert opened(tmp_path).fingerprint() == before
        assert read == ["05.png"]
        assert opened(tmp_path).fingerprint() == before
        assert read == ["05.png"]
        assert len(records()) <= 6
    # A damaged or lost record costs its files alone, once.
    for act in (lambda path: path.write_bytes(b"x"), lambda path: path.unlink()):
        read.clear()
        act(records()[0])
        assert opened(tmp_path).fingerprint() == before
        assert 0 < len(read) < 10
        read.clear()
        opened(tmp_path)
        assert read == []
