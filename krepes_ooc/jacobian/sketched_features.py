"""Sketched Jacobian rows of any network: per-sample gradients in a fixed number of columns."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from krepes_ooc.core.feature_layout import sketch_layout
from krepes_ooc.jacobian.gradient_plan import plan_rules
from krepes_ooc.jacobian.jacobian import GradientRule, Jacobian
from krepes_ooc.jacobian.opening import MAX_BATCH, Opening
from krepes_ooc.jacobian.output_probes import (
    apply_probes,
    complete_probes,
    deflated_probes,
    expand_probes,
    rademacher_probes,
)
from krepes_ooc.jacobian.output_range import OutputRange, count_range_passes
from krepes_ooc.jacobian.sketch import ParameterSketch, Sketch, plan_sketches
from krepes_ooc.network.frozen import FrozenNetwork
from krepes_ooc.network.torch_device import device_of, network_on

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
CALIBRATION_SAMPLES = 16
# Outputs up to which the leading directions come from the exact Gram matrix, a backward pass each;
# beyond, and for large samples, from a randomised range finder. The number decides bits: it stays.
MAX_GRAM_OUTPUTS = 128
# Samples of the range finder, and where samples are large.
RANGE_SAMPLES = 4
FEW_RANGE_SAMPLES = 2


class RowMap(Protocol):
    """Anything that gives the rows of a batch."""

    def rows(self, inputs: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """Rows [sample, feature] and embedding [sample, output] of a batch."""


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

    def embedding(self, inputs: npt.NDArray[Any]) -> Float32:
        """Embedding [sample, output] of a batch, with the bits of ``rows``, by a forward pass."""
        with self._lock:
            recording = self._jacobian.record(torch.tensor(inputs, device=self._device))
        return apply_probes(recording.outputs.detach(), self.outputs).cpu().numpy()

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

    def rows_along(self, inputs: npt.NDArray[Any], directions: Float32) -> Float32:
        """Rows [direction, sample, column] of single output directions [direction, output].

        One forward pass for all; each direction has the sketch of the first probe.
        """
        with self._lock:
            recording = self._jacobian.record(torch.tensor(inputs, device=self._device))
            outputs = recording.outputs.detach()
            found = []
            for direction in expand_probes(directions, self.outputs, outputs):
                rows = self.sketch.open_rows(len(inputs))
                for term in self._jacobian.terms(recording, direction):
                    rows.add(term, 0)
                found.append(rows.finish().cpu().numpy())
        return np.stack(found)

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

    def choose_probes(
        self, n_random: int | None, n_deflated: int | None, seed: int, batch: int = MAX_BATCH
    ) -> Float32:
        """Probes [probe, output]; None: 4 + 4 with convolutions or attention, else 1 + 0.

        Args:
            n_random: random probes.
            n_deflated: calibrated probes.
            seed: key of all draws.
            batch: samples of one pass.
        """
        n_random, n_deflated = count_probes(self.network, n_random, n_deflated)
        # Plain random signs; from as many probes as outputs on they are the identity.
        if not n_deflated or n_deflated + n_random >= len(self.outputs):
            return rademacher_probes(n_deflated + n_random, len(self.outputs), seed)
        if uses_gram(len(self.outputs), batch):
            return deflated_probes(self.output_gram(seed, batch), n_deflated, n_random, seed)
        return complete_probes(self.output_range(n_deflated, seed, batch), n_random, seed)

    def output_gram(self, seed: int, batch: int = MAX_BATCH) -> Float64:
        """Output Gram matrix: sum over calibration samples of J J^T [output, output].

        From sketched Jacobian rows, at one backward pass an output.
        """
        inputs = self.calibration[:CALIBRATION_SAMPLES]
        directions = np.eye(len(self.outputs), dtype=np.float32)
        # The same map for each direction: the sketch depends on the number of probes only.
        single = self.build(directions[:1], seed)
        parts = [
            single.rows_along(inputs[start : start + batch], directions)
            for start in range(0, len(inputs), batch)
        ]
        # The sum over samples of J J^T is that of their concatenation.
        rows = np.concatenate(parts, axis=1)
        jacobian = rows.reshape(len(directions), -1).astype(np.float64)
        return np.asarray(jacobian @ jacobian.T)

    def output_range(self, n_directions: int, seed: int, batch: int = MAX_BATCH) -> Float64:
        """Leading directions [direction, output] of the output Gram matrix; see ``OutputRange``."""
        few = torch.tensor(self.calibration[: _count_range_samples(batch)])
        ranges = OutputRange(self.network, self.parameters, self.outputs, few, seed)
        return ranges.leading(n_directions)


def count_probes(
    network: FrozenNetwork, n_random: int | None, n_deflated: int | None
) -> tuple[int, int]:
    """Random and calibrated probes; None: 4 + 4 with convolutions or attention, else 1 + 0."""
    default = (4, 4) if has_spatial_layers(network) else (1, 0)
    return (
        default[0] if n_random is None else n_random,
        default[1] if n_deflated is None else n_deflated,
    )


def uses_gram(n_outputs: int, batch: int) -> bool:
    """Whether the exact Gram matrix gives the leading directions; from shapes alone.

    Args:
        n_outputs: audited outputs.
        batch: samples of one calibration pass: fewer than ``MAX_BATCH`` for large samples.
    """
    return n_outputs <= MAX_GRAM_OUTPUTS and batch == MAX_BATCH


def count_calibration(n_outputs: int, n_random: int, n_deflated: int, batch: int) -> float:
    """Forward and backward passes of one sample that the calibrated probes take."""
    if not n_deflated or n_deflated + n_random >= n_outputs:
        return 0.0
    # A backward pass alone is two thirds of both.
    if uses_gram(n_outputs, batch):
        return CALIBRATION_SAMPLES * n_outputs * 2 / 3
    return count_range_passes(n_deflated, _count_range_samples(batch))


def _count_range_samples(batch: int) -> int:
    return RANGE_SAMPLES if batch == MAX_BATCH else FEW_RANGE_SAMPLES


def rows_in_batches(
    feature_map: RowMap, inputs: npt.NDArray[Any], batch: int
) -> tuple[Float32, Float32]:
    """Rows [sample, feature] and embedding [sample, output] of inputs, a batch at a time."""
    parts = [
        feature_map.rows(inputs[start : start + batch]) for start in range(0, len(inputs), batch)
    ]
    rows, embedding = (list(each) for each in zip(*parts, strict=True))
    return np.concatenate(rows), np.concatenate(embedding)


def plan_sketch(
    network: FrozenNetwork,
    parameters: tuple[str, ...],
    outputs: tuple[int, ...],
    calibration: npt.NDArray[Any],
    n_columns: int,
    batch: int = MAX_BATCH,
    opening: Opening | None = None,
) -> SketchPlan:
    """Plan a proven rule and the cheaper sketch of every parameter.

    Args:
        network: the frozen network.
        parameters: names of the audited parameters.
        outputs: indices of the audited outputs.
        calibration: inputs [sample, ...], 2 or more.
        n_columns: columns of the sketch.
        batch: samples of one pass.
        opening: record and announcements.
    """
    opening = opening or Opening()
    # All calibration samples: the proof needs two, branches of the network may need more.
    rules = plan_rules(network, parameters, torch.tensor(calibration), batch, opening)
    jacobian = Jacobian(network, rules)
    shapes = {name: jacobian.shapes[name] for name in parameters}
    depends = {"parameters": list(parameters), "columns": n_columns}
    tensored = opening.found("sketches", **depends)
    if tensored is None:
        recording = jacobian.record(torch.tensor(calibration[:2]))
        # Shapes of the terms of two samples decide, never timings.
        terms = jacobian.terms(recording, torch.ones(recording.outputs.shape[1]))
        sketches = plan_sketches(terms, shapes, n_columns)
        tensored = [sketch.parameter for sketch in sketches if sketch.tensor]
        opening.keep("sketches", tensored, **depends)
    sketches = tuple(
        ParameterSketch(name, shape, name in set(tensored)) for name, shape in shapes.items()
    )
    return SketchPlan(network, rules, parameters, outputs, sketches, n_columns, calibration)


def has_spatial_layers(network: nn.Module) -> bool:
    """Whether convolutions or attention may make the outputs far from exchangeable."""
    kinds = (nn.modules.conv._ConvNd, nn.MultiheadAttention)
    # Attention of other libraries is known by its name only.
    named = any("attention" in type(layer).__name__.lower() for layer in network.modules())
    return named or any(isinstance(layer, kinds) for layer in network.modules())
