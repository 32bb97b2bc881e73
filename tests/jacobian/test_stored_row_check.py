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
