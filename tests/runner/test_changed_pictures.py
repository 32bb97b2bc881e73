"""Runs over 1,200 pictures, some of which are damaged, mended or replaced."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.engine.run_control import Silent, StopFlag
from krepes_ooc.errors import DataError, WorkspaceError
from krepes_ooc.sources.pictures import image_check
from krepes_ooc.stages.features.stage import FeatureShards
from krepes_ooc.storage.workspace import Workspace
from tests.crash.compare import differences
from tests.runner.picture_audits import BLOCKS, NET, audit, draw, name, positions, truncate


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    shutil.copytree(pictures, tmp_path / "f")
    return tmp_path / "f"


@pytest.fixture
def done(audited_pictures: Path, tmp_path: Path) -> Path:
    shutil.copytree(audited_pictures, tmp_path / "f")
    return tmp_path / "f"


class Notes(Silent):
    """Keeps the lines of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the blocks whose rows are computed for the store."""
    indices: list[int] = []
    block = FeatureShards._block

    def counted(self: FeatureShards, each: Any) -> Any:
        indices.append(each.index)
        return block(self, each)

    monkeypatch.setattr(FeatureShards, "_block", counted)
    return indices


def blocks_of(folder: Path, *files: int) -> list[int]:
    """Blocks whose rows hold these files."""
    space = Workspace(folder / "w")
    ids = space.reader("features").array("sample_id")
    places = np.flatnonzero(np.isin(ids, [positions().index(file) for file in files]))
    return sorted({int(place) // 256 for place in places})


# Damaged at the start


def test_three_damaged_pictures_are_named_and_nothing_is_computed(
    folder: Path, computed: list[int]
) -> None:
    for position in (3, 700, 1150):
        truncate(folder / "img" / name(position))
    with pytest.raises(DataError, match=r"3 of 1,200 .*0/0700.png .*0/1150.png .*1/0003.png") as e:
        audit(folder)
    assert e.value.exit_code == 1
    assert computed == []
    assert not (folder / "w" / "audit.zarr" / "features").exists()


def test_mended_pictures_are_those_that_are_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {p: truncate(folder / "img" / name(p)) for p in (3, 700, 1150)}
    with pytest.raises(DataError):
        audit(folder)
    for position, content in good.items():
        (folder / "img" / name(position)).write_bytes(content)
    read: list[str] = []
    check = image_check.check_picture
    monkeypatch.setattr(
        image_check,
        "check_picture",
        lambda path, page: read.append(Path(path).name) or check(path, page),
    )
    audit(folder, until="features")
    assert sorted(read) == ["0003.png", "0700.png", "1150.png"]


# Damaged while the run goes on


class After(StopFlag):
    """Calls a function once a number of blocks is computed."""

    def __init__(self, computed: list[int], count: int, act: Callable[[], Any]) -> None:
        super().__init__()
        self._computed = computed
        self._count = count
        self._act: Callable[[], Any] | None = act

    def check(self) -> None:
        if self._act is not None and len(self._computed) > self._count:
            act = self._act
            self._act = None
            act()
        super().check()


def interrupted(folder: Path, computed: list[int], position: int) -> bytes:
    """Run until a picture is damaged while block 2 is computed; its good bytes."""
    path = folder / "img" / name(position)
    good = path.read_bytes()
    stop = After(computed, 2, lambda: truncate(path))
    with pytest.raises(DataError, match=rf"{name(position)}: the file changed"):
        audit(folder, workers=1, stop=stop)
    return good


def in_last_block(audited_pictures: Path) -> int:
    """Number of a file whose row lies in the last block."""
    ids = Workspace(audited_pictures / "w").reader("features").array("sample_id")
    return positions()[int(ids[-1])]


def test_a_picture_damaged_meanwhile_and_mended_costs_no_block(
    folder: Path, audited_pictures: Path, computed: list[int]
) -> None:
    position = in_last_block(audited_pictures)
    good = interrupted(folder, computed, position)
    finished = len(Workspace(folder / "w").record("features", "features").done())
    assert 2 <= finished < BLOCKS
    # As long as it is damaged, it is named; nothing is lost.
    with pytest.raises(DataError, match=rf"1 of 1,200 .*{name(position)}"):
        audit(folder)
    (folder / "img" / name(position)).write_bytes(good)
    computed.clear()
    audit(folder)
    assert len(computed) == BLOCKS - finished
    assert differences(folder / "w", audited_pictures / "w") == []


def test_a_picture_replaced_meanwhile_costs_no_other_block(
    folder: Path, audited_pictures: Path, computed: list[int]
) -> None:
    position = in_last_block(audited_pictures)
    interrupted(folder, computed, position)
    finished = len(Workspace(folder / "w").record("features", "features").done())
    draw(folder, position, 1)
    with pytest.raises(WorkspaceError, match=rf"of 1,200 files 1 \({name(position)}\) differ"):
        audit(folder)
    computed.clear()
    audit(folder, restart_stale=True)
    assert len(computed) == BLOCKS - finished
    audit(folder, workspace="fresh")
    assert differences(folder / "w", folder / "fresh") == []


# Replaced after the run


@pytest.mark.parametrize("files", [(5,), (6, 7)])
def test_a_replaced_picture_costs_its_blocks_and_the_reductions(
    done: Path, computed: list[int], files: tuple[int, ...]
) -> None:
    expected = blocks_of(done, *files)
    for file in files:
        draw(done, file, 1)
    with pytest.raises(WorkspaceError) as error:
        audit(done)
    assert error.value.exit_code == 4
    named = ", ".join(sorted(name(file) for file in files))
    assert f"source changed: of 1,200 files {len(files)} ({named}) differ" in str(error.value)
    notes = Notes()
    summary = audit(done, restart_stale=True, progress=notes)
    assert sorted(computed) == expected
    assert 0 < len(expected) < BLOCKS
    assert any(line.startswith(f"{BLOCKS - len(expected)} of 5 blocks") for line in notes.lines)
    # The reductions and all that reads them are computed again: the bits are those of a clean run.
    assert summary.ran[:2] == ["features", "landmarks"]
    audit(done, workspace="fresh")
    assert differences(done / "w", done / "fresh") == []
    assert not any((done / "w" / ".krepes" / "parked").glob("*"))
    assert audit(done).ran == []


def test_the_same_bytes_again_cost_nothing(done: Path, computed: list[int]) -> None:
    path = done / "img" / name(5)
    path.write_bytes(path.read_bytes())
    os.utime(path)
    assert audit(done).ran == []
    assert computed == []


def test_blocks_stay_over_a_kill_and_a_second_change(done: Path, computed: list[int]) -> None:
    expected = blocks_of(done, 5)
    draw(done, 5, 1)
    # Stopped right after the unchanged blocks are linked.
    stop = After(computed, 0, lambda: stop.request("of the test"))
    with pytest.raises(Exception, match="stopped, because of the test"):
        audit(done, restart_stale=True, stop=stop)
    # Replaced once more before the run is resumed.
    draw(done, 5, 2)
    with pytest.raises(WorkspaceError, match=r"1 \(1/0005.png\) differ"):
        audit(done)
    computed.clear()
    audit(done, restart_stale=True)
    assert sorted(computed) == expected
    audit(done, workspace="fresh")
    assert differences(done / "w", done / "fresh") == []


@pytest.mark.parametrize(
    "change",
    [
        "views.jitter=0.3",
        "network.arguments={width: 9}",
        "source.mean=[0.5]",
        "source.order=source",
        "stages.features.forward_batch=64",
    ],
)
def test_no_block_stays_when_anything_else_changes(
    done: Path, computed: list[int], change: str
) -> None:
    draw(done, 5, 1)
    audit(done, change, restart_stale=True, until="features")
    assert sorted(computed) == list(range(BLOCKS))


def test_no_block_stays_when_imported_code_changes(
    pictures: Path, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code behind the factory's file has no digest: a batch of rows shows the change."""
    folder = tmp_path / "f"
    shutil.copytree(pictures, folder)
    (folder / "net.py").write_text(NET.replace("torch.nn.ReLU()", "activation()"))
    code = "from tests.runner.test_changed_pictures import activation\n"
    (folder / "net.py").write_text(code + (folder / "net.py").read_text())
    audit(folder, until="features")
    draw(folder, 5, 1)
    monkeypatch.setitem(ACTIVATION, "name", "LeakyReLU")
    computed.clear()
    notes = Notes()
    audit(folder, restart_stale=True, until="features", progress=notes)
    assert any("gives other rows than in the earlier run" in line for line in notes.lines)
    assert sorted(computed) == list(range(BLOCKS))


ACTIVATION = {"name": "ReLU"}


def activation() -> Any:
    import torch

    return getattr(torch.nn, ACTIVATION["name"])()


def test_a_damaged_chunk_of_the_archive_is_computed_again(done: Path, computed: list[int]) -> None:
    draw(done, 5, 1)
    stay = sorted(set(range(BLOCKS)) - set(blocks_of(done, 5)))
    chunk = done / "w" / "audit.zarr" / "features" / "values" / "c" / "0" / str(stay[1]) / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    audit(done, restart_stale=True, until="features")
    assert sorted(computed) == sorted([*blocks_of(done, 5), stay[1]])


def test_rows_that_are_not_stored_are_all_computed(done: Path, computed: list[int]) -> None:
    change = "stages.features.persist=never"
    audit(done, change, restart_stale=True, until="features")
    draw(done, 5, 1)
    computed.clear()
    audit(done, change, restart_stale=True, until="features")
    assert sorted(computed) == list(range(BLOCKS))


def test_a_file_more_moves_all_others(done: Path, computed: list[int]) -> None:
    shutil.copy(done / "img" / name(1), done / "img" / "0" / "a.png")
    with pytest.raises(WorkspaceError, match=r"of 1,201 files 1 \(0/a.png\) new"):
        audit(done)
    audit(done, restart_stale=True, until="features")
    assert sorted(computed) == list(range(BLOCKS))


def test_files_without_a_record_are_all_computed(done: Path, computed: list[int]) -> None:
    for path in (done / "w" / ".krepes" / "cache").glob("files-*.json"):
        path.unlink()
    draw(done, 5, 1)
    with pytest.raises(WorkspaceError, match="source changed"):
        audit(done)
    audit(done, restart_stale=True, until="features")
    assert sorted(computed) == list(range(BLOCKS))


def test_a_replaced_picture_of_a_shard_costs_its_block(folder: Path, computed: list[int]) -> None:
    def write(seed: int) -> None:
        draw(folder, 5, seed)
        with tarfile.open(folder / "x.tar", "w") as archive:
            archive.add(folder / "img", ".")

    write(0)
    audit(folder, "source.path=x.tar", until="features")
    computed.clear()
    write(1)
    with pytest.raises(WorkspaceError, match=r"of 1,200 files 1 \(x.tar/./1/0005.png\) differ"):
        audit(folder, "source.path=x.tar", until="features")
    audit(folder, "source.path=x.tar", until="features", restart_stale=True)
    assert len(computed) == 1
    audit(folder, "source.path=x.tar", until="features", workspace="fresh")
    assert differences(folder / "w", folder / "fresh") == []
