from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import verify


def test_rates_of_a_small_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "ROWS", 256)
    found = verify.measure(tmp_path, 3)
    assert found["files"] == 6
    assert found["bytes"] == 6 * (256 * verify.FEATURES * 2 + 4)
    assert found["verify_over_checksum"] > 0
