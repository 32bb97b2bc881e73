"""Networks that no batched Jacobian takes: the fallback, and what is said where it cannot help."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian.feature_map import FeatureMap, FeatureSettings, open_features
from krepes_ooc.jacobian.self_check import self_check
from krepes_ooc.stages.features import inner_products

DRAWN = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


class Accumulating(nn.Module):
    """Writes into fresh zeros: vmap refuses ``+=`` of a batched value into an unbatched tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.taps, self.head = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = torch.zeros(len(x), 4, dtype=x.dtype)
        for place in range(4):
            result[:, place] += (x[:, place : place + 3] * self.taps[:, place]).sum(dim=1)
        return self.head(result.tanh())


class Branching(nn.Module):
    """Each sample takes the layer that its own numbers ask for, as often as they ask."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = []
        for row in x:
            for _ in range(1 + int(bool(row[0] > 0.5))):
                row = (self.high if bool(row.sum() > 0) else self.low)(row).tanh()
            rows.append(row)
        return self.head(torch.stack(rows))


class Grouping(nn.Module):
    """Runs the samples of each sign through a layer of their own, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positive = x.sum(dim=1) > 0
        result = torch.zeros(len(x), 3, dtype=x.dtype)
        result[positive] += self.high(x[positive])
        result[~positive] += self.low(x[~positive])
        return result.tanh()


class Repeating(nn.Module):
    """Calls its layer once more if a sample of the batch asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.layer(x)
        return self.layer(result) if bool(x[:, 0].max() > 1.0) else result


class Sorting(nn.Module):
    """Runs one layer on its batch in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = torch.argsort(x[:, 0] > 1.0, stable=True)
        return self.layer(x[order])[torch.argsort(order)].tanh()


def trained(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def exact_kernel(module: nn.Module, probes: np.ndarray) -> np.ndarray:
    """Inner products of float64 gradients, one sample, one probe, one backward pass each."""
    double = trained(type(module)).double()
    rows = []
    for sample in torch.from_numpy(DRAWN).double():
        outputs = double(sample[None])[0]
        for probe in torch.from_numpy(probes).double():
            result = torch.autograd.grad(
                outputs @ probe,
                list(double.parameters()),
                retain_graph=True,
                materialize_grads=True,
            )
            rows.append(torch.cat([g.reshape(-1) for g in result]))
    stacked = torch.stack(rows).reshape(len(DRAWN), len(probes), -1)
    return torch.einsum("arp,brp->ab", stacked, stacked).numpy()


def kernel_of_rows(result: FeatureMap) -> np.ndarray:
    rows = result.rows(DRAWN)[0].astype(np.float64)
    return np.asarray(inner_products.gram(rows, rows, result.layout))


def methods(result: FeatureMap) -> set[str]:
    return {unit["method"] for unit in result.describe()["plan"]}


@pytest.mark.parametrize("kind", [Accumulating, Branching, Grouping])
@pytest.mark.parametrize("probes", [1, 3])
def test_the_kernel_is_exact(kind: type[nn.Module], probes: int) -> None:
    module = trained(kind)
    result = open_features(module, FeatureSettings(kind="factors", probes=probes), DRAWN)
    assert "loop" in methods(result)
    assert "one sample at a time" in self_check(module, result, DRAWN[:2]).words
    exact = exact_kernel(module, np.array(result.describe()["probes"]))
    np.testing.assert_allclose(kernel_of_rows(result), exact, rtol=1e-4, atol=1e-5 * exact.max())


def test_the_sketch_takes_them_too() -> None:
    module = trained(Grouping)
    result = open_features(module, FeatureSettings(kind="sketch", probes=1, sketch=4096), DRAWN)
    assert methods(result) == {"loop"}
    exact = exact_kernel(module, np.array(result.describe()["probes"]))
    assert np.linalg.norm(kernel_of_rows(result) - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("kind", ["factors", "sketch"])
def test_a_path_that_no_calibration_sample_took_is_told(kind: str) -> None:
    positive = DRAWN[DRAWN.sum(axis=1) > 0]
    settings = FeatureSettings(kind="auto" if kind == "factors" else "sketch", sketch=64)
    result = open_features(trained(Grouping), settings, positive)
    with pytest.raises(NetworkError, match=r"(high|low): this layer read \d+ rows in a batch"):
        result.rows(DRAWN)
    one = DRAWN[:1] if DRAWN[0].sum() < 0 else -DRAWN[:1]
    assert result.rows(one)[0].any()


def test_a_layer_that_is_called_once_more_is_told() -> None:
    calm, wild = DRAWN[DRAWN[:, 0] <= 1.0], DRAWN[DRAWN[:, 0] > 1.0]
    result = open_features(trained(Repeating), FeatureSettings(kind="factors"), calm)
    with pytest.raises(NetworkError, match=r"layer: this layer is called twice for some samples"):
        result.rows(wild[:1])


def test_a_network_that_sorts_its_batch_is_refused() -> None:
    first = np.concatenate([DRAWN[DRAWN[:, 0] <= 1.0], DRAWN[DRAWN[:, 0] > 1.0]])
    mixed = np.concatenate([first[:2], first[2:][::-1]])
    with pytest.raises(NetworkError, match=r"Jacobian row of calibration sample \d+ changes by"):
        open_features(trained(Sorting), FeatureSettings(), mixed)
