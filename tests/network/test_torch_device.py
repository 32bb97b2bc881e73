"""Rows of a network on another device, as far as this can be seen without one: torch's meta device.

Its tensors have shapes and no numbers. Adding one to a tensor of the CPU, or asking for its number,
is an error, so that a tensor made on the wrong device, or a hidden wait, is found here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from krepes_ooc.jacobian import sketch
from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features
from krepes_ooc.network.torch_device import available_device, device_of


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Embedding(11, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x.long())
        return self.out(self.norm(h + self.attend(h, h, h)[0]).mean(1))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 4)
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


CASES: dict[str, tuple[Any, Any, str]] = {
    "factors": (mlp, lambda draw: draw.normal(size=(8, 6)).astype("f4"), "factors"),
    "sketch": (mlp, lambda draw: draw.normal(size=(8, 6)).astype("f4"), "sketch"),
    "images": (images, lambda draw: draw.normal(size=(8, 3, 8, 8)).astype("f4"), "sketch"),
    "tokens": (Tokens, lambda draw: draw.integers(0, 11, (8, 5)), "sketch"),
}


def opened(name: str) -> tuple[Any, Any]:
    make, inputs, kind = CASES[name]
    torch.manual_seed(0)
    provided = inputs(np.random.default_rng(0))
    return open_features(make(), FeatureSettings(kind=kind, sketch=64), provided), provided


@pytest.mark.parametrize("name", CASES)
def test_a_map_on_another_device_is_the_same_map(name: str):
    shared, provided = opened(name)
    moved = shared.to("cpu")
    assert moved.layout == shared.layout
    for result, wanted in zip(moved.rows(provided), shared.rows(provided), strict=True):
        np.testing.assert_array_equal(result, wanted)
    assert device_of(moved.network).type == available_device("cpu") == "cpu"


def fake_rows(name: str) -> torch.Tensor:
    """The rows of a batch on the meta device, before they come back."""
    shared, provided = opened(name)
    came: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        moved = shared.to("meta")
        patch.setattr(torch.Tensor, "numpy", lambda tensor: came.append(tensor))
        patch.setattr(torch.Tensor, "cpu", lambda tensor: tensor)
        moved.rows(provided)
    return came[0]


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_a_batch_is_on_the_networks_device(name: str):
    rows = fake_rows(name)
    assert rows.device.type == "meta"
    assert rows.shape[0] == 8


def test_a_tensor_on_the_wrong_device_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sketch._FoldSketch, "move", lambda self, device: None)
    with pytest.raises(RuntimeError, match="device"):
        fake_rows("sketch")
