"""Runs that leave out damaged pictures, and checks of files that are stopped or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import Interrupted, SourceError, UsageError, WorkspaceError
from krepes_ooc.runner.explanation.explain import explain_sample
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.sources.pictures import image_check
from krepes_ooc.storage.workspace import Workspace
from tests.crash.compare import differences
from tests.runner.picture_audits import N, audit, name, positions, truncate


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    shutil.copytree(pictures, tmp_path / "f")
    return tmp_path / "f"


def test_skipped_pictures_are_never_rows_and_move_no_other(
    folder: Path, audited_pictures: Path
) -> None:
    bad = (3, 700, 1150)
    for file in bad:
        truncate(folder / "img" / name(file))
    audit(folder, "source.skip_damaged=true", until="report")
    space = Workspace(folder / "w")
    skipped = {positions().index(p) for p in bad}
    for store in ("features", "landmarks", "audited"):
        assert not skipped & set(space.reader(store).array("sample_id").tolist()), store
    ids = space.reader("features").array("sample_id")
    assert sorted([*ids.tolist(), *skipped]) == list(range(N))
    # A sample has the position, and with it the views, that it has beside all 1,200.
    whole = Workspace(audited_pictures / "w").reader("features")
    place = np.argsort(whole.array("sample_id"))[ids]
    k_xx = space.reader("features").array("self_kernel")
    expected = whole.array("self_kernel")[:, place]
    # Rows are rounded under other scales.
    np.testing.assert_allclose(k_xx, expected, rtol=2e-3)
    assert np.abs(k_xx / np.roll(expected, 1, axis=1) - 1).max() > 0.1
    names = space["audited"]["sample_name"].attrs["categories"]
    listed = [name(p) for p in positions()]
    assert names == [listed[i] for i in space.reader("audited").array("sample_id")]
    # The list stands in the report; the digest holds it.
    report = (folder / "w" / "report.json").read_text()
    line = report[report.index("skip_damaged leaves out 3 files") :].partition("\n")[0]
    assert all(name(p) in line for p in bad)


def test_a_mended_picture_makes_the_features_stale_by_name(folder: Path) -> None:
    good = truncate(folder / "img" / name(700))
    truncate(folder / "img" / name(3))
    skip = "source.skip_damaged=true"
    audit(folder, skip, until="landmarks")
    (folder / "img" / name(700)).write_bytes(good)
    words = r"stale: features, landmarks.* 1 \(0/0700.png\) mended, skipped until now"
    with pytest.raises(WorkspaceError, match=words):
        audit(folder, skip, until="landmarks")
    audit(folder, skip, until="landmarks", restart_stale=True)
    audit(folder, skip, until="landmarks", workspace="fresh")
    assert differences(folder / "w", folder / "fresh") == []
    # Damaged again: it is skipped, by name.
    truncate(folder / "img" / name(700))
    with pytest.raises(WorkspaceError, match=r"1 \(0/0700.png\) damaged and skipped now"):
        audit(folder, skip, until="landmarks")


def test_a_skipped_sample_cannot_be_named(folder: Path) -> None:
    truncate(folder / "img" / name(2))
    changes = ["source.skip_damaged=true", "stages.audited.sample_ids=[0, 1]"]
    with pytest.raises(UsageError, match=r"sample_ids: the file of sample 1 is skipped.*repair"):
        audit(folder, *changes)
    with pytest.raises(UsageError, match=r"no sample 1200; expected 0 to 1199"):
        audit(folder, changes[0], "stages.audited.sample_ids=[0, 1200]")
    audit(folder, changes[0], "stages.audited.sample_ids=[0, 1199]")
    with pytest.raises(UsageError, match=r"the file of sample 1 is skipped"):
        explain_sample(folder / "w", 1, recipe=Recipe.load(str(folder / "r.yaml"), changes[:1]))


# Stopped and refused while files are checked


@pytest.mark.parametrize("small", [4_096, 0])
def test_ctrl_c_keeps_what_is_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    # Pictures are checked in the calling thread, or, as large ones are, by several.
    monkeypatch.setattr(image_check, "_SMALL_BYTES", small)
    read: list[str] = []
    check = image_check.check_picture
    flag = StopFlag()

    def counted(path: str, page: int | None) -> image_check.PictureCheck:
        read.append(Path(path).name)
        if len(read) == 300:
            flag.request("Ctrl-C was pressed", interrupted=True)
        return check(path, page)

    monkeypatch.setattr(image_check, "check_picture", counted)
    with pytest.raises(Interrupted, match="nothing is lost") as error:
        audit(folder, stop=flag)
    assert error.value.exit_code == 130
    # At most the tasks that were handed out, whatever else the machine does.
    in_hand = (image_check._IN_HAND + 1) * image_check._PER_TASK if small == 0 else 32
    first = len(read)
    assert 300 <= first < 300 + in_hand < N
    lost = in_hand if small == 0 else 0
    read.clear()
    audit(folder, until="features")
    assert N - first <= len(read) <= N - first + lost


def test_ctrl_c_waits_for_few_large_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_check, "_READERS", 2)
    monkeypatch.setattr(image_check, "_IN_HAND", 4)
    read: list[int] = []

    def stop() -> None:
        raise Interrupted("stopped")

    def check(start: int, stop: int) -> list[image_check.PictureCheck]:
        read.extend(range(start, stop))
        return [image_check.PictureCheck("", None)] * (stop - start)

    # Pictures of 3 MiB are tasks of one picture.
    with pytest.raises(Interrupted):
        list(image_check.run_checks([3 * 2**20] * 200, check, stop))
    assert 1 <= len(read) <= 4


def test_a_permission_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open

    def refused(path: Any, *given: Any, **more: Any) -> Any:
        if str(path).endswith("0003.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *given, **more)

    monkeypatch.setattr("builtins.open", refused)
    for change in ("source.skip_damaged=false", "source.skip_damaged=true"):
        with pytest.raises(SourceError, match=r"0003.png: cannot be read: Permission denied") as e:
            audit(folder, change)
        assert e.value.exit_code == 2
