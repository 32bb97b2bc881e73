"""The cost of stage fidelity, quantity by quantity, for audits of several sizes."""

from __future__ import annotations

from typing import Any

import pytest

from krepes_ooc.stages.fidelity.stage import FidelitySettings, estimate_cost
from tests.stages.cost_cases import SIZES, labels, totals

SETTINGS = [FidelitySettings()]
# Name of the sizes, place of the settings, totals
TOTALS: list[tuple[str, int, dict[str, Any]]] = [
    (
        "digits",
        0,
        {
            "units": 1,
            "disk": 32768,
            "memory": 25159680,
            "flops": 3407872000.0,
            "bytes_read": 21299200000.0,
            "float64": True,
        },
    ),
    (
        "unlabelled",
        0,
        {"units": 1, "disk": 32768, "memory": 779904000, "flops": 440000000000.0, "float64": True},
    ),
    (
        "wide",
        0,
        {
            "units": 1,
            "disk": 32768,
            "memory": 7833600000,
            "flops": 3200000000000.0,
            "bytes_read": 1280000000000.0,
            "float64": True,
        },
    ),
    (
        "few",
        0,
        {
            "units": 1,
            "disk": 32768,
            "memory": 1600,
            "flops": 1800.0,
            "bytes_read": 960000.0,
            "float64": True,
        },
    ),
]


@pytest.mark.parametrize(("name", "place", "expected"), TOTALS)
def test_totals_of_every_quantity(name: str, place: int, expected: dict[str, Any]) -> None:
    assert totals(estimate_cost(SIZES[name], SETTINGS[place])) == expected


def test_every_term_names_its_array() -> None:
    found = labels(estimate_cost(SIZES["digits"], SETTINGS[-1]))
    assert all(len(label) > 5 for label in found)
    assert "total" not in found
