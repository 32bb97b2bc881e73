"""Damage of every kind: a short campaign in ``make test``, the long one in ``make crash``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from krepes_ooc.storage.workspace import FOLDERS
from tests import small
from tests.crash import damage
from tests.crash.share import share_of


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_short_campaign(tmp_path: Path) -> None:
    tally = damage.campaign(tmp_path, 30, 12, 12, seed=5)
    assert tally.wrong == []
    assert tally.harms == {"flip": 30, "cut": 12, "delete": 12}
    assert tally.files["cache"] > 0
    assert tally.recomputed == tally.harmed_blocks


@pytest.mark.crash
@pytest.mark.timeout(7200)
def test_long_campaign(tmp_path: Path, campaign_row: Callable[..., None]) -> None:
    tally = damage.campaign(tmp_path, *map(share_of, (1000, 200, 200)), seed=0)
    silent = [text for text in tally.wrong if "not found" in text or "not named" in text]
    left = len(tally.wrong) - len(silent)
    campaign_row(cases=tally.harms.total(), silent=len(silent), not_repaired=left)
    assert tally.wrong == []
    assert tally.recomputed == tally.harmed_blocks >= share_of(10)


def test_what_is_harmed(tmp_path: Path) -> None:
    """Everything that is not a lock; so nothing new escapes the campaigns."""
    small.audit(tmp_path, workers=1)
    files = damage.harmed_files(tmp_path)
    known = {tmp_path / name for name in files}
    rest = {path for path in tmp_path.rglob("*") if path.is_file()} - known
    rest -= set((tmp_path / ".krepes/runs").iterdir())  # the diary: no result depends on it
    # Checksummed when they are read; a damaged one is measured again.
    rest -= set((tmp_path / ".krepes/openings").iterdir())
    assert {path.relative_to(tmp_path).as_posix() for path in rest} == {".krepes/lock"}
    # None of the folders may be a link.
    assert {p.name for p in (tmp_path / ".krepes").iterdir() if p.is_dir()} <= {*FOLDERS}
    kinds = {damage.kind_of(name) for name in files}
    assert kinds >= {"begun.json", "seal.json", "journal-0000.jsonl", "chunk", "checkpoint"}
    body = json.loads((tmp_path / ".krepes/recipe.json").read_bytes())["body"]
    assert body["recipe"] == "digits"
