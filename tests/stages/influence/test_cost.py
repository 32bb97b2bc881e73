"""The cost of stage influence, quantity by quantity, for audits of several sizes."""

from __future__ import annotations

from typing import Any

import pytest

from krepes_ooc.stages.influence.stage import InfluenceSettings, estimate_cost
from tests.stages.cost_cases import SIZES, labels, totals

SETTINGS = [InfluenceSettings(), InfluenceSettings(top=100)]
# Name of the sizes, place of the settings, totals
TOTALS: list[tuple[str, int, dict[str, Any]]] = [
    (
        "digits",
        0,
        {
            "units": 2,
            "disk": 3369600,
            "memory": 8027136,
            "worker_memory": 10485760,
            "parallel_tasks": 2,
            "flops": 766771200.0,
            "device_memory": 1835008,
            "device_task_memory": 14680064,
        },
    ),
    (
        "unlabelled",
        0,
        {
            "units": 11,
            "disk": 96800000,
            "memory": 213760000,
            "worker_memory": 40960000,
            "parallel_tasks": 11,
            "flops": 90112000000.0,
            "device_memory": 25408000,
            "device_task_memory": 57344000,
        },
    ),
    (
        "wide",
        0,
        {
            "units": 5,
            "disk": 161760000,
            "memory": 7124844544,
            "worker_memory": 309395456,
            "parallel_tasks": 5,
            "flops": 2621440000000.0,
            "device_memory": 1177088000,
            "device_task_memory": 229376000,
        },
    ),
    (
        "few",
        0,
        {
            "units": 1,
            "disk": 1600,
            "memory": 448,
            "worker_memory": 122880,
            "parallel_tasks": 1,
            "flops": 240.0,
            "device_memory": 216,
            "device_task_memory": 172032,
        },
    ),
    (
        "digits",
        1,
        {
            "units": 2,
            "disk": 6177600,
            "memory": 8027136,
            "worker_memory": 10485760,
            "parallel_tasks": 2,
            "flops": 766771200.0,
            "device_memory": 1835008,
            "device_task_memory": 14680064,
        },
    ),
    (
        "unlabelled",
        1,
        {
            "units": 11,
            "disk": 120560000,
            "memory": 213760000,
            "worker_memory": 40960000,
            "parallel_tasks": 11,
            "flops": 90112000000.0,
            "device_memory": 25408000,
            "device_task_memory": 57344000,
        },
    ),
    (
        "wide",
        1,
        {
            "units": 5,
            "disk": 172560000,
            "memory": 7124844544,
            "worker_memory": 309395456,
            "parallel_tasks": 5,
            "flops": 2621440000000.0,
            "device_memory": 1177088000,
            "device_task_memory": 229376000,
        },
    ),
    (
        "few",
        1,
        {
            "units": 1,
            "disk": 12400,
            "memory": 448,
            "worker_memory": 122880,
            "parallel_tasks": 1,
            "flops": 240.0,
            "device_memory": 216,
            "device_task_memory": 172032,
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
