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
            "memory": 12492800,
            "worker_memory": 9553280,
            "flops": 1573683200.0,
            "bytes_read": 798720000.0,
            "float64": True,
        },
    ),
    (
        "unlabelled",
        0,
        {
            "units": 1,
            "disk": 32768,
            "memory": 262144000,
            "worker_memory": 264000000,
            "flops": 150800000000.0,
            "float64": True,
        },
    ),
    (
        "wide",
        0,
        {
            "units": 1,
            "disk": 32768,
            "memory": 6553600000,
            "worker_memory": 963552000,
            "flops": 4160000000000.0,
            "bytes_read": 48000000000.0,
            "float64": True,
        },
    ),
    (
        "few",
        0,
        {
            "units": 1,
            "disk": 32768,
            "memory": 1936,
            "worker_memory": 3384,
            "flops": 1590.0,
            "bytes_read": 36000.0,
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
