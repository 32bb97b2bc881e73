"""Sketched Jacobian rows of any network: per-sample gradients in a fixed number of columns."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from krepes_ooc.core.feature_layout import sketch_layout
from krepes_ooc.jacobian.gradient_plan import plan_rules
from krepes_ooc.jacobian.jacobian import GradientRule, Jacobian
from krepes_ooc.jacobian.output_probes import (
    apply_probes,
    deflated_probes,
    expand_probes,
    rademacher_probes,
)
from krepes_ooc.jacobian.sketch import ParameterSketch, Sketch, plan_sketches
from krepes_ooc.network.frozen import FrozenNetwork
from krepes_ooc.network.torch_device import device_of, network_on

Float32 = npt.NDArray[np.float32]
CALIBRATION_SAMPLES = 16
# Most backward passes for the output Gram matrix.
CALIBRATION_BACKWARDS = 2048


class SketchFeatures:
    """Feature map by a sketch; threads that share one wait for each other: use clones.

    Args:
        network: the frozen network.
        rules: how each parameter's gradient is reached.
        parameters: names of the audited parameters.
        probes: output directions [probe, output], on the selected outputs.
        outputs: indices of the selected outputs.
        sketch: shared by all clones.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        rules: Sequence[GradientRule],
        parameters: Sequence[str],
        probes: Float32,
        outputs: Sequence[int],
        sketch: Sketch,
    ) -> None:
        self.network = network
        self.rules = tuple(rules)
        self.parameters = tuple(parameters)
        self.probes = probes
        self.outputs = tuple(outputs)
        self.sketch = sketch
        self.layout = sketch_layout(sketch.n_columns)
        self._jacobian = Jacobian(network, rules)
        self._device = device_of(network)
        # Two threads on one map must wait for each other, or they would mix their recordings.
        self._lock = threading.Lock()

    @property
    def n_outputs(self) -> int:
        """Number of audited outputs."""
        return len(self.outputs)

    def rows(self, inputs: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """Unscaled features[sample, feature] and embedding[sample, output] of a batch."""
        features, embedding = self.tensors(inputs)
        return features.cpu().numpy(), embedding.cpu().numpy()

    def tensors(self, inputs: npt.NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``rows``, but left on the device of the network."""
        with self._lock:
            # One forward pass; then one backward pass for each probe, its terms added as they
            # come.
            recording = self._jacobian.record(torch.tensor(inputs, device=self._device))
            outputs = recording.outputs.detach()
            rows = self.sketch.open_rows(len(inputs))
            for index, probe in enumerate(expand_probes(self.probes, self.outputs, outputs)):
                for term in self._jacobian.terms(recording, probe):
                    rows.add(term, index)
        return rows.finish(), apply_probes(outputs, self.outputs)

    def gradients(
        self, inputs: torch.Tensor, probe: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and gradient [sample, *parameter] of <probe, f>, parameter by parameter."""
        return self._jacobian.gradients(inputs, probe)

    def clone(self) -> Self:
        """The same map on a copy of the network."""
        return self._to(self.network, self.rules)

    def to(self, device: str) -> Self:
        """The same map on a copy of the network on a device of torch."""
        moved = self._to(network_on(self.network, device), self.rules)
        moved.sketch = self.sketch.to(device)
        return moved

    def double(self) -> Self:
        """The same map in float64, for the self-check."""
        return self._to(self.network.deep_copy().double(), [rule.in_loop() for rule in self.rules])

    def describe(self) -> dict[str, Any]:
        """The map as JSON, for the store's attributes."""
        return {
            "kind": "sketch",
            "probes": self.probes.astype(float).tolist(),
            "plan": [rule.to_attributes() for rule in self.rules],
            "sketch": [slot.to_attributes() for slot in self.sketch.sketches],
            "parameters": list(self.parameters),
            "outputs": list(self.outputs),
        }

    def _to(self, network: FrozenNetwork, rules: Sequence[GradientRule]) -> Self:
        moved = type(self)(network, rules, self.parameters, self.probes, self.outputs, self.sketch)
        moved.layout = self.layout
        return moved


@dataclass(frozen=True)
class SketchPlan:
    """All of a sketched feature map but its probes.

    Args:
        network: the frozen network.
        rules: how each parameter's gradient is reached.
        parameters: names of the audited parameters.
        outputs: indices of the audited outputs.
        sketches: the sketch of each parameter.
        n_columns: columns of the sketch.
        calibration: inputs [sample, ...] of the output Gram matrix.
    """

    network: FrozenNetwork
    rules: tuple[GradientRule, ...]
    parameters: tuple[str, ...]
    outputs: tuple[int, ...]
    sketches: tuple[ParameterSketch, ...]
    n_columns: int
    calibration: npt.NDArray[Any]

    def build(self, probes: Float32, seed: int) -> SketchFeatures:
        """The feature map with these probes."""
        sketch = Sketch(self.sketches, self.n_columns, len(probes), seed)
        return SketchFeatures(
            self.network, self.rules, self.parameters, probes, self.outputs, sketch
        )

    def choose_probes(self, n_random: int | None, n_deflated: int | None, seed: int) -> Float32:
        """Probes [probe, output]; None: 4 + 4 with convolutions or attention, else 1 + 0."""
        default = (4, 4) if has_spatial_layers(self.network) else (1, 0)
        n_random = default[0] if n_random is None else n_random
        n_deflated = default[1] if n_deflated is None else n_deflated
        # Plain random signs; from as many probes as outputs on they are the identity.
        if not n_deflated or n_deflated + n_random >= len(self.outputs):
            return rademacher_probes(n_deflated + n_random, len(self.outputs), seed)
        return deflated_probes(self.output_gram(seed), n_deflated, n_random, seed)

    def output_gram(self, seed: int) -> npt.NDArray[np.float64]:
        """Output Gram matrix: sum over calibration samples of J J^T [output, output].

        From sketched Jacobian rows, at one backward pass an output; wide networks use fewer
        samples.
        """
        n_outputs = len(self.outputs)
        n_samples = min(CALIBRATION_SAMPLES, max(2, CALIBRATION_BACKWARDS // n_outputs))
        basis = np.eye(n_outputs, dtype=np.float32)
        rows = []
        single = self.build(basis[:1], seed)
        for probe in basis:
            # The same map for each unit vector: the sketch depends on the number of probes only.
            single.probes = probe[None, :]
            rows.append(single.rows(self.calibration[:n_samples])[0])
        # The sum over samples of J J^T is that of their concatenation.
        jacobian = np.stack(rows).reshape(n_outputs, -1).astype(np.float64)
        return np.asarray(jacobian @ jacobian.T)


def plan_sketch(
    network: FrozenNetwork,
    parameters: tuple[str, ...],
    outputs: tuple[int, ...],
    calibration: npt.NDArray[Any],
    n_columns: int,
) -> SketchPlan:
    """Plan a proven rule and the cheaper sketch of every parameter.

    Args:
        network: the frozen network.
        parameters: names of the audited parameters.
        outputs: indices of the audited outputs.
        calibration: inputs [sample, ...], 2 or more.
        n_columns: columns of the sketch.
    """
    few = torch.tensor(calibration[:2])
    # All calibration samples: the proof needs two, branches of the network may need more.
    rules = plan_rules(network, parameters, torch.tensor(calibration))
    jacobian = Jacobian(network, rules)
    recording = jacobian.record(few)
    # Shapes of the terms of two samples decide, never timings.
    terms = jacobian.terms(recording, torch.ones(recording.outputs.shape[1]))
    shapes = {name: jacobian.shapes[name] for name in parameters}
    sketches = plan_sketches(terms, shapes, n_columns)
    return SketchPlan(network, rules, parameters, outputs, sketches, n_columns, calibration)


def has_spatial_layers(network: nn.Module) -> bool:
    """Whether convolutions or attention may make the outputs far from exchangeable."""
    kinds = (nn.modules.conv._ConvNd, nn.MultiheadAttention)
    # Attention of other libraries is known by its name only.
    named = any("attention" in type(layer).__name__.lower() for layer in network.modules())
    return named or any(isinstance(layer, kinds) for layer in network.modules())
