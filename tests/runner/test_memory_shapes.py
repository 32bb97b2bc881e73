"""Measured peak of every stage is within its plan at extreme shapes, stage after stage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runner.shapes import SHAPES
from tests.small import ROOT

MEMORY = 4 << 30
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told by /proc")


def rows_of(folder: Path, shape: str, workers: int) -> list[dict[str, Any]]:
    given = [str(folder), shape, str(MEMORY), str(workers)]
    command = [sys.executable, "-m", "tests.runner.shapes", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(rows) > 1
    return rows


def above_plan(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row["anonymous_peak"] <= row["planned_memory"] <= MEMORY]


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "columns"])
def test_every_stage_stays_within_its_plan(
    tmp_path: Path, shape: str, record_property: Callable[[str, Any], None]
) -> None:
    rows = rows_of(tmp_path, shape, workers=1)
    above = above_plan(rows)
    record_property("campaign", (len(rows), len(above), 0))
    record_property("figures", rows)
    assert above == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_columns_in_small(tmp_path: Path) -> None:
    """The shape whose memory no landmark and no network explains, with two workers."""
    assert above_plan(rows_of(tmp_path, "columns", workers=2)) == []


def test_a_peak_above_the_plan_is_found() -> None:
    kept = {"planned_memory": 10, "anonymous_peak": 10}
    over = {"planned_memory": 10, "anonymous_peak": 11}
    assert above_plan([kept, over]) == [over]
