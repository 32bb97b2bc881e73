"""What the kill campaign counts: tasks in flight, and units that were computed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from krepes_ooc.storage.stage_record import StageRecord
from tests import small
from tests.crash import kill_and_resume
from tests.crash.kill_and_resume import Begun, Diary


def write(diary: Diary, *lines: tuple[str, str]) -> None:
    with diary.path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_what_is_begun_and_not_ended_is_in_flight(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "w.diary")
    assert diary.runs() == []
    write(diary, ("run", ""), ("begin", "a"), ("begin", "b"), ("end", "a"), ("unit", "kernel 0"))
    begun = Begun(diary)
    assert [dict(lost) for lost in diary.in_flight()] == [{"b": 1}]
    write(diary, ("run", ""), ("begin", "b"), ("end", "b"), ("unit", "kernel 1"), ("begin", "a"))
    assert begun.count() == 2
    assert diary.resumed() == 1
    assert [dict(lost) for lost in diary.in_flight()] == [{"b": 1}, {"a": 1}]
    assert diary.units() == {"kernel 0": 1, "kernel 1": 1}


def test_a_run_writes_down_its_tasks_and_units(tmp_path: Path) -> None:
    given = small.arguments(tmp_path / "w", "--until", "kernel")
    assert not kill_and_resume.run_and_kill("digits", tmp_path / "w", given[4:], 100)
    diary = kill_and_resume.diary_of(tmp_path / "w")
    assert [lost.total() for lost in diary.in_flight()] == [0]
    stages = {key.split()[0] for key in diary.units()}
    assert {"features", "audited", "kernel"} <= stages
    assert set(diary.units().values()) == {1}


@pytest.mark.crash
def test_blocks_that_are_needlessly_computed_again_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, campaign_row: Callable[..., None]
) -> None:
    monkeypatch.setattr(StageRecord, "done", lambda record: {})
    changes = ("source.limit=1700", "stages.features.block_rows=256", "stages.audited.fit=40")
    given = small.arguments(tmp_path, "--until", "kernel", changes=changes)[4:]
    tally = kill_and_resume.campaign("digits", 8, 1, given, tmp_path)
    campaign_row(cases=tally.kills)
    assert tally.recomputed > 0
    assert any("computed again" in words for words in tally.wrong)
