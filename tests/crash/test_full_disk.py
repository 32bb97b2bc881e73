"""A disk that fills up in the middle of a run: told at once with both numbers, nothing lost."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.engine.run_control import Silent
from krepes_ooc.errors import StageFailed
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import verify_workspace
from krepes_ooc.stages.report import stage as report
from krepes_ooc.storage import stage_record
from krepes_ooc.storage.journal import Journal
from tests import small
from tests.crash.compare import differences
from tests.storage import stores

SECONDS = 5.0
FULL = r"the disk is full: (.*B) needed, (.*B) free; free some space and run the same command again"
STAGES = (
    *("features", "kernel", "report"),
    *(
        pytest.param(name, marks=pytest.mark.crash)
        for name in ("landmarks", "audited", "moments", "newton", "influence")
    ),
)


class Filler(Silent):
    """Fills the disk when a stage begins.

    Args:
        disk: where it is mounted.
        stage: the stage; empty: whoever calls ``fill``.
    """

    def __init__(self, disk: Path, stage: str = "") -> None:
        self._disk, self._stage, self.file = disk, stage, disk / "filler"
        self.when = 0.0

    def begin(self, stage: str, total: int, done: int) -> None:
        if stage == self._stage:
            self.fill()

    def fill(self) -> None:
        if not self.when:
            with contextlib.suppress(OSError):  # the run writes meanwhile: full is full
                stores.fill_disk(self._disk, 0)
            self.when = time.monotonic()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe.load(str(small.own_recipe(tmp_path_factory.mktemp("recipe"))))


@pytest.fixture(scope="module")
def reference(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("reference") / "w"
    run(recipe, workspace, Options(workers=1))
    return workspace


def fills_up(recipe: Recipe, reference: Path, filler: Filler, stage: str, note: Any) -> None:
    """Run into the full disk, look at what is there, free the space, run to the same bits."""
    workspace = filler.file.with_name("w")
    with pytest.raises(StageFailed, match=FULL) as caught:
        run(recipe, workspace, Options(workers=1), filler)
    seconds = time.monotonic() - filler.when
    note("seconds", round(seconds, 3))
    note("said", str(caught.value))
    assert filler.when
    assert seconds < SECONDS
    assert caught.value.exit_code == 1
    assert verify_workspace(workspace).damage == ()
    assert stage not in small.seals(workspace)
    filler.file.unlink()
    run(recipe, workspace, Options(workers=1))
    assert differences(reference, workspace) == []
    assert verify_workspace(workspace).damage == ()


@pytest.mark.parametrize("stage", STAGES)
def test_disk_fills_up(
    tmp_path: Path, recipe: Recipe, reference: Path, stage: str, record_property: Any
) -> None:
    with stores.mounted(tmp_path / "disk", "24m") as disk:
        fills_up(recipe, reference, Filler(disk, stage), stage, record_property)


def at_the_journal(patch: pytest.MonkeyPatch, filler: Filler) -> str:
    append = Journal.append

    def call(journal: Journal, unit: Any) -> None:
        if journal.path.parent.name == "kernel":
            filler.fill()
        append(journal, unit)

    patch.setattr(Journal, "append", call)
    return "kernel"


def at_the_seal(patch: pytest.MonkeyPatch, filler: Filler) -> str:
    write = stage_record.write_checksummed_file

    def call(path: Path, *rest: Any, **more: Any) -> None:
        if path.name == "seal.json" and path.parent.name == "kernel":
            filler.fill()
        write(path, *rest, **more)

    patch.setattr(stage_record, "write_checksummed_file", call)
    return "kernel"


def at_the_report(patch: pytest.MonkeyPatch, filler: Filler) -> str:
    write = report.write_atomic

    def call(path: Path, *rest: Any, **more: Any) -> None:
        if path.name == "report.html":
            filler.fill()
        write(path, *rest, **more)

    patch.setattr(report, "write_atomic", call)
    return "report"


@pytest.mark.parametrize("place", [at_the_journal, at_the_seal, at_the_report])
def test_disk_fills_up_at_the_last_moment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Recipe,
    reference: Path,
    place: Callable[[pytest.MonkeyPatch, Filler], str],
    record_property: Any,
) -> None:
    with stores.mounted(tmp_path / "disk", "24m") as disk:
        filler = Filler(disk)
        stage = place(monkeypatch, filler)
        fills_up(recipe, reference, filler, stage, record_property)


def test_the_command_line_ends_within_seconds(tmp_path: Path, record_property: Any) -> None:
    """A process of its own, whose disk fills up while it works."""
    with stores.mounted(tmp_path / "disk", "24m") as disk:
        begun = disk / "w/.krepes/stages/features/begun.json"
        job = small.process(small.arguments(disk / "w", "--quiet"))
        while not begun.exists():
            assert job.poll() is None
            time.sleep(0.005)
        filler = Filler(disk)
        filler.fill()
        _, err = job.communicate(timeout=60)
        seconds = time.monotonic() - filler.when
        record_property("seconds", round(seconds, 3))
        record_property("said", err)
        assert job.returncode == 1
        assert re.search(FULL, err)
        assert err.count("\n") == 1
        assert seconds < SECONDS
        filler.file.unlink()
        small.audit(disk / "w")
        small.audit(tmp_path / "reference")
        assert differences(tmp_path / "reference", disk / "w") == []
