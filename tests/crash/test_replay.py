"""Whole files laid in the place of others: a short campaign, and the long one of ``make crash``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash import replay
from tests.crash.share import share_of


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_short_campaign(tmp_path: Path) -> None:
    tally = replay.campaign(tmp_path, 8, seed=5, trained=False)
    assert tally.silent == []
    assert tally.not_repaired == []
    assert tally.harms.total() == 8
    assert tally.named + tally.stale + tally.unread > 0


@pytest.mark.crash
@pytest.mark.timeout(7200)
def test_long_campaign(tmp_path: Path, campaign_row: Callable[..., None]) -> None:
    tally = replay.campaign(tmp_path, share_of(1000, 100), seed=0)
    cases = tally.harms.total()
    campaign_row(cases=cases, silent=len(tally.silent), not_repaired=len(tally.not_repaired))
    print(tally)
    assert tally.silent == []
    assert tally.not_repaired == []
    assert cases == share_of(1000, 100)
    kinds = {"chunk", "seal.json", "begun.json", "journal-0000.jsonl", "zarr.json", "cache"}
    assert kinds | {"checkpoint", "training.pt", "partial"} <= tally.files.keys()
    harms = ("exchange", "replay", "earlier", "flip")
    assert min(tally.harms[harm] for harm in harms) >= share_of(5)
    assert min(tally.named, tally.unharmed, tally.unread) >= share_of(100)
