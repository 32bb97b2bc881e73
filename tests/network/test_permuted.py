"""Permuted networks: the same numbers in every tensor, another order, one order a channel."""

from __future__ import annotations

import torch
from torch import nn

from krepes_ooc.network.frozen import freeze
from krepes_ooc.network.permuted import permuted_network


def build() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 5)
    )
    norm = module[1]
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(6) + 0.5)
    return module


def test_every_tensor_keeps_its_numbers_and_changes_their_order() -> None:
    network = freeze(build())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    permuted = permuted_network(network, seed=3, draw=1).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])  # the network itself is not touched
        assert torch.equal(permuted[name].flatten().sort().values, tensor.flatten().sort().values)
        if tensor.numel() > 1:
            assert not torch.equal(permuted[name], tensor), name


def test_draws_are_keyed() -> None:
    network = freeze(build())
    states = [permuted_network(network, *key).state_dict() for key in ((3, 1), (3, 1), (3, 2))]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["inner.0.weight"], states[2]["inner.0.weight"])
    first, last = states[0]["inner.0.weight"].flatten(), network.inner[0].weight.flatten()
    assert (first != last).float().mean() > 0.9  # no identity, no shift of a few


def test_a_channel_keeps_its_statistics_together() -> None:
    network = freeze(build())
    norm, moved = network.inner[1], permuted_network(network, 0, 1).inner[1]
    order = [int((norm.weight == value).nonzero()) for value in moved.weight]
    for key in ("bias", "running_mean", "running_var"):
        assert torch.equal(getattr(moved, key), getattr(norm, key)[order]), key


def test_a_shared_tensor_is_permuted_once() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    module = nn.Sequential(shared, nn.ReLU(), nn.Linear(4, 4))
    module[2].weight = shared.weight
    permuted = permuted_network(freeze(module), 0, 1).inner
    assert permuted[0].weight is permuted[2].weight
    assert torch.equal(
        permuted[0].weight.flatten().sort().values, shared.weight.flatten().sort().values
    )
