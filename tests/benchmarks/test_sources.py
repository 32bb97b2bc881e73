from __future__ import annotations

from pathlib import Path

from benchmarks import sources


def test_ratios_of_a_small_source(tmp_path: Path) -> None:
    found = sources.measure(tmp_path, pictures=60, rows=500, rounds=2)
    assert found["pictures"]["count"] == 60
    assert found["table"]["rows"] == 500
    floors = {"pictures": {"sha256_and_decode"}, "table": {"parse", "parse_by_pyarrow"}}
    for name, expected in floors.items():
        assert set(found[name]["seconds"]) == {*expected, "first", "second"}
        assert set(found[name]["first_over"]) == expected
        for floor, ratios in found[name]["first_over"].items():
            seconds = found[name]["seconds"]
            for kind in ("cpu", "elapsed"):
                assert ratios[kind] == seconds["first"][kind] / seconds[floor][kind] > 0
    assert not list(tmp_path.glob("cache-*"))
