"""The cost of stage alignment, quantity by quantity, for audits of several sizes."""

from __future__ import annotations

from typing import Any

import pytest

from krepes_ooc.stages.alignment.stage import AlignmentSettings, estimate_cost
from tests.stages.cost_cases import SIZES, labels, totals

SETTINGS = [AlignmentSettings()]
# Name of the sizes, place of the settings, totals
TOTALS: list[tuple[str, int, dict[str, Any]]] = [
    ("digits", 0, {"units": 1, "disk": 65536, "memory": 13590528, "flops": 89948160.0}),
    ("unlabelled", 0, {"units": 1, "disk": 65536, "memory": 127068672, "flops": 2800000000.0}),
    ("wide", 0, {"units": 1, "disk": 65536, "memory": 563200000, "flops": 806400000000.0}),
    ("few", 0, {"units": 1, "disk": 65536, "memory": 2656, "flops": 132.0}),
]


@pytest.mark.parametrize(("name", "place", "expected"), TOTALS)
def test_totals_of_every_quantity(name: str, place: int, expected: dict[str, Any]) -> None:
    assert totals(estimate_cost(SIZES[name], SETTINGS[place])) == expected


def test_every_term_names_its_array() -> None:
    found = labels(estimate_cost(SIZES["digits"], SETTINGS[-1]))
    assert all(len(label) > 5 for label in found)
    assert "total" not in found
