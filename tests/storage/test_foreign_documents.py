"""Something else than a file in the place of a document."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from krepes_ooc.core import files
from krepes_ooc.errors import DamageError
from krepes_ooc.storage.store_writer import StoreWriter
from krepes_ooc.storage.zarr_metadata import write_root
from tests.storage import stores


def writer_for(root: Path) -> StoreWriter:
    writer = stores.open_workspace(root).writer(stores.SPEC, "d1")
    writer.create()
    return writer


@pytest.mark.parametrize("array", ["", "values"])
@pytest.mark.parametrize("kind", ["pipe", "holes"])
def test_what_is_no_document_is_put_back(tmp_path: Path, array: str, kind: str) -> None:
    """Something else in the place of a document of a begun store, and of a stranger's."""
    writer = writer_for(tmp_path)
    before = stores.files_in(writer.path)
    stranger = writer.path.parent / "mine/zarr.json"
    stranger.mkdir(parents=True)
    path = writer.path / array / "zarr.json"
    path.unlink()
    lay(path, kind)
    writer.create()
    assert stores.files_in(writer.path) == before
    assert stranger.is_dir()


def test_a_folder_in_the_place_of_a_document_is_named(tmp_path: Path) -> None:
    writer = writer_for(tmp_path)
    path = writer.path / "values/zarr.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(DamageError, match=r"values/zarr\.json: cannot write .*remove it"):
        writer.create()


def test_the_root_is_no_file(tmp_path: Path) -> None:
    """It is written anew, whatever is there."""
    writer = writer_for(tmp_path)
    root = writer.path.parent / "zarr.json"
    before = root.read_bytes()
    for kind in ("pipe", "link", "holes"):
        root.unlink()
        lay(root, kind)
        writer.create()
        assert not root.is_symlink()
        assert root.read_bytes() == before


def test_a_root_of_documents_that_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk says nothing about a document: it is not left out of the root."""
    writer = writer_for(tmp_path)

    def refuse(path: Path, limit: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(files, "read_small", refuse)
    with pytest.raises(DamageError, match="Input/output error"):
        write_root(writer.path.parent, writer.temp)


def lay(path: Path, kind: str) -> None:
    """Something that is no document."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/null")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
