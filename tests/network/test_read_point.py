"""Where the embedding is read: a module run alone, a module inside the network, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from krepes_ooc.core.import_object import locate_arguments
from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import NetworkError, UsageError
from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features
from krepes_ooc.network.frozen import FrozenNetwork
from krepes_ooc.network.spec import NetworkSpec, load_network

NETS = """
import torch
from torch import nn


class WithHead(nn.Module):
    def __init__(self, twice=False, around=False):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7))
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
        self.scale = nn.Parameter(torch.ones(7))
        self.spare = nn.Linear(2, 2)
        self.twice, self.around = twice, around

    def forward(self, x):
        if self.around:
            x = 2 * x
        features = self.backbone(self.backbone[0](x)[:, :6] if self.twice else x)
        return {"z": self.head(self.act(features) * self.scale), "size": 3}


def build(**given):
    torch.manual_seed(0)
    return WithHead(**given)
"""
X = np.random.default_rng(0).normal(size=(8, 6)).astype("f4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def load(folder: Path, module: str, **keys: Any) -> FrozenNetwork:
    values = {"factory": "nets.py:build", "weights": "factory", "module": module, **keys}
    spec = read_settings(NetworkSpec, values, "network")
    return load_network(spec, None, folder, lambda: X[:1])


def whole(folder: Path, **given: Any) -> nn.Module:
    space: dict[str, Any] = {}
    exec(NETS, space)
    net: nn.Module = space["build"](**given)
    return net.eval()


def test_a_module_that_takes_the_input_is_run_alone(folder: Path) -> None:
    network = load(folder, "backbone")
    assert network.trainable == ("0.weight", "0.bias", "2.weight", "2.bias")
    with torch.no_grad():
        want = whole(folder).backbone(torch.tensor(X))
        assert torch.equal(network(torch.tensor(X)), want)


@pytest.mark.parametrize(
    ("path", "given", "used"),
    [
        ("backbone", {"around": True}, 4),
        ("backbone.2", {}, 4),
        ("backbone.1", {}, 2),
        ("head.0", {}, 7),
        ("head", {}, 9),
    ],
)
def test_a_module_inside_is_read_in_a_run_of_the_whole(
    folder: Path, path: str, given: dict[str, Any], used: int
) -> None:
    """Parameters behind it are left out; the layer after it works in place."""
    with torch.no_grad():
        network = load(folder, path, arguments=given)
    net = whole(folder, **given)
    assert len(network.trainable) == used
    assert not any(name.startswith("spare") for name in network.trainable)
    seen: list[torch.Tensor] = []
    net.get_submodule(path).register_forward_hook(lambda m, a, y: seen.append(y.clone()))
    net(torch.tensor(X))
    with torch.no_grad():
        assert torch.equal(network(torch.tensor(X)), seen[0])
    # Copies read at the same place.
    assert torch.equal(network.deep_copy()(torch.tensor(X)), seen[0])


@pytest.mark.parametrize("kind", ["sketch", "auto"])
@pytest.mark.parametrize("path", ["backbone", "backbone.2", "head.0"])
def test_rows_are_the_gradients_of_what_is_read(folder: Path, path: str, kind: Any) -> None:
    network = load(folder, path)
    settings = FeatureSettings(kind=kind, outputs=(1,), probes=1, deflated_probes=0)
    shared = open_features(network, settings, X)
    rows = shared.rows(X)[0].astype("f8")
    net = network.deep_copy().double()
    weights = [net.inner.get_parameter(name).requires_grad_(True) for name in network.trainable]
    true = []
    for x in torch.tensor(X, dtype=torch.float64):
        gradients = torch.autograd.grad(net(x[None])[0, 1], weights, allow_unused=True)
        true.append(torch.cat([g.flatten() for g in gradients if g is not None]).numpy())
    want = np.stack(true) @ np.stack(true).T
    if shared.layout.factors:
        from krepes_ooc.stages.features.inner_products import self_kernel

        got, want = np.asarray(self_kernel(rows, shared.layout)), np.diag(want)
        assert np.abs(got / want - 1).max() < 1e-5
    else:
        got = rows @ rows.T
        assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("path", "given", "error", "words"),
    [
        ("backbone", {"twice": True}, None, ""),
        ("backbone.0", {"twice": True}, NetworkError, "runs it 2 times; expected one run"),
        ("spare", {}, NetworkError, "network.module spare: the network runs it 0 times"),
        ("backbon", {}, UsageError, "no module 'backbon'.*backbone, act.*did you mean 'backbone'"),
        ("scale", {}, UsageError, "the network has no module 'scale'"),
    ],
)
def test_modules_that_cannot_be_read(
    folder: Path, path: str, given: dict[str, Any], error: Any, words: str
) -> None:
    if error is None:
        load(folder, path, arguments=given)
        return
    with pytest.raises(error, match=words):
        load(folder, path, arguments=given)


def test_the_entry_of_the_output_is_that_of_the_module(folder: Path) -> None:
    (folder / "nets.py").write_text(NETS + "\n\ndef outer():\n    return nn.Sequential(build())\n")
    network = load(folder, "0", factory="nets.py:outer", output="z")
    with torch.no_grad():
        assert torch.equal(network(torch.tensor(X)), whole(folder)(torch.tensor(X))["z"])


def test_a_head_may_be_missing_behind_the_embedding(folder: Path) -> None:
    net = whole(folder)
    with torch.no_grad():
        net.backbone[0].weight.mul_(2)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("head")}
    torch.save(state, folder / "w.pth")
    with pytest.raises(NetworkError, match=r"6 keys missing \(head.0.weight"):
        load(folder, "backbone", weights="w.pth")
    for path in ("backbone", "backbone.2", "act"):
        network = load(folder, path, weights="w.pth", ignore=["head.*"])
        assert "6 values behind the embedding are not in the checkpoint" in network.notes[-1]
        with torch.no_grad():
            want = net.backbone(torch.tensor(X))
            want = want.relu() if path == "act" else want
            assert torch.equal(network(torch.tensor(X)), want)
    # Initial values of the factory are never audited.
    for path, count in (("head.0", 2), ("head", 6)):
        with pytest.raises(NetworkError, match=f"{count} keys missing .*the embedding depends on"):
            load(folder, path, weights="w.pth", ignore=["head.*"])
    with pytest.raises(NetworkError, match=r"keys missing .*the embedding depends on"):
        load(folder, "", output="z", weights="w.pth", ignore=["head.*"])


def test_paths_in_arguments_start_from_the_recipe(tmp_path: Path) -> None:
    given = {"a": "./w.json", "b": ["../x", "plain", 3], "c": {"d": "./e"}, "f": ".hidden"}
    assert locate_arguments(given, tmp_path / "deep") == {
        "a": str(tmp_path / "deep/w.json"),
        "b": [str(tmp_path / "x"), "plain", 3],
        "c": {"d": str(tmp_path / "deep/e")},
        "f": ".hidden",
    }
