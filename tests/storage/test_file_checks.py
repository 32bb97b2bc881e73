from __future__ import annotations

from pathlib import Path

import pytest

from krepes_ooc.core.files import checksum
from krepes_ooc.errors import WorkspaceError
from krepes_ooc.storage.file_checks import confine, file_problem, is_inside, measure

DATA = bytes(range(256)) * 9000
CHUNK = DATA + checksum(DATA).to_bytes(4, "little")


@pytest.mark.parametrize("key", ["a", "a/b/c", "a..b", "values/c/0/17/0", ".krepes/x"])
def test_names_inside(key: str):
    assert is_inside(key)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "..", "a/../../b", "../a", "a\0b"])
def test_names_outside(key: str):
    assert not is_inside(key)


def test_path_without_links_is_confined(tmp_path: Path):
    (tmp_path / "a").mkdir()
    assert confine(tmp_path / "a" / "new", tmp_path) == tmp_path / "a" / "new"
    assert confine(tmp_path, tmp_path) == tmp_path


def test_root_itself_may_be_a_link(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to("real")
    confine(tmp_path / "root" / "x", tmp_path / "root")


@pytest.mark.parametrize("target", ["/etc", "..", "elsewhere", "loop"])
def test_link_on_the_way_is_refused(tmp_path: Path, target: str):
    (tmp_path / "loop").symlink_to(target)
    for path in (tmp_path / "loop", tmp_path / "loop" / "x" / "y"):
        with pytest.raises(WorkspaceError) as caught:
            confine(path, tmp_path)
        assert str(caught.value) == (
            f"{tmp_path / 'loop'}: a symbolic link, to {target}; "
            "expected real files and folders inside the workspace; remove the link"
        )


def test_what_was_written_is_right(tmp_path: Path):
    (tmp_path / "plain").write_bytes(DATA)
    (tmp_path / "chunk").write_bytes(CHUNK)
    (tmp_path / "empty").write_bytes(b"")
    crc = checksum(DATA)
    assert file_problem(tmp_path / "plain", len(DATA), crc, suffixed=False) == ""
    assert file_problem(tmp_path / "chunk", len(CHUNK), crc, suffixed=True) == ""
    assert file_problem(tmp_path / "empty", 0, checksum(b""), suffixed=False) == ""
    assert measure(tmp_path / "plain") == (len(DATA), crc)
    assert measure(tmp_path / "empty") == (0, 0)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (CHUNK[:-1], f"{len(CHUNK) - 1} bytes instead of {len(CHUNK)}"),
        (CHUNK + b"x", f"{len(CHUNK) + 1} bytes instead of {len(CHUNK)}"),
        (b"", f"0 bytes instead of {len(CHUNK)}"),
        (bytes(len(CHUNK)), "the bytes differ from the checksum recorded"),
        (CHUNK[:-1] + b"\0", "the checksum suffix is damaged"),
        (b"x" + CHUNK[1:], "the bytes differ from the checksum recorded"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, told: str):
    (tmp_path / "chunk").write_bytes(data)
    found = file_problem(tmp_path / "chunk", len(CHUNK), checksum(DATA), suffixed=True)
    assert found == told


def test_missing_and_unreadable_files_are_said(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    assert file_problem(tmp_path / "none", 1, 1, suffixed=True) == "missing"
    assert file_problem(tmp_path / "folder", 1, 1, suffixed=True).startswith(
        "cannot be read (a folder"
    )
    assert file_problem(tmp_path / "loop", 1, 1, suffixed=True).startswith("cannot be read (a s")
