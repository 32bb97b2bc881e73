"""A disk that is full in the middle of the groups: one line, and the same bits afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.crash.compare import differences
from tests.crash.disk import FailingDisk
from tests.stages import group_audits

STAGES = ("group_moments", "group_influence")


def copy_without(stage: str, folder: Path) -> Path:
    """A copy of the finished audit in which one stage is not begun."""
    shutil.copytree(group_audits.finished().root.parent, folder)
    shutil.rmtree(folder / "w" / ".krepes" / "stages" / stage)
    shutil.rmtree(folder / "w" / "audit.zarr" / stage)
    return folder


def go(folder: Path, stage: str, capsys: Any, disk: FailingDisk) -> small.Outcome:
    """Run to the end of one stage on a disk."""
    recipe = str(folder / "own.yaml")
    with disk:
        return small.krepes(
            capsys, "run", recipe, "-w", str(folder / "w"), "--until", stage, "--workers", "1", "-q"
        )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("kind", "share"), [("write", 0.3), ("write", 0.7), ("create", 0.5)])
def test_a_full_disk_in_the_middle_is_one_line_and_nothing_is_lost(
    tmp_path: Path, capsys: Any, stage: str, kind: str, share: float
) -> None:
    # Calls of a run that nothing disturbs, to know where the middle is.
    undisturbed = copy_without(stage, tmp_path / "undisturbed")
    counted = FailingDisk(undisturbed / "w")
    assert go(undisturbed, stage, capsys, counted).code == 0

    folder = copy_without(stage, tmp_path / "full")
    disk = FailingDisk(folder / "w", kind, round(share * counted.calls[kind]), lasting=True)
    found = go(folder, stage, capsys, disk)
    assert disk.failed
    assert found.code == 1
    assert "the disk is full" in found.line
    assert stage in found.line
    assert "run the same command again" in found.line
    assert stage not in small.seals(folder / "w")

    # With room again the same command ends in the same bits.
    again = go(folder, stage, capsys, FailingDisk(folder / "w"))
    assert again.code == 0, again.err
    assert differences(group_audits.finished().root, folder / "w") == []
