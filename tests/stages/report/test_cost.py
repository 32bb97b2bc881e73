"""The cost of stage report, quantity by quantity, for audits of several sizes."""

from __future__ import annotations

from dataclasses import replace
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


def test_every_card_and_no_page_of_aggregates_has_pictures() -> None:
    sizes = replace(SIZES["digits"], n_values=96 * 96 * 3)
    hidden, none, few, all_of_them, more = (
        estimate_cost(sizes, ReportSettings(samples=samples)).memory.bytes
        for samples in ("hidden", 0, 24, sizes.n_explained, 10**6)
    )
    assert hidden < none < few < all_of_them == more
    # Pictures of a card, in copies of their text
    assert few - none == 24 * 14 * 96 * 96 * 3 * 24
