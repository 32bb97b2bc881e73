"""Exact Jacobian rows of networks whose parameters all sit in Linear layers on plain vectors.

The gradient of <v_r, f> with respect to a Linear layer's weight is the outer product of d_lr, the
gradient at the layer's output, and a_l, its input; with respect to its bias it is d_lr. So the row
[a_l, d_l1, ..., d_lr for every layer l] holds the kernel exactly (krepes_ooc.layout has the sum).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from krepes_ooc.layout import Factor, FeatureLayout
from krepes_ooc.network.frozen import FrozenNetwork
from krepes_ooc.network.tape import Call, Recording, Tape

Float32 = npt.NDArray[np.float32]


class FactorFeatures:
    """A feature map without any sketch; use one clone a thread.

    Args:
        network: the frozen network.
        parameters: names of the audited parameters; ``factor_obstacle`` must find nothing.
        probes: output directions [probe, output], on the selected outputs.
        outputs: indices of the selected outputs.
        sizes: (inputs, outputs) of each layer in the order of calls, from ``layer_sizes``.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        parameters: Sequence[str],
        probes: Float32,
        outputs: Sequence[int],
        layers: Sequence[str],
    ) -> None:
        self.network, self.parameters, self.layers = network, tuple(parameters), tuple(layers)
        self.probes, self.outputs = probes, tuple(outputs)
        self.layout = self._plan()
        self._tape = Tape(network, self.layers)

    @property
    def n_outputs(self) -> int:
        """Number of audited outputs."""
        return len(self.outputs)

    def rows(self, inputs: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """Unscaled features[sample, feature] and embedding[sample, output] of a batch."""
        recording = self._tape.record(torch.tensor(inputs))
        features = torch.zeros(len(inputs), self.layout.n_features)
        calls = {call.name: call for call in recording.calls}
        for layer, factor in zip(self.layers, self.layout.factors, strict=True):
            if factor.inputs is not None:
                features[:, slice(*factor.inputs)] = calls[layer].input
        for index, probe in enumerate(self._full_probes(recording.outputs)):
            gradients = _by_layer(recording, probe)
            for layer, factor in zip(self.layers, self.layout.factors, strict=True):
                gradient = gradients.get(layer)
                if gradient is not None:
                    features[:, slice(*factor.gradients[index])] = gradient
        embedding = recording.outputs.detach()[:, list(self.outputs)]
        return features.numpy(), embedding.numpy()

    def gradients(
        self, inputs: torch.Tensor, probe: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and gradient [sample, *parameter] of <probe, f>, parameter by parameter."""
        recording = self._tape.record(inputs)
        by_layer = _by_layer(recording, probe)
        for call in recording.calls:
            gradient = by_layer[call.name]
            if gradient is None:
                gradient = probe.new_zeros(call.shapes[0])
            if _join(call.name, "weight") in self.parameters:
                product = gradient[:, :, None] * call.input[:, None, :]
                yield _join(call.name, "weight"), product
            if _join(call.name, "bias") in self.parameters:
                yield _join(call.name, "bias"), gradient

    def clone(self) -> Self:
        """The same map on an own copy of the network."""
        return self._on(self.network)

    def doubled(self) -> Self:
        """The same map in float64, for the self-check."""
        return self._on(self.network.copied().double())

    def describe(self) -> dict[str, Any]:
        """The map as JSON, for the store's attributes."""
        return {
            "kind": "factors",
            "probes": self.probes.astype(float).tolist(),
            "plan": [{"layer": layer, "method": "factors"} for layer in self.layers],
            "parameters": list(self.parameters),
            "outputs": list(self.outputs),
        }

    def _on(self, network: FrozenNetwork) -> Self:
        twin = type(self)(network, self.parameters, self.probes, self.outputs, self.layers)
        twin.layout = self.layout
        return twin

    def _plan(self) -> FeatureLayout:
        factors, ranges, column = [], [], 0
        for name in self.layers:
            layer = self.network.inner.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            spans = []
            has_weight = _join(name, "weight") in self.parameters
            widths = [layer.in_features] * has_weight + [layer.out_features] * len(self.probes)
            for width in widths:
                spans.append((column, column + width))
                column += width
            ranges += [(start, stop, 0) for start, stop in spans]
            bias = _join(name, "bias") in self.parameters
            inputs = spans.pop(0) if has_weight else None
            factors.append(Factor(inputs, bias, tuple(spans)))
        return FeatureLayout(tuple(factors), tuple(ranges))

    def _full_probes(self, outputs: torch.Tensor) -> torch.Tensor:
        full = outputs.new_zeros(len(self.probes), outputs.shape[1])
        full[:, list(self.outputs)] = torch.from_numpy(self.probes).to(full.dtype)
        return full


def factor_layers(
    network: FrozenNetwork, parameters: Sequence[str], inputs: npt.NDArray[Any]
) -> tuple[tuple[str, ...], str]:
    """The Linear layers that hold all audited parameters, or why exact factors do not apply.

    Args:
        network: the frozen network.
        parameters: names of the audited parameters.
        inputs: a few samples [sample, ...], at least two.

    Returns:
        Layer names in the order of calls, and an empty string; or nothing and the obstacle.
    """
    owners: dict[str, nn.Module] = {}
    for name in parameters:
        owner, _, leaf = name.rpartition(".")
        layer = network.inner.get_submodule(owner)
        if type(layer) is not nn.Linear or leaf not in ("weight", "bias"):
            return (), f"{name} belongs to {type(layer).__name__}, not to a Linear layer"
        owners[owner] = layer
    everywhere = [
        id(p) for m in network.inner.modules() for p in m._parameters.values() if p is not None
    ]
    held = {id(p) for layer in owners.values() for p in layer.parameters()}
    if any(everywhere.count(key) > 1 for key in held):
        return (), "two layers share one parameter"
    calls = Tape(network, tuple(owners)).record(torch.tensor(inputs)).calls
    obstacle = _call_obstacle(calls, set(owners), len(inputs))
    return ((), obstacle) if obstacle else (tuple(call.name for call in calls), "")


def _call_obstacle(calls: Sequence[Call], owners: set[str], n_samples: int) -> str:
    names = [call.name for call in calls]
    twice = sorted({name for name in names if names.count(name) > 1})
    missing = sorted(owners.difference(names))
    if twice or missing:
        return (
            f"layer {(twice + missing)[0]} is called {'twice' if twice else 'by none or bypassed'}"
        )
    for call in calls:
        if call.input.ndim != 2 or len(call.input) != n_samples:
            return (
                f"layer {call.name} reads shape {tuple(call.input.shape)}, not one vector a sample"
            )
    return ""


def _by_layer(recording: Recording, probe: torch.Tensor) -> dict[str, torch.Tensor | None]:
    gradients = recording.backward(probe)
    return {call.name: g[0] for call, g in zip(recording.calls, gradients, strict=True)}


def _join(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf
