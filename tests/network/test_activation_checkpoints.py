"""Networks with activation checkpointing: the rows of the same network without it."""

from __future__ import annotations

import threading
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import checkpoint as torch_checkpoint

from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features
from krepes_ooc.jacobian.self_check import self_check
from krepes_ooc.network.activation_checkpoints import without_checkpoints
from krepes_ooc.network.frozen import freeze

INPUTS = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


class Block(nn.Module):
    """Own parameters, which only a second run of the module reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(8, 8) / 3), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.tanh(x @ self.weight))


class Net(nn.Module):
    """Layers, a block that runs twice and a chain, checkpointed in one of the forms of torch."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.last, self.block = nn.Linear(6, 8), nn.Linear(8, 4), Block()
        self.chain = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())

    def part(self, function: Any, x: torch.Tensor) -> torch.Tensor:
        if self.form == "plain":
            return function(x)
        reentrant = self.form == "reentrant"
        return torch_checkpoint.checkpoint(function, x, use_reentrant=reentrant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.part(lambda value: torch.tanh(self.first(value)), x)
        x = self.part(self.block, self.part(self.block, x))
        if self.form == "plain":
            return self.last(self.chain(x))
        reentrant = self.form == "reentrant"
        chained = torch_checkpoint.checkpoint_sequential(self.chain, 2, x, use_reentrant=reentrant)
        return self.last(chained)


def rows(form: str, kind: Literal["auto", "sketch"]) -> Any:
    torch.manual_seed(0)
    network = freeze(Net(form))
    settings = FeatureSettings(kind=kind, probes=1, deflated_probes=0, sketch=512)
    features = open_features(network, settings, INPUTS)
    self_check(network, features, INPUTS[:2])
    return features.rows(INPUTS)[0]


@pytest.mark.parametrize("kind", ["auto", "sketch"])
@pytest.mark.parametrize("form", ["reentrant", "not reentrant"])
def test_rows_are_those_without_checkpoints(form: str, kind: Any) -> None:
    np.testing.assert_array_equal(rows(form, kind), rows("plain", kind))


@pytest.mark.parametrize("reentrant", [True, False])
def test_outside_a_frozen_network_checkpoints_stay(reentrant: bool) -> None:
    """The training of a script that audits its network goes on as before."""
    calls: list[bool] = []

    def part(x: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return torch.tanh(x) ** 2

    def runs() -> int:
        calls.clear()
        x = torch.ones(3, requires_grad=True)
        torch_checkpoint.checkpoint(part, x, use_reentrant=reentrant).sum().backward()
        return len(calls)

    elsewhere: list[int] = []
    with without_checkpoints():
        assert runs() == 1
        other = threading.Thread(target=lambda: elsewhere.append(runs()))
        other.start()
        other.join()
        assert runs() == 1
    assert (elsewhere, runs()) == ([2], 2)
