"""Stored rows against autograd: parametrised layers are whole, planted misses are caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from krepes_ooc.core.feature_layout import LayerFactor
from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian import feature_map as feature_map_module
from krepes_ooc.jacobian.exact_features import FactorFeatures
from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features
from krepes_ooc.jacobian.self_check import self_check
from krepes_ooc.jacobian.stored_row_check import stored_row_errors
from krepes_ooc.network.frozen import FrozenNetwork, freeze

INPUTS = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
WRAPPERS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "plain": lambda layer: layer,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


def network(wrapper: str) -> FrozenNetwork:
    torch.manual_seed(0)
    wrapped = WRAPPERS[wrapper](nn.Linear(6, 8))
    return freeze(nn.Sequential(wrapped, nn.ReLU(), nn.Linear(8, 4)))


def autograd_kernel(frozen: FrozenNetwork, feature_map: FactorFeatures) -> np.ndarray:
    """sum_r <J^T v_r, J'^T v_r> in float64, sample by sample."""
    module = frozen.deep_copy().double()
    parameters = [p.requires_grad_(True) for p in module.inner.parameters()]
    rows = []
    for x in INPUTS:
        value = module(torch.tensor(x[None]).double())[0]
        probes = [torch.tensor(probe).double() for probe in feature_map.probes]
        rows.append(
            torch.cat(
                [
                    g.flatten()
                    for probe in probes
                    for g in torch.autograd.grad(
                        (value * probe).sum(), parameters, retain_graph=True
                    )
                ]
            )
        )
    stacked = torch.stack(rows)
    return (stacked @ stacked.T).numpy()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_parametrised_layers_are_exact(wrapper: str) -> None:
    frozen = network(wrapper)
    feature_map = open_features(frozen, FeatureSettings(kind="factors"), INPUTS)
    assert isinstance(feature_map, FactorFeatures)
    rows = feature_map.rows(INPUTS)[0].astype(np.float64)
    kernel = np.zeros((len(rows), len(rows)))
    for _, factor, _ in feature_map.groups():
        part = 0.0 if factor.inputs is None else rows[:, slice(*factor.inputs)]
        inner = part @ part.T if factor.inputs is not None else 0.0
        gradients = [rows[:, slice(*span)] for span in factor.gradients]
        kernel += (inner + float(factor.bias)) * sum(d @ d.T for d in gradients)
    expected = autograd_kernel(frozen, feature_map)
    assert np.abs(kernel - expected).max() <= 1e-6 * np.abs(expected).max()
    self_check(frozen, feature_map, INPUTS[:2])


def without_inputs(factor: LayerFactor) -> LayerFactor:
    """The weight's part of a row is lost, its bias stays: a parametrised layer once lost it so."""
    return LayerFactor(None, factor.bias, factor.gradients)


def without_bias(factor: LayerFactor) -> LayerFactor:
    return LayerFactor(factor.inputs, False, factor.gradients)


def one_probe_twice(factor: LayerFactor) -> LayerFactor:
    return LayerFactor(factor.inputs, factor.bias, (factor.gradients[0],) * len(factor.gradients))


@pytest.mark.parametrize("plant", [without_inputs, without_bias, one_probe_twice])
def test_a_planted_miss_is_named(plant: Callable[[LayerFactor], LayerFactor]) -> None:
    frozen = network("plain")
    settings = FeatureSettings(kind="factors", probes=2, deflated_probes=0)
    feature_map: Any = open_features(frozen, settings, INPUTS)
    feature_map._factors["0"] = plant(feature_map._factors["0"])
    with pytest.raises(NetworkError, match=r"stored rows lack 1 of 2 groups: 0 \(relative error"):
        self_check(frozen, feature_map, INPUTS[:2])


def test_a_parameter_of_no_group_is_named() -> None:
    frozen = network("plain")
    feature_map: Any = open_features(frozen, FeatureSettings(kind="factors"), INPUTS)
    feature_map._group_parameters["2"] = ("2.weight",)
    errors = stored_row_errors(frozen, feature_map, INPUTS[:2])
    assert errors["2.bias"] == 1.0
    assert errors["0"] < 1e-2 < errors["2"]


# Sketched rows -----------------------------------------------------------------------------------

IMAGES = np.random.default_rng(2).random((4, 2, 8, 8)).astype(np.float32)
TOKENS = np.random.default_rng(3).integers(0, 11, (4, 5))


class Words(nn.Module):
    """Embedding, a recurrent layer, a bare scale and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(11, 6), nn.GRU(6, 7, batch_first=True)
        self.scale, self.head = nn.Parameter(torch.ones(7)), nn.Linear(7, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.table(tokens.long()))[0][:, -1] * self.scale)


def sketched(kind: str) -> tuple[FrozenNetwork, Any, np.ndarray]:
    """A network, its sketched rows and two samples: every kind of term and of map."""
    torch.manual_seed(0)
    modules: dict[str, Callable[[], nn.Module]] = {
        "convolution": lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 6, 3, groups=2), nn.Flatten(), nn.Linear(216, 5),
        ),
        "tensor": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(128, 300), nn.Tanh(), nn.Linear(300, 5)
        ),
        "words": Words,
        "computed": lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(2, 6, 3, padding=1)), nn.ReLU(), nn.Flatten(),
            parametrizations.weight_norm(nn.Linear(384, 5)),
        ),
    }  # fmt: skip
    frozen = freeze(modules[kind]())
    inputs = TOKENS if kind == "words" else IMAGES
    settings = FeatureSettings(kind="sketch", sketch=512, probes=2, deflated_probes=1)
    return frozen, open_features(frozen, settings, inputs), inputs[:2]


SKETCHED = {
    "convolution": ("0.weight", "0.bias", "1.weight", "3.weight", "5.weight", "5.bias"),
    "tensor": ("1.weight", "1.bias", "3.weight"),
    "words": ("table.weight", "cell.weight_ih_l0", "scale", "head.weight"),
    "computed": (
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
        "3.parametrizations.weight.original1",
    ),
}
PAIRS = [(kind, name) for kind, names in SKETCHED.items() for name in names]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", SKETCHED)
def test_whole_sketched_rows_pass(kind: str) -> None:
    frozen, feature_map, inputs = sketched(kind)
    described = feature_map.describe()
    assert ("tensor" if kind == "tensor" else "fold") in {s["sketch"] for s in described["sketch"]}
    assert (kind == "computed") == any(rule["method"] == "computed" for rule in described["plan"])
    errors = stored_row_errors(frozen, feature_map, inputs)
    assert set(errors) == {*feature_map.parameters, "row"}
    assert max(errors.values()) <= 5e-3
    self_check(frozen, feature_map, inputs)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_a_parameter_that_a_sketched_row_lacks_is_named(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, feature_map, inputs = sketched(kind)
    # Only what goes into rows is lost: the gradients of the tape stay right.
    monkeypatch.setattr(feature_map.sketch.maps[name], "add", lambda *_: None)
    errors = stored_row_errors(frozen, feature_map, inputs)
    assert errors[name] == pytest.approx(1.0, abs=0.05)
    assert max(errors, key=lambda key: errors[key]) == name
    with pytest.raises(NetworkError, match=r"stored rows lack 1 of .*: ") as caught:
        self_check(frozen, feature_map, inputs)
    assert name in caught.value.what


class Sensitive(nn.Module):
    """Rounding of a sample alone changes the gradient by some hundredths, and no output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.first(x * (1 + 2e-7) if len(x) == 1 and x.dtype == torch.float32 else x)
        return self.last(z + 2.5e-9 * torch.sin(2e7 * z))


def test_rounding_is_no_miss_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    # The whole row of this small network moves, which another check refuses.
    monkeypatch.setattr(feature_map_module, "_check_batch_independence", lambda *_: None)
    torch.manual_seed(0)
    frozen = freeze(Sensitive())
    settings = FeatureSettings(kind="sketch", sketch=512)
    feature_map: Any = open_features(frozen, settings, INPUTS)
    assert max(stored_row_errors(frozen, feature_map, INPUTS[:2]).values()) <= 5e-3
    # What a row lacks, it lacks beside the batch too.
    monkeypatch.setattr(feature_map.sketch.maps["first.weight"], "add", lambda *_: None)
    errors = stored_row_errors(frozen, feature_map, INPUTS[:2])
    assert errors["first.weight"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", ["convolution", "tensor"])
@pytest.mark.parametrize("fault", ["probe", "scale", "columns"])
def test_other_faults_of_sketched_rows_are_caught(
    kind: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krepes_ooc.jacobian import stored_row_check

    frozen, feature_map, inputs = sketched(kind)
    if fault == "probe":
        # The last probe's gradients go where those of the first one belong.
        for parameter_map in feature_map.sketch.maps.values():
            add = parameter_map.add
            monkeypatch.setattr(
                parameter_map, "add", lambda rows, term, probe, add=add: add(rows, term, 0)
            )
    store = stored_row_check.store_rows

    def spoiled(features: np.ndarray, layout: Any) -> np.ndarray:
        rows = store(features, layout)
        return rows * np.float16(0.5) if fault == "scale" else np.roll(rows, 1, axis=1)

    if fault != "probe":
        monkeypatch.setattr(stored_row_check, "store_rows", spoiled)
    errors = stored_row_errors(frozen, feature_map, inputs)
    assert max(errors.values()) > 0.1
    with pytest.raises(NetworkError, match="stored rows lack "):
        self_check(frozen, feature_map, inputs)


# Networks that exact rows once failed on ---------------------------------------------------------


class Scaled(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.logit_scale = nn.Linear(6, 4), nn.Parameter(torch.tensor(2.6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.out(x), dim=-1) * self.logit_scale.exp()


class Tied(nn.Module):
    """A weight that is used a second time, transposed, without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(6, 5), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = torch.tanh(self.body(x))
        return self.out(torch.tanh(nn.functional.linear(code, self.body.weight.t())))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", ["auto", "sketch"])
@pytest.mark.parametrize("build", [Scaled, Tied])
def test_stored_self_kernel_is_autograds(build: type[nn.Module], kind: Any) -> None:
    torch.manual_seed(0)
    frozen = freeze(build())
    settings = FeatureSettings(kind=kind, probes=1, deflated_probes=0, outputs=(1,))
    feature_map: Any = open_features(frozen, settings, INPUTS)
    self_check(frozen, feature_map, INPUTS[:2])
    module = frozen.deep_copy().double()
    parameters = [p.requires_grad_(True) for p in module.inner.parameters()]
    true = []
    for x in INPUTS:
        value = module(torch.tensor(x[None]).double())[0, 1]
        true.append(sum(float((g**2).sum()) for g in torch.autograd.grad(value, parameters)))
    rows = feature_map.rows(INPUTS)[0].astype(np.float64)
    if isinstance(feature_map, FactorFeatures):
        stored = np.zeros(len(rows))
        for _, factor, _ in feature_map.groups():
            a = 0.0 if factor.inputs is None else (rows[:, slice(*factor.inputs)] ** 2).sum(1)
            d = sum((rows[:, slice(*span)] ** 2).sum(1) for span in factor.gradients)
            stored += (a + float(factor.bias)) * d
        np.testing.assert_allclose(stored, true, rtol=1e-5)
    else:
        np.testing.assert_allclose((rows**2).sum(1), true, rtol=0.1)
