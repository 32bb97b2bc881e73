"""Pictures in parquet files, as Hugging Face data sets write them, and in tar shards."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from krepes_ooc.errors import DamageError, DataError, SourceError, UsageError
from krepes_ooc.sources.describe import describe_source
from krepes_ooc.sources.new_samples import read_new_samples
from krepes_ooc.sources.open import open_source
from krepes_ooc.sources.pictures import image_check, picture_containers
from tests.sources.pictures.written_containers import (
    CLASSES,
    FOLDERS,
    N,
    draw,
    encoded,
    opened,
    parquet_folder,
    spec_of,
    tar_folder,
    write_parquet,
    write_tar,
)

KINDS = pytest.mark.parametrize("kind", FOLDERS)


@KINDS
def test_pictures_labels_and_names(tmp_path: Path, kind: str) -> None:
    pixels = FOLDERS[kind](tmp_path)
    source = opened(tmp_path)
    everything = np.arange(N)
    assert np.array_equal(source.read(everything), pixels)
    mixed = np.asarray([9, 0, 5, 5, 3])
    assert np.array_equal(source.read(mixed), pixels[mixed])
    assert source.labels(everything).tolist() == [i % 3 for i in range(N)]
    assert source.classes == (tuple(CLASSES) if kind == "parquet" else ("0", "1", "2"))
    names = {
        "parquet": ["train-00000-of-00002.parquet/3", "train-00001-of-00002.parquet/0"],
        "tar": ["shard-0000.tar/000003.png", "shard-0001.tar/000004.png"],
    }
    assert source.names(np.asarray([3, 4])) == names[kind]
    assert source.input_shape == (3, 6, 6)
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(mixed), pixels[mixed])
    lines = describe_source(source)
    assert "10 pictures, colour, uint8, 6 x 6" in lines
    assert f"in 2 .{kind} files" in lines
    assert opened(tmp_path, limit=3).n_samples == 3
    assert opened(tmp_path, limit=7).read(np.asarray([6])).shape == (1, 6, 6, 3)
    assert opened(tmp_path, size=4).read(everything).shape == (N, 4, 4, 3)


@KINDS
def test_the_same_pictures_as_in_a_folder(tmp_path: Path, kind: str) -> None:
    pixels = FOLDERS[kind](tmp_path)
    for i, image in enumerate(pixels):
        path = tmp_path / "img" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    keys = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    source, folder = opened(tmp_path, **keys), opened(tmp_path, path="img", **keys)
    everything = np.arange(N)
    assert np.array_equal(
        source.encode(source.read(everything)), folder.encode(folder.read(everything))
    )
    new = read_new_samples(source, spec_of(**keys), tmp_path / "img" / "7.png")
    assert np.array_equal(new.raw, pixels[7:8])


@KINDS
def test_one_file_and_one_picture(tmp_path: Path, kind: str) -> None:
    image = draw(1)
    if kind == "tar":
        write_tar(tmp_path / "data.tar", [("a/b.c.png", encoded(image[0]))])
    else:
        write_parquet(tmp_path / "data.parquet", [encoded(image[0])], [2])
    source = opened(tmp_path, path=f"data.{kind}")
    assert np.array_equal(source.read(np.asarray([0])), image)
    assert source.n_samples == 1


@KINDS
def test_checks_are_kept_and_not_repeated(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FOLDERS[kind](tmp_path)
    checked: list[int] = []
    check = picture_containers.check_content
    monkeypatch.setattr(
        picture_containers,
        "check_content",
        lambda content, page: checked.append(len(content)) or check(content, page),
    )
    before = opened(tmp_path).fingerprint()
    assert len(checked) == N
    checked.clear()
    assert opened(tmp_path).fingerprint() == before
    assert checked == []
    # One file that changes is read again alone.
    name = "shard-0001.tar" if kind == "tar" else "train-00001-of-00002.parquet"
    path = tmp_path / "data" / name
    if kind == "tar":
        write_tar(path, [("7.png", encoded(draw(1, seed=2)[0]))])
    else:
        write_parquet(path, [encoded(draw(1, seed=2)[0])], [1])
    changed = opened(tmp_path)
    assert (len(checked), changed.n_samples) == (1, 5)
    assert changed.fingerprint() != before


@KINDS
def test_damaged_pictures_are_named_or_skipped(tmp_path: Path, kind: str) -> None:
    pixels = draw()
    contents: list[bytes | None] = [encoded(image) for image in pixels]
    contents[2] = (contents[2] or b"")[:60]
    contents[5] = b""
    if kind == "tar":
        members = [(f"{i}.png", content or b"") for i, content in enumerate(contents)]
        write_tar(tmp_path / "data" / "x.tar", members)
    else:
        contents[7] = None
        write_parquet(tmp_path / "data" / "x.parquet", contents, [0] * N)
    words = {
        "tar": r"2 of 10 .*x.tar/2.png \(.*x.tar/5.png \(the file is empty\)",
        "parquet": r"3 of 10 .*x.parquet/2 \(.*x.parquet/5 .*x.parquet/7 \(holds no bytes\)",
    }
    with pytest.raises(DataError, match=words[kind]):
        opened(tmp_path)
    source = opened(tmp_path, skip_damaged=True)
    bad = {2, 5} if kind == "tar" else {2, 5, 7}
    valid = np.asarray(sorted(set(range(N)) - bad))
    assert np.array_equal(source.read(valid), pixels[valid])
    with pytest.raises(UsageError, match="the file of sample 2 is skipped"):
        source.read(np.asarray([2]))


def test_a_shard_that_changes_or_is_cut_is_refused(tmp_path: Path) -> None:
    tar_folder(tmp_path)
    source = opened(tmp_path)
    path = tmp_path / "data" / "shard-0001.tar"
    content = path.read_bytes()
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match=r"shard-0001.tar: the file changed while it was read"):
        source.read(np.arange(N))
    # Inside a picture, a header, and between two members.
    for size in (600, 1024 + 100, 1024):
        path.write_bytes(content[:size])
        with pytest.raises(SourceError, match=r"shard-0001.tar: .*(unexpected end|cut short)"):
            opened(tmp_path)
    # A damaged header, and two archives in one file: members would be lost in silence.
    for damaged in (content[:1024] + b"x" * 512 + content[1536:], content + content):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"shard-0001.tar: a damaged header, or another arch"):
            opened(tmp_path)
    path.write_bytes(b"x" * 2000)
    with pytest.raises(SourceError, match=r"shard-0001.tar: cannot be read: "):
        opened(tmp_path)


def test_unpacked_pictures_are_checksummed(tmp_path: Path) -> None:
    pixels = parquet_folder(tmp_path)
    source = opened(tmp_path)
    path = next((tmp_path / "cache").glob("*.pictures"))
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DamageError, match=r"bytes 0 to .*--repair"):
        source.read(np.arange(N))
    # Without it, it is unpacked again.
    path.unlink()
    assert np.array_equal(opened(tmp_path).read(np.arange(N)), pixels)


def test_columns_of_parquet(tmp_path: Path) -> None:
    contents: list[bytes | None] = [encoded(image) for image in draw()]
    plain = pa.array(contents, pa.binary())
    path = tmp_path / "data" / "x.parquet"
    # Text labels, plain bytes, other columns.
    path.parent.mkdir()
    words = [CLASSES[i % 3] for i in range(N)]
    pq.write_table(pa.table({"jpg": plain, "kind": words, "id": range(N)}), path)
    source = opened(tmp_path, label="kind")
    assert source.classes == tuple(CLASSES)
    assert source.warnings == ("not read: column id 1",)
    assert opened(tmp_path).classes == ()
    with pytest.raises(SourceError, match=r"no column 'x'; expected source.label one of 'jpg'"):
        opened(tmp_path, label="x")
    with pytest.raises(SourceError, match=r"column 'id' is int64; expected the bytes of picture"):
        opened(tmp_path, key="id")
    # Two columns of bytes.
    pq.write_table(pa.table({"image": plain, "mask": plain}), path)
    with pytest.raises(
        SourceError, match=r"2 columns hold pictures.*source.key one of 'image', 'm"
    ):
        opened(tmp_path)
    assert opened(tmp_path, key="mask").n_samples == N
    # No picture at all.
    pq.write_table(pa.table({"x": range(N)}), path)
    with pytest.raises(SourceError, match=r"0 columns hold pictures"):
        opened(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"x.parquet: cannot be read"):
        opened(tmp_path)


def test_missing_labels(tmp_path: Path) -> None:
    contents: list[bytes | None] = [encoded(image) for image in draw(4)]
    write_parquet(tmp_path / "data" / "x.parquet", contents, [0, -1, None, 2])
    source = opened(tmp_path)
    assert source.labels(np.arange(4)).tolist() == [0, -1, -1, 2]
    assert source.classes == tuple(CLASSES)
    write_parquet(tmp_path / "data" / "x.parquet", contents, [0.5, 1, 2, 2], classes=False)
    with pytest.raises(SourceError, match=r"labels such as 0.5; expected whole numbers or texts"):
        opened(tmp_path)
    write_parquet(tmp_path / "data" / "x.parquet", contents, [0, 1, 2, 3])
    with pytest.raises(SourceError, match=r"label 3 but 3 classes"):
        opened(tmp_path)


def test_members_of_tar(tmp_path: Path) -> None:
    images = draw(4)
    first, second = encoded(images[0]), encoded(images[1])
    path = tmp_path / "data" / "x.tar"
    write_tar(path, [("1.image.png", first), ("1.mask.png", second), ("1.txt", b"cat")])
    words = r"several pictures: image.png \(1\), mask.png \(1\).*set source.key: image.png"
    with pytest.raises(SourceError, match=words):
        opened(tmp_path)
    source = opened(tmp_path, key="mask.png", label="txt")
    assert np.array_equal(source.read(np.asarray([0])), images[1:2])
    assert source.classes == ("cat",)
    assert source.warnings == ("not read: image.png 1",)
    # Folders are the classes where no member is; dot names are no samples.
    write_tar(path, [("cat/1.png", first), ("dog/1.png", second), ("dog/._1.png", b"fork")])
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.labels(np.arange(2)).tolist() == [0, 1]
    # A sample without its label.
    write_tar(path, [("1.png", first), ("1.cls", b"3"), ("2.png", second)])
    assert opened(tmp_path).labels(np.arange(2)).tolist() == [3, -1]
    # The same picture twice is two samples.
    write_tar(path, [("1.png", first), ("2.png", first)])
    assert opened(tmp_path).n_samples == 2
    # Names never lead anywhere; links and folders are no pictures.
    write_tar(path, [("../../1.png", first), ("/2.png", second)])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("3.png")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("4.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert opened(tmp_path).n_samples == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.tar.gz", r"a compressed tar.*unpack it to .tar"),
        ("x.tgz", r"a compressed tar"),
        ("x.zip", r"an archive.*unpack it into a folder"),
        ("train.tfrecord-00000-of-00010", r"TFRecord, which is not read.*kind: factory"),
        ("x.tfrecord", r"TFRecord"),
        ("data.mdb", r"LMDB, which is not read.*tar shards or parquet.*kind: factory"),
        ("data-00000-of-00001.arrow", r"an Arrow file of a saved data set.*to_parquet"),
        ("x.npy", r"a file of arrays.*set source.kind: arrays"),
        ("x.csv", r"a table.*set source.kind: table"),
    ],
)
def test_other_containers_are_refused_by_name(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir()
    path.write_bytes(b"x")
    for where in ("data", f"data/{name}"):
        with pytest.raises(SourceError, match=rf"{name}: {words}") as error:
            opened(tmp_path, path=where)
        assert error.value.exit_code == 2


def test_what_is_no_container(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(SourceError, match="data: no images; expected files named"):
        opened(tmp_path)
    with pytest.raises(SourceError, match="no such folder"):
        opened(tmp_path, path="nowhere")
    Image.fromarray(draw(1)[0]).save(folder / "a.png")
    with pytest.raises(SourceError, match=r"a.png: a single picture; .*name its folder"):
        opened(tmp_path, path="data/a.png")
    for key in ("key", "label"):
        with pytest.raises(SourceError, match=rf"source.{key} means nothing for a folder of pict"):
            opened(tmp_path, **{key: "x"})
    # Beside pictures, containers are counted as left out.
    write_tar(folder / "x.tar", [("a.png", b"x")])
    assert opened(tmp_path).warnings == ("1 other file left out (.tar 1)",)
    (folder / "a.png").unlink()
    write_tar(folder / "empty.tar", [])
    (folder / "x.tar").unlink()
    with pytest.raises(SourceError, match="no pictures"):
        opened(tmp_path)
    write_parquet(folder / "x.parquet", [encoded(draw(1)[0])], [0])
    with pytest.raises(SourceError, match="holds both parquet files and tar shards"):
        opened(tmp_path)
    # A folder in the place of a file.
    (folder / "x.parquet").unlink()
    (folder / "x.parquet").mkdir()
    with pytest.raises(SourceError, match="no pictures"):
        opened(tmp_path)


@KINDS
def test_no_permission_is_said(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FOLDERS[kind](tmp_path)

    def refused(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    where = {"tar": (tarfile, "open"), "parquet": (pq, "read_schema")}[kind]
    monkeypatch.setattr(*where, refused)
    with pytest.raises(SourceError, match=r"0000.*cannot be read: Permission denied"):
        opened(tmp_path, skip_damaged=True)


@KINDS
def test_a_run_that_stops_keeps_the_files_that_are_checked(tmp_path: Path, kind: str) -> None:
    FOLDERS[kind](tmp_path)
    asked: list[int] = []

    class Stop(Exception):
        pass

    def check_stop() -> None:
        asked.append(1)
        if len(asked) > 3:
            raise Stop

    # Tar: one question a batch of pictures; parquet: one more a batch of rows.
    if kind == "tar":
        asked += [1, 1]
    with pytest.raises(Stop):
        open_source(spec_of(), tmp_path, tmp_path / "cache", check_stop)
    first = "shard-*.json" if kind == "tar" else "unpacked-*.json"
    assert len(list((tmp_path / "cache").glob(first))) == 1
    assert opened(tmp_path).n_samples == N
    assert not list((tmp_path / "cache").glob(".*"))


@KINDS
def test_views_and_pages(tmp_path: Path, kind: str) -> None:
    """Deep pictures and several pages are treated as in a folder."""
    deep = np.random.default_rng(0).integers(0, 65536, (4, 6, 6)).astype("u2")
    contents: list[bytes | None] = [encoded(image) for image in deep]
    if kind == "tar":
        write_tar(
            tmp_path / "data" / "x.tar",
            [(f"{i}.png", content or b"") for i, content in enumerate(contents)],
        )
    else:
        write_parquet(tmp_path / "data" / "x.parquet", contents, [0] * 4)
    source = opened(tmp_path)
    shown = source.encode(source.read(np.arange(4)))
    np.testing.assert_allclose(shown[:, 0], deep / 65535, atol=1e-7)
    assert image_check.MAX_NAMED == 20


@pytest.mark.parametrize("struct", [True, False])
def test_a_table_of_pictures_points_to_their_kind(tmp_path: Path, struct: bool) -> None:
    contents = [encoded(image) for image in draw()]
    if struct:
        write_parquet(tmp_path / "x.parquet", contents, list(range(3)) * 3 + [0])
    else:
        pq.write_table(pa.table({"image": contents, "y": range(N)}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"column 'image' has type .*if it holds pictures") as e:
        opened(tmp_path, kind="table", path="x.parquet")
    assert "set source.kind: images and source.key: image" in str(e.value)
    # The advice holds.
    assert opened(tmp_path, path="x.parquet", key="image").n_samples == N


def test_pictures_that_repeat_another_are_counted(tmp_path: Path) -> None:
    contents = [encoded(image) for image in draw()]
    contents[7] = contents[2]
    write_parquet(tmp_path / "x.parquet", contents, [0] * N)
    lines = describe_source(opened(tmp_path, path="x.parquet"))
    assert "1 repeat another byte for byte (such as x.parquet/2 = x.parquet/7)" in lines
