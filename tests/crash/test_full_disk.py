"""A disk that fills up in the middle of a run: told with both numbers, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from krepes_ooc.engine.progress import Silent
from krepes_ooc.errors import StageFailed
from krepes_ooc.runner import Options, run, verify_workspace
from tests import small
from tests.crash.compare import differences
from tests.storage import stores


class Filler(Silent):
    """Fills the disk when a stage begins."""

    def __init__(self, disk: Path, stage: str) -> None:
        self._disk, self._stage, self.file = disk, stage, disk / "filler"

    def begin(self, stage: str, total: int, done: int) -> None:
        if stage == self._stage:
            stores.fill_disk(self._disk, 4096)


@pytest.mark.parametrize("stage", ["features", "kernel"])
def test_disk_fills_up(tmp_path: Path, stage: str) -> None:
    small.audit(tmp_path / "reference", workers=1, until="kernel")
    with stores.mounted(tmp_path / "disk", "24m") as disk:
        filler = Filler(disk, stage)
        with pytest.raises(StageFailed, match=r"the disk is full: .*B needed, .*B free; free some"):
            run(small.recipe(), disk / "w", Options(workers=1, until="kernel"), filler)
        assert verify_workspace(disk / "w").damage == ()
        assert stage not in small.seals(disk / "w")
        filler.file.unlink()
        small.audit(disk / "w", workers=1, until="kernel")
        assert differences(tmp_path / "reference", disk / "w") == []
        assert verify_workspace(disk / "w").damage == ()
