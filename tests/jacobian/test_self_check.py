from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian.autograd_reference import check_function
from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features
from krepes_ooc.jacobian.self_check import self_check
from krepes_ooc.network import zoo
from krepes_ooc.network.frozen import freeze
from tests.jacobian.tape_networks import CASES, build

INPUTS = np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return zoo.mlp(6, [9, 8], 5)


class Forged:
    """A feature map that spoils the gradient of one parameter."""

    def __init__(self, inner, name: str, spoil) -> None:
        self.inner, self.name, self.spoil = inner, name, spoil

    def __getattr__(self, key: str):
        return getattr(self.inner, key)

    def double(self):
        return Forged(self.inner.double(), self.name, self.spoil)

    def gradients(self, inputs, probe):
        for name, gradient in self.inner.gradients(inputs, probe):
            yield name, self.spoil(gradient) if name == self.name else gradient


def test_a_faithful_map_passes_and_says_so() -> None:
    report = self_check(network(), open_features(network(), FeatureSettings(), INPUTS), INPUTS)
    assert report.max_relative_error < 1e-12
    assert report.n_parameters == 6
    assert report.precision == "float64"
    assert report.words.startswith("all 6 parameters agree with autograd")
    assert 0 < report.seconds < 10


@pytest.mark.parametrize(
    "spoil",
    [torch.zeros_like, lambda g: g * 1.0001, lambda g: g * torch.nan, lambda g: g.flip(0)],
    ids=["missed", "a little wrong", "NaN", "samples swapped"],
)
@pytest.mark.parametrize("name", ["1.weight", "3.bias"])
def test_planted_misses_are_named(name: str, spoil) -> None:
    forged = Forged(open_features(network(), FeatureSettings(), INPUTS), name, spoil)
    with pytest.raises(NetworkError, match=rf"1 of 6 parameters are missed or wrong: {name} \(rel"):
        self_check(network(), forged, INPUTS)


def test_a_map_of_another_network_is_refused() -> None:
    other = network()
    with torch.no_grad():
        other[5].bias += 0.5
    report = open_features(other, FeatureSettings(), INPUTS)
    with pytest.raises(NetworkError, match=r"recording changes the outputs by 0\.5"):
        self_check(network(), report, INPUTS)


class Noisy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(6, 3)

    def forward(self, x):
        z = self.layer(x)
        if self.kind == "dropout":
            # Many outputs: two draws never agree by chance.
            return functional.dropout(z.repeat(1, 16), 0.5)
        if self.kind == "batch":
            return z - z.mean(dim=0)
        if self.kind == "nan":
            return torch.log(z - 1e9)
        return z + torch.zeros(3, 3, dtype=torch.float32).matmul(z.T).T


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dropout", "two runs on the same input differ"),
        ("batch", "a sample's output changes by .* of the largest with its batch"),
        ("nan", "outputs are NaN or infinite"),
    ],
)
def test_what_is_no_function_of_the_sample_is_refused(kind: str, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        check_function(freeze(Noisy(kind)), INPUTS)
    with pytest.raises(NetworkError, match=words):
        open_features(Noisy(kind), FeatureSettings(), INPUTS)


def test_a_network_that_fixes_its_precision_is_checked_in_float32() -> None:
    module = Noisy("float")
    report = self_check(module, open_features(module, FeatureSettings(), INPUTS), INPUTS)
    assert report.precision == "float32"
    assert report.max_relative_error < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_a_miss_in_any_kind_of_layer_is_named(case: str) -> None:
    """Every kind of module of the zoo: the largest gradient of its own parameters is dropped."""
    found_in, samples = build(case)
    inputs = samples.numpy()
    settings = FeatureSettings(kind="sketch", probes=1, deflated_probes=0, sketch=64)
    report = open_features(found_in, settings, inputs)
    probe = torch.linspace(-1.0, 1.5, found_in(samples).shape[1])
    sizes = {name: float(g.norm()) for name, g in report.gradients(samples, probe)}
    worst: dict[str, str] = {}
    for name in sorted(sizes, key=lambda name: sizes[name]):
        worst[type(found_in.inner.get_submodule(name.rpartition(".")[0])).__name__] = name
    for name in worst.values():
        with pytest.raises(NetworkError, match=r"1 of .* missed or wrong: ") as caught:
            self_check(found_in, Forged(report, name, torch.zeros_like), inputs[:2])
        assert name in caught.value.what
