from __future__ import annotations

from pathlib import Path

from benchmarks import sources


def test_ratios_of_a_small_source(tmp_path: Path) -> None:
    found = sources.measure(tmp_path, pictures=60, rows=500, rounds=2)
    assert found["pictures"]["count"] == 60
    assert found["table"]["rows"] == 500
    for name in ("pictures", "table"):
        assert set(found[name]["cpu_seconds"]) == {"floor", "first", "second"}
        assert found[name]["first_over_floor"] > 0
    assert not list(tmp_path.glob("cache-*"))
