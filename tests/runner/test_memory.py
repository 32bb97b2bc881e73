"""Peak anonymous memory of every stage in a fresh process is within its plan, and near it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.stages.registry import STAGES
from tests.runner.peaks import NEAR
from tests.small import ROOT

# Every stage but the demo trainer and those that are off; three once more with other settings.
OFF = {"pretrain", "retraining"}
COUNT, AGAIN = len({stage.name for stage in STAGES} - OFF), 3


@pytest.mark.crash
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told by /proc")
@pytest.mark.parametrize(
    ("samples", "landmarks", "memory", "workers"),
    [
        (8192, 1000, 2 << 30, 1),
        (8192, 700, 700 << 20, 2),
    ],
)
def test_peak_of_every_stage(
    tmp_path: Path,
    samples: int,
    landmarks: int,
    memory: int,
    workers: int,
    record_property: Callable[[str, Any], None],
) -> None:
    given = [str(value) for value in (tmp_path, samples, landmarks, memory, workers)]
    command = [sys.executable, "-m", "tests.runner.peaks", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    rows = json.loads(done.stdout)
    record_property("campaign", (len(rows), sum(row["peak"] > row["planned"] for row in rows), 0))
    record_property("figures", rows)
    assert len(rows) == COUNT + AGAIN
    for row in rows:
        assert row["workers"] == workers
        assert row["peak"] <= row["planned"] <= memory, row
        if workers == 1:  # the peaks of several workers need not come at the same moment
            assert row["planned"] <= NEAR * row["peak"], row
