"""SIGKILL at random instants, for every objective; the short version is in tests/runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from krepes_ooc.stages.newton.objectives.registry import OBJECTIVES
from tests.crash import kill_and_resume
from tests.crash.share import share_of

NAMES = tuple(OBJECTIVES)
SMALLER = ("stages.pretrain.epochs=8", "stages.audited.audit=60", "stages.audited.fit=200")


@pytest.mark.crash
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("objective", NAMES)
def test_kills(tmp_path: Path, objective: str, campaign_row: Callable[..., None]) -> None:
    changes = (*SMALLER, f"stages.newton.objective={objective}")
    extra = [part for change in changes for part in ("--set", change)]
    tally = kill_and_resume.campaign(
        "digits", share_of(20), NAMES.index(objective), extra, tmp_path
    )
    # A workspace that differs after a kill was wrong in silence, and nothing repairs it.
    campaign_row(cases=tally.kills, silent=len(tally.wrong))
    assert tally.wrong == []
    assert tally.recomputed == 0
    assert max(tally.in_flight) <= kill_and_resume.WORKERS
