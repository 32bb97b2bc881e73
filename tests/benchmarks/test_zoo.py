from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import zoo
from benchmarks.zoo_networks import NETWORKS, pictures
from krepes_ooc.jacobian.feature_map import open_features
from krepes_ooc.jacobian.sketched_features import SketchFeatures


def small(_: Any) -> Any:
    layers = (nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4, 3)), pictures(8)


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.mean((2, 3))) + torch.randn(3)


def test_a_right_network_has_its_three_figures() -> None:
    found = zoo.measure("torch:small", small)
    assert found["state"] == "right"
    assert found["ways"] == {"layer": 4}
    assert 0 < found["error"] < zoo.EXPECTED_ERROR
    assert found["row_cost"] > 0
    assert "| torch:small | 0.00 | layer 4 |" in zoo.table({"torch:small": found})


def test_rows_that_lack_a_parameter_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SketchFeatures.rows

    def opened(*given: Any) -> Any:
        """Right while it is opened: what is wrong from the start is tried in every way first."""
        found = open_features(*given)
        monkeypatch.setattr(SketchFeatures, "rows", lambda *a: (0.9 * rows(*a)[0], rows(*a)[1]))
        return found

    monkeypatch.setattr(zoo, "open_features", opened)
    found = zoo.measure("torch:small", small)
    assert found["state"] == "wrong"
    assert "**wrong**" in zoo.table({"torch:small": found})


def test_a_refusal_and_a_network_that_cannot_be_built_say_why() -> None:
    refused = zoo.measure("torch:noise", lambda _: (Noise(), pictures(8)))
    assert refused["state"] == "refused"
    assert "two runs on the same input differ" in refused["why"]
    absent = zoo.measure("no_such_library:x", small)
    assert absent["state"] == "not built"
    assert "1 refused, 1 not built" in zoo.table({"a": refused, "b": absent})


def test_the_zoo_has_about_sixty_networks_of_three_libraries() -> None:
    libraries = [name.partition(":")[0] for name in NETWORKS]
    assert len(libraries) >= 60
    assert set(libraries) == {"torchvision", "timm", "transformers"}
