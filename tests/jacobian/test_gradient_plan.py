"""Ways to the gradients of a network: closed ones of layers, and those found by a trial."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from krepes_ooc.jacobian import gradient_plan
from krepes_ooc.jacobian.gradient_plan import GradientTrial, plan_rules
from krepes_ooc.jacobian.jacobian import Jacobian
from krepes_ooc.network.frozen import freeze

ROWS = np.random.default_rng(1).normal(size=(8, 12)).astype(np.float32)


class OwnNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Block(nn.Module):
    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(24), norm(24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(functional.gelu(self.up(self.second(self.first(x)))))


def blocks(norm: type[nn.Module], depth: int = 16) -> nn.Module:
    torch.manual_seed(0)
    body = [Block(norm) for _ in range(depth)]
    head = (nn.Flatten(), nn.Linear(72, 8))
    return nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(4, 24), *body, *head)


def count_records(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[int, set[str]]:
    """Recorded passes of a plan, and the methods that it chose."""
    count = 0
    record = Jacobian.record

    def counted(jacobian: Jacobian, inputs: torch.Tensor) -> Any:
        nonlocal count
        count += 1
        return record(jacobian, inputs)

    monkeypatch.setattr(Jacobian, "record", counted)
    network = freeze(module)
    rules = plan_rules(network, network.trainable, torch.tensor(ROWS))
    monkeypatch.undo()
    return count, {rule.method for rule in rules}


def test_a_norm_with_its_own_forward_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = count_records(blocks(nn.LayerNorm), monkeypatch)
    own = count_records(blocks(OwnNorm), monkeypatch)
    assert own == plain
    assert own[1] == {"layer"}


class Opaque(nn.Module):
    """A weight that no batched way sees: it is used in a product without a layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.gain = (
            nn.Parameter(torch.randn(width, width) / 5),
            nn.Parameter(torch.ones(3, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t().contiguous().view(*self.weight.shape) * self.gain


def test_bad_ways_are_found_by_class_and_never_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, _ = count_records(blocks(Opaque, 2), monkeypatch)
    many, methods = count_records(blocks(Opaque, 16), monkeypatch)
    assert "vjp" in methods
    assert many <= few + 8, "the trials grow with the classes, not with the layers"


class Attention(nn.Module):
    """Self-attention with layers of its own: the bias of the keys has the gradient zero."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.norm = OwnNorm(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            f(x).unflatten(-1, (3, 8)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
        return self.norm(x + (weights @ v).transpose(1, 2).flatten(2))


def test_a_gradient_of_zero_is_judged_beside_the_whole_row() -> None:
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.Linear(96, 8))
    module = nn.Sequential(
        nn.Unflatten(1, (4, 3)), nn.Linear(3, 24), Attention(), Attention(), *head
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    network = freeze(module)
    rules = plan_rules(network, network.trainable, torch.tensor(ROWS))
    assert {rule.method for rule in rules} == {"layer"}
    # Alone it would be noise against noise: the scale is that of all audited parameters.
    trial = GradientTrial(network, network.trainable, torch.tensor(ROWS[:2]))
    name = "2.key.bias"
    assert (
        trial.wrong_parameters({name: (gradient_plan.GradientRule("layer", "2.key", (name,)),)})
        == []
    )


# Layers and their subclasses -----------------------------------------------------------------


class Conv1D(nn.Module):
    """The linear layer of GPT-2 in transformers: a weight [input, output]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(0.3 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class OwnRms(nn.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)
        return x * scale * self.weight


class PictureNorm(nn.LayerNorm):
    """Layer norm over the channels of pictures [sample, channel, y, x], as ConvNeXt has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        x = functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def picture_norms(channels: int) -> nn.Module:
    """Twelve numbers as pictures of 2 x 3 x 2, through convolutions and norms."""
    body = (nn.Conv2d(2, channels, 1), PictureNorm(channels), nn.GELU(), PictureNorm(channels))
    return nn.Sequential(nn.Unflatten(1, (2, 3, 2)), *body, nn.Flatten(), nn.Tanh())


CLOSED = {
    "LayerNorm over channels": lambda: picture_norms(5),
    "SyncBatchNorm": lambda: nn.Sequential(nn.Linear(12, 8), nn.SyncBatchNorm(8), nn.Linear(8, 3)),
    "Conv1D": lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), Conv1D(6, 4), nn.GELU(), nn.Flatten()),
    "own RMSNorm": lambda: nn.Sequential(nn.Linear(12, 8), OwnRms(8), nn.Tanh(), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_layers_of_other_libraries_have_closed_gradients(name: str) -> None:
    torch.manual_seed(0)
    network = freeze(CLOSED[name]())
    rules = plan_rules(network, network.trainable, torch.tensor(ROWS))
    assert {rule.method for rule in rules} == {"layer"}


def test_a_norm_whose_axis_cannot_be_told_by_shape_is_run_again() -> None:
    # As many channels as columns: the closed gradient takes the last axis, and the trial sees it.
    torch.manual_seed(0)
    network = freeze(picture_norms(2))
    rules = plan_rules(network, network.trainable, torch.tensor(ROWS))
    methods = {name: rule.method for rule in rules for name in rule.parameters}
    assert {methods[name] for name in ("2.weight", "4.weight", "4.bias")} == {"vjp"}


class Standardised(nn.Linear):
    """A subclass whose gradient is not that of its class: it computes its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


class Weighed(nn.Linear):
    """Another one: its weight enters behind the product too, which no layer's gradient shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias) / self.weight.norm()


@pytest.mark.parametrize(("kind", "way"), [(Standardised, "computed"), (Weighed, "vjp")])
def test_a_subclass_that_computes_something_else_has_another_way(
    kind: type[nn.Linear], way: str
) -> None:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(kind(12, 8), nn.Tanh(), nn.Linear(8, 3)))
    rules = plan_rules(network, network.trainable, torch.tensor(ROWS))
    methods = {name: rule.method for rule in rules for name in rule.parameters}
    assert methods["0.weight"] == way
    assert methods["2.weight"] == "layer"
