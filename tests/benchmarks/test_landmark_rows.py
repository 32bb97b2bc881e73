"""The recorded figures of landmark rows are those that the table of the documents shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import landmark_rows

RESULTS = Path(__file__).parents[2] / "docs" / "results.md"


def test_the_table_is_that_of_the_recorded_figures() -> None:
    found = json.loads(landmark_rows.RESULTS.read_text())["digits-256"]
    assert set(found) == set(landmark_rows.ROWS)
    text = RESULTS.read_text()
    for rows, figures in found.items():
        line = re.search(rf"^\| `{rows}` \|(.*)\|$", text, re.MULTILINE)
        assert line is not None, rows
        shown = [float(cell) for cell in line[1].split("|")]
        expected = [figures[key] for key in landmark_rows.SHOWN]
        for value, wanted in zip(shown, expected, strict=True):
            assert abs(value - wanted) <= 0.0051 * max(1.0, abs(wanted)), (rows, value, wanted)
