"""The cost of stage concepts, quantity by quantity, for audits of several sizes."""

from __future__ import annotations

from typing import Any

import pytest

from krepes_ooc.stages.concepts.stage import ConceptsSettings, estimate_cost
from tests.stages.cost_cases import SIZES, labels, totals

SETS = {"a": {"positive": {"ids": [1]}}, "b": {"positive": {"ids": [2]}}}
SETTINGS = [ConceptsSettings(), ConceptsSettings(sets=SETS, samples=50)]
# Name of the sizes, place of the settings, totals
TOTALS: list[tuple[str, int, dict[str, Any]]] = [
    ("digits", 0, {"units": 1, "memory": 614400, "skipped": True}),
    ("unlabelled", 0, {"units": 1, "memory": 8000000, "skipped": True}),
    ("wide", 0, {"units": 1, "memory": 6400000, "skipped": True}),
    ("few", 0, {"units": 1, "memory": 96, "skipped": True}),
    ("digits", 1, {"units": 3, "disk": 25408, "memory": 13279232, "flops": 118656000.0}),
    ("unlabelled", 1, {"units": 3, "disk": 193024, "memory": 114050816, "flops": 480000000.0}),
    ("wide", 1, {"units": 3, "disk": 144128, "memory": 5424446464, "flops": 120000000000.0}),
    ("few", 1, {"units": 3, "disk": 144, "memory": 5024, "flops": 12000.0}),
]


@pytest.mark.parametrize(("name", "place", "expected"), TOTALS)
def test_totals_of_every_quantity(name: str, place: int, expected: dict[str, Any]) -> None:
    assert totals(estimate_cost(SIZES[name], SETTINGS[place])) == expected


def test_every_term_names_its_array() -> None:
    found = labels(estimate_cost(SIZES["digits"], SETTINGS[-1]))
    assert all(len(label) > 5 for label in found)
    assert "total" not in found
