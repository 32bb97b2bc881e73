"""A run leaves a record of itself, however it ends; a record never fails a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from krepes_ooc.errors import StageFailed
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.run_history import Summary, read_last, recorded_run
from krepes_ooc.storage.workspace import Workspace
from tests import small


def record(space: Workspace, error: BaseException | None = None, ran: bool = True) -> None:
    summary = Summary(space.root, ran=["features"] if ran else [])
    with recorded_run(space, Options(workers=2), summary):
        if error is not None:
            raise error


def test_what_is_recorded(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    space.create("digits")
    assert read_last(space) is None
    record(space, ran=False)
    assert read_last(space) is None
    record(space)
    found: Any = read_last(space)
    assert (found["outcome"], found["ran"]) == ("done", ["features"])
    assert found["options"]["workers"] == 2
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"] != "not installed"
    assert 0 <= found["seconds"] < 60
    assert found["peak_bytes"] > 2**20


@pytest.mark.parametrize(
    ("error", "told"),
    [(StageFailed("too hot"), "StageFailed: too hot"), (RuntimeError("boom"), "unexpected error")],
)
def test_failures_are_recorded(tmp_path: Path, error: Exception, told: str) -> None:
    space = Workspace(tmp_path)
    space.create("digits")
    with pytest.raises(type(error)):
        record(space, error, ran=False)
    found: Any = read_last(space)
    assert told in found["outcome"]


def test_a_record_that_cannot_be_written_or_read_is_no_error(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    space.create("digits")
    (space.private / "runs").write_text("in the way")
    record(space)
    assert read_last(space) is None
    (space.private / "runs").unlink()
    (space.private / "runs").mkdir()
    (space.private / "runs" / "9.json").write_text("{")
    (space.private / "runs" / "8.json").write_text("[]")
    assert read_last(space) is None


def test_status_tells_the_last_run(tmp_path: Path) -> None:
    from krepes_ooc import status

    small.audit(tmp_path, until="features")
    found = status(tmp_path)
    assert found["last_run"]["ran"] == ["pretrain", "features"]
    sealed = next(row for row in found["stages"] if row["stage"] == "features")
    assert sealed["bytes"] > 0
    assert sealed["peak_bytes"] > 0


def test_plain_lines_tell_rate_and_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from krepes_ooc.core import progress_lines

    now = [100.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: now[0])
    lines = progress_lines.Lines(click.echo)
    lines.begin("features", 400, 100)
    now[0] += 30
    lines.advance(50, 3 * 2**30)
    now[0] += 4000
    lines.advance(50, 0)
    lines.begin("moments", 7, 0)
    now[0] += 11
    lines.advance(0, 0)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "features: 400 units, 100 of 400 on disk"
    assert said[1] == "features: 150 of 400, 102.4 MiB/s, 2 min 30 s left"
    assert said[2].endswith(", 2 h 14 min left")
    assert said[4] == "moments: 0 of 7"


def test_units_of_a_stage_that_announced_none_are_not_counted_to_the_one_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from krepes_ooc.core import progress_lines

    now = [100.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: now[0])
    lines = progress_lines.Lines(click.echo)
    lines.begin("randomised", 11, 0)
    now[0] += 11
    # A stage never prints more units than it has
    lines.advance(12)
    lines.end("randomised", 11.0)
    now[0] += 11
    lines.advance(2)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "randomised: 11 units",
        "randomised: 11 of 11, 0 s left",
        "randomised: sealed in 11.0 s",
    ]
