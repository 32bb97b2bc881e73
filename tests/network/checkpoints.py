"""Factories of the networks whose checkpoints are read, and how a test reads or refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import KrepesError
from krepes_ooc.network.frozen import FrozenNetwork
from krepes_ooc.network.spec import NetworkSpec, load_network

FACTORIES = """
import torch
from torch import nn


def batch_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))


def linear():
    return nn.Linear(12, 8)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.body = nn.Linear(12, 12, bias=False), nn.Linear(12, 12)
        self.last = nn.Linear(12, 12, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.body(torch.tanh(self.first(x)))))


def old_weight_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.utils.weight_norm(nn.Linear(16, 8), dim=1))


def old_spectral_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.utils.spectral_norm(nn.Linear(16, 8)))


def old_weight_norm_of_a_convolution():
    return nn.Sequential(nn.Unflatten(1, (3, 4)), nn.utils.weight_norm(nn.Conv1d(3, 5, 2)))


def new_weight_norm():
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(nn.Linear(12, 16), norm(nn.Linear(16, 8), dim=1))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 8)
        self.register_buffer("mask", torch.ones(12, dtype=torch.bool))
        self.register_buffer("place", torch.arange(8))

    def forward(self, x):
        return self.layer(x * self.mask)
"""
X = np.random.default_rng(0).normal(size=(6, 12)).astype("f4")


def built(name: str, seed: int = 1) -> nn.Module:
    """A trained network, as far as its weights can tell."""
    space: dict[str, Any] = {}
    exec(FACTORIES, space)
    torch.manual_seed(seed)
    net: nn.Module = space[name]()
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand_like(tensor))
    return net.eval()


def load(folder: Path, factory: str, weights: str, **keys: Any) -> FrozenNetwork:
    values = {"factory": f"nets.py:{factory}", "weights": weights, **keys}
    return load_network(read_settings(NetworkSpec, values, "network"), None, folder)


def assert_same(network: nn.Module, net: nn.Module) -> None:
    with torch.no_grad():
        assert torch.equal(network(torch.tensor(X)), net(torch.tensor(X)).flatten(1))


def refusal(folder: Path, factory: str, weights: str, **keys: Any) -> str:
    with pytest.raises(KrepesError) as caught:
        load(folder, factory, weights, **keys)
    assert caught.value.exit_code in (1, 2)
    return str(caught.value)
