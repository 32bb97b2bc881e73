"""The cost of stage report, quantity by quantity, for audits of several sizes."""

from __future__ import annotations

from typing import Any

import pytest

from krepes_ooc.stages.report.stage import ReportSettings, estimate_cost
from tests.stages.cost_cases import SIZES, labels, totals

SETTINGS = [ReportSettings()]
# Name of the sizes, place of the settings, totals
TOTALS: list[tuple[str, int, dict[str, Any]]] = [
    ("digits", 0, {"units": 1, "disk": 2097152, "memory": 35775488}),
    ("unlabelled", 0, {"units": 1, "disk": 2097152, "memory": 92616192}),
    ("wide", 0, {"units": 1, "disk": 2097152, "memory": 174657192}),
    ("few", 0, {"units": 1, "disk": 2097152, "memory": 33555192}),
]


@pytest.mark.parametrize(("name", "place", "expected"), TOTALS)
def test_totals_of_every_quantity(name: str, place: int, expected: dict[str, Any]) -> None:
    assert totals(estimate_cost(SIZES[name], SETTINGS[place])) == expected


def test_every_term_names_its_array() -> None:
    found = labels(estimate_cost(SIZES["digits"], SETTINGS[-1]))
    assert all(len(label) > 5 for label in found)
    assert "total" not in found
