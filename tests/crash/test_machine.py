"""What a machine does between two runs: a reboot, a clock set back, a disk that is read-only."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.errors import Stopped
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import verify_workspace
from krepes_ooc.storage import journal, stage_record
from krepes_ooc.storage.stage_record import StageRecord
from tests import small
from tests.crash.compare import differences
from tests.storage import stores

TO_KERNEL = Options(workers=1, until="kernel")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe.load(str(small.own_recipe(tmp_path_factory.mktemp("recipe"))))


@pytest.fixture(scope="module")
def reference(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("reference") / "w"
    run(recipe, workspace, TO_KERNEL)
    return workspace


def test_after_a_reboot_a_zeroed_chunk_of_the_right_size_is_computed_again(
    recipe: Recipe, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power loss may leave what was named and never flushed: zeros."""

    def power_loss(record: StageRecord, *rest: Any) -> None:
        if record.name == "features":
            raise Stopped("the power is gone")
        seal(record, *rest)

    seal = StageRecord.seal_with
    with monkeypatch.context() as patch:
        patch.setattr(StageRecord, "seal_with", power_loss)
        with pytest.raises(Stopped):
            run(recipe, tmp_path / "w", TO_KERNEL)
    chunk = tmp_path / "w/audit.zarr/features/values/c/0/1/0"
    whole = chunk.read_bytes()
    chunk.write_bytes(bytes(len(whole)))
    for module in (journal, stage_record):
        monkeypatch.setattr(module, "boot_id", lambda: "the boot after")
    run(recipe, tmp_path / "w", TO_KERNEL)
    assert chunk.read_bytes() == whole
    assert differences(reference, tmp_path / "w") == []
    assert verify_workspace(tmp_path / "w").damage == ()


def test_a_clock_that_was_set_back_changes_nothing(
    recipe: Recipe, reference: Path, tmp_path: Path
) -> None:
    """Everything on disk is of tomorrow."""
    workspace, tomorrow = tmp_path / "w", time.time() + 86_400
    run(recipe, workspace, Options(workers=1, until="features"))
    for path in (workspace, *workspace.rglob("*")):
        os.utime(path, (tomorrow, tomorrow))
    assert run(recipe, workspace, TO_KERNEL).ran == ["landmarks", "audited", "kernel"]
    assert differences(reference, workspace) == []
    assert run(recipe, workspace, TO_KERNEL).ran == []


def test_a_read_only_workspace_is_looked_at_and_not_written(capsys: Any, tmp_path: Path) -> None:
    recipe = str(small.own_recipe(tmp_path / "recipe"))
    with stores.mounted(tmp_path / "disk", "24m") as disk:
        given = ("run", recipe, "-w", str(disk / "w"), "--quiet")
        assert small.krepes(capsys, *given).code == 0
        stores.make_read_only(disk)
        for extra in ((), ("--repair",), ("--only", "features", "--shard", "1/2")):
            told = small.krepes(capsys, *given, *extra)
            assert told.code == 2
            assert "cannot write (Read-only file system)" in told.line
            assert "choose another --workspace" in told.line
        for look in (("status",), ("verify",), ("explain", "--sample", "3")):
            told = small.krepes(capsys, look[0], recipe, "-w", str(disk / "w"), *look[1:])
            assert told.code == 0, told
        out = str(tmp_path / "influence.csv")
        export = ("export", "-w", str(disk / "w"), "--store", "influence", "--format", "csv")
        assert small.krepes(capsys, *export, "--out", out).code == 0
