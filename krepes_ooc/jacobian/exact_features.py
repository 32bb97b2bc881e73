"""Exact Jacobian rows of networks whose large parameters belong to Linear layers on vectors.

The gradient of <v_r, f> with respect to a Linear layer's weight is the outer product of d_lr, the
gradient at the layer's output, and a_l, its input; with respect to its bias it is d_lr. So the row
[a_l, d_l1, ..., d_lr for every layer l] determines the kernel exactly; the sum is in
``krepes_ooc.core.feature_layout``. Small parameters elsewhere (normalisation, scales) follow with
their plain gradients.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from krepes_ooc.core.feature_layout import FeatureLayout, LayerFactor
from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian.gradient_plan import GradientTrial, plan_rules
from krepes_ooc.jacobian.gradients.layer_gradients import DenseGradient
from krepes_ooc.jacobian.gradients.tape import Call
from krepes_ooc.jacobian.jacobian import GradientRule, Jacobian, canonical_names
from krepes_ooc.jacobian.opening import MAX_BATCH, Opening
from krepes_ooc.jacobian.output_probes import apply_probes, expand_probes
from krepes_ooc.network.frozen import FrozenNetwork
from krepes_ooc.network.torch_device import device_of, network_on

Float32 = npt.NDArray[np.float32]
SMALL_PARAMETERS = 8192
_LEAVES = ("weight", "bias")
# Values [sample, column] of each range of columns [start, stop).
Parts = dict[tuple[int, int], torch.Tensor]


class FactorFeatures:
    """Feature map without any sketch; threads that share one wait for each other: use clones.

    Args:
        network: the frozen network.
        rules: the Linear layers in the order of their calls, then all else, from ``plan_factors``.
        parameters: names of the audited parameters.
        probes: output directions [probe, output], on the selected outputs.
        outputs: indices of the selected outputs.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        rules: Sequence[GradientRule],
        parameters: Sequence[str],
        probes: Float32,
        outputs: Sequence[int],
    ) -> None:
        self.network = network
        self.rules = tuple(rules)
        self.parameters = tuple(parameters)
        self.probes = probes
        self.outputs = tuple(outputs)
        self._jacobian = Jacobian(network, rules)
        self._device = device_of(network)
        # Two threads on one map must wait for each other, or they would mix their recordings.
        self._lock = threading.Lock()
        # Factors by name: of the layer for a Linear layer, else of the parameter.
        planned = list(self._plan())
        self._factors = {name: factor for name, factor, _ in planned}
        self._group_parameters = {name: parameters for name, _, parameters in planned}
        self._spans = [span for factor in self._factors.values() for span in _spans(factor)]
        ranges = tuple((start, stop, 0) for start, stop in self._spans)
        self.layout = FeatureLayout(tuple(self._factors.values()), ranges)

    @property
    def n_outputs(self) -> int:
        """Number of audited outputs."""
        return len(self.outputs)

    def rows(self, inputs: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """Unscaled features[sample, feature] and embedding[sample, output] of a batch.

        Raises:
            NetworkError: as ``tensors``.
        """
        features, embedding = self.tensors(inputs)
        return features.cpu().numpy(), embedding.cpu().numpy()

    def embedding(self, inputs: npt.NDArray[Any]) -> Float32:
        """Embedding [sample, output] of a batch, with the bits of ``rows``, by a forward pass."""
        with self._lock:
            samples = torch.from_numpy(np.array(inputs)).to(self._device)
            outputs = self._jacobian.record(samples).outputs.detach()
        return apply_probes(outputs, self.outputs).cpu().numpy()

    def tensors(self, inputs: npt.NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``rows``, but left on the device of the network.

        Raises:
            NetworkError: a layer reads some of the samples only, or is called twice.
        """
        n_samples = len(inputs)
        with self._lock:
            # One forward pass; then one backward pass for each probe v_r.
            recording = self._jacobian.record(torch.from_numpy(np.array(inputs)).to(self._device))
            outputs = recording.outputs.detach()
            # a_l of every layer, the same for all probes.
            parts = self._inputs(recording.calls, n_samples)
            for index, probe in enumerate(expand_probes(self.probes, self.outputs, outputs)):
                gradients = recording.backward(probe)
                for call, at_results in zip(recording.calls, gradients, strict=True):
                    self._set_gradients(parts, call, at_results, index, n_samples)
            # One pass over memory: copies column range by column range cost a tenth of all time.
            features = torch.empty(n_samples, self.layout.n_features, device=self._device)
            columns = [self._part(parts, span, n_samples) for span in self._spans]
            torch.cat(columns, 1, out=features)
        return features, apply_probes(outputs, self.outputs)

    def groups(self) -> Iterator[tuple[str, LayerFactor, tuple[str, ...]]]:
        """Name, factor and parameters of each group of columns."""
        for name, factor in self._factors.items():
            yield name, factor, self._group_parameters[name]

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
        return self._to(network_on(self.network, device), self.rules)

    def double(self) -> Self:
        """The same map in float64, for the self-check."""
        return self._to(self.network.deep_copy().double(), [rule.in_loop() for rule in self.rules])

    def describe(self) -> dict[str, Any]:
        """The map as JSON, for the store's attributes."""
        return {
            "kind": "factors",
            "probes": self.probes.astype(float).tolist(),
            "plan": [rule.to_attributes() for rule in self.rules],
            "parameters": list(self.parameters),
            "outputs": list(self.outputs),
        }

    def _to(self, network: FrozenNetwork, rules: Sequence[GradientRule]) -> Self:
        moved = type(self)(network, rules, self.parameters, self.probes, self.outputs)
        moved.layout = self.layout
        return moved

    def _inputs(self, calls: Sequence[Call], n_samples: int) -> Parts:
        """Inputs a_l [sample, entry] of all Linear layers that read the samples.

        Raises:
            NetworkError: a layer is called twice or reads some of the samples only, unlike on the
                calibration samples.
        """
        parts: Parts = {}
        called: set[str] = set()
        for call in calls:
            factor = self._factors.get(call.name)
            # Calls of other layers contribute through their gradients alone.
            if factor is None or type(call.layer) is not nn.Linear:
                continue
            entry = call.input
            # A branch that no sample of this batch takes.
            if not entry.shape[0]:
                continue
            if call.name in called or entry.ndim != 2 or entry.shape[0] != n_samples:
                call.check_samples(n_samples)
                shape = tuple(entry.shape)
                raise NetworkError(
                    "this layer is called twice for some samples"
                    if call.name in called
                    else f"this layer reads shape {shape} in a batch of {n_samples} samples",
                    where=call.name,
                    expected="one call on one vector a sample, as for the calibration samples",
                    advice="set features.kind to sketch",
                )
            called.add(call.name)
            if factor.inputs is not None:
                parts[factor.inputs] = entry
        return parts

    def _set_gradients(
        self,
        parts: Parts,
        call: Call,
        gradients: Sequence[torch.Tensor | None],
        probe: int,
        n_samples: int,
    ) -> None:
        """Gradients of one call for one probe, as parts of the row."""
        factor = self._factors.get(call.name)
        if factor is not None and type(call.layer) is nn.Linear:
            # The gradient d_l at the output of a Linear layer is its part of the row.
            gradient = gradients[0]
            if gradient is not None and gradient.shape[0]:
                parts[factor.gradients[probe]] = gradient
            return
        for term in self._jacobian.call_terms(call, gradients, n_samples):
            assert isinstance(term, DenseGradient)
            span = self._factors[term.parameter].gradients[probe]
            # A parameter that is used several times collects all its terms.
            total = parts.setdefault(span, self._zeros(n_samples, span))
            part = term.values.reshape(len(term.values), -1)
            total[term.first : term.first + len(part)] += part

    def _part(self, parts: Parts, span: tuple[int, int], n_samples: int) -> torch.Tensor:
        """Values of a range of columns; zeros where no call filled it."""
        values = parts.get(span)
        return self._zeros(n_samples, span) if values is None else values

    def _zeros(self, n_samples: int, span: tuple[int, int]) -> torch.Tensor:
        return torch.zeros(n_samples, span[1] - span[0], device=self._device)

    def _plan(self) -> Iterator[tuple[str, LayerFactor, tuple[str, ...]]]:
        """Factor of each Linear layer and of each other parameter, on consecutive columns."""
        column = 0
        for rule in self.rules:
            layer = self.network.inner.get_submodule(rule.name) if rule.method == "layer" else None
            # A subclass or a parametrised layer computes its weight: the gradient of what it is
            # computed from is no outer product, so each parameter gets columns of its own.
            if type(layer) is nn.Linear:
                # A layer may take part with its weight, its bias or both; frozen ones are left
                # out.
                has_weight, bias = (_join(rule.name, leaf) in rule.parameters for leaf in _LEAVES)
                spans = _consecutive(
                    column,
                    [layer.in_features] * has_weight + [layer.out_features] * len(self.probes),
                )
                yield (
                    rule.name,
                    LayerFactor(spans[0] if has_weight else None, bias, spans[has_weight:]),
                    rule.parameters,
                )
                column = spans[-1][1]
                continue
            for name in rule.parameters:
                size = math.prod(self._jacobian.shapes[name])
                spans = _consecutive(column, [size] * len(self.probes))
                yield name, LayerFactor(None, True, spans), (name,)
                column = spans[-1][1]


def plan_factors(
    network: FrozenNetwork,
    parameters: Sequence[str],
    inputs: npt.NDArray[Any],
    batch: int = MAX_BATCH,
    opening: Opening | None = None,
) -> tuple[tuple[GradientRule, ...], str]:
    """Rules of exact rows, or the reason why exact rows do not apply.

    Args:
        network: the frozen network.
        parameters: names of the audited parameters.
        inputs: different samples [sample, ...], 2 or more; all of them are run.
        batch: samples of one pass.
        opening: record and announcements.

    Returns:
        The rules and an empty string; or () and the obstacle.
    """
    inner = network.inner
    samples = torch.tensor(inputs)
    linear, obstacle = _linear_parameters(inner, parameters)
    if obstacle:
        return (), obstacle
    # Parameters of other classes alone may be too many: then nothing needs to run.
    elsewhere = [name for name in parameters if name not in set(linear)]
    if reason := _too_many(inner, elsewhere):
        return (), reason
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in linear))
    calls, obstacles = _recorded_calls(network, layers, torch.split(samples, batch))
    linear = [name for name in linear if name.rpartition(".")[0] not in obstacles]
    # Fewer factors can only leave more elsewhere: gradients need not be compared for that.
    if reason := _too_many(inner, [name for name in parameters if name not in set(linear)]):
        return (), next(iter(obstacles.values()), reason)
    # Nor is a layer whose weight is used elsewhere too, without it.
    wrong = set(_wrong_as_layers(network, parameters, linear, samples[:2], opening))
    linear = [name for name in linear if name not in wrong]
    # A layer that is no factor may still be small enough for rows of its plain gradient.
    others = [name for name in parameters if name not in set(linear)]
    refusal = next(iter(obstacles.values()), "")
    if reason := _too_many(inner, others):
        return (), refusal or reason
    # Linear layers in the order of their calls: the order of the columns.
    rules = [
        GradientRule(
            "layer", call.name, tuple(n for n in linear if n.rpartition(".")[0] == call.name)
        )
        for call in calls
        if call.name in {name.rpartition(".")[0] for name in linear}
    ]
    # The rest gets proven rules as in a sketch.
    extra = plan_rules(network, others, samples, batch, opening) if others else ()
    obstacle = _term_obstacle(Jacobian(network, extra), samples[:batch])
    return ((), refusal or obstacle) if obstacle else ((*rules, *extra), "")


def _linear_parameters(inner: nn.Module, parameters: Sequence[str]) -> tuple[list[str], str]:
    """Parameters of Linear layers, and why they have no factors; empty if they may have."""
    # By the class of their layer, not by their shape.
    owners = {name: inner.get_submodule(name.rpartition(".")[0]) for name in parameters}
    linear = [name for name, owner in owners.items() if type(owner) is nn.Linear]
    # Two layers that share a weight have no single pair of factors.
    first = canonical_names(inner)
    tied = [name for name in linear if list(first.values()).count(first[name]) > 1]
    if tied:
        return linear, f"{tied[0]} is shared by two layers"
    return linear, "" if linear else "there is no Linear layer"


def _recorded_calls(
    network: FrozenNetwork, layers: Sequence[str], parts: Sequence[torch.Tensor]
) -> tuple[tuple[Call, ...], dict[str, str]]:
    """Calls of layers on samples, and what keeps a layer from having factors, by layer."""
    # What they read and how often may differ from one pass to the next.
    jacobian = Jacobian(network, [GradientRule("layer", name, ()) for name in layers])
    obstacles: dict[str, str] = {}
    calls: tuple[Call, ...] = ()
    for part in parts:
        calls = jacobian.record(part).calls
        obstacles = _call_obstacles(calls, layers, len(part)) | obstacles
    return calls, obstacles


def _wrong_as_layers(
    network: FrozenNetwork,
    parameters: Sequence[str],
    linear: Sequence[str],
    inputs: torch.Tensor,
    opening: Opening | None,
) -> list[str]:
    """Parameters of Linear layers whose gradient is not that of one call of their layer."""
    opening = opening or Opening()
    depends = {"parameters": list(parameters), "linear": list(linear)}
    known = opening.found("layers", **depends)
    if known is None:
        trial = GradientTrial(network, parameters, inputs)
        known = trial.wrong_parameters(
            {name: (GradientRule("layer", name.rpartition(".")[0], (name,)),) for name in linear}
        )
        opening.keep("layers", known, **depends)
    return list(known)


def linear_layout(
    network: FrozenNetwork, parameters: Sequence[str], n_probes: int
) -> FeatureLayout | None:
    """Layout of exact rows if every Linear layer is one factor; None if the rest is too large.

    Args:
        network: the frozen network; not run.
        parameters: names of the audited parameters.
        n_probes: output directions.
    """
    inner = network.inner
    owners = {name: name.rpartition(".")[0] for name in parameters}
    linear = [n for n in parameters if type(inner.get_submodule(owners[n])) is nn.Linear]
    others = [name for name in parameters if name not in set(linear)]
    if not linear or _too_many(inner, others):
        return None
    rules = [
        GradientRule("layer", layer, tuple(n for n in linear if owners[n] == layer))
        for layer in dict.fromkeys(owners[name] for name in linear)
    ]
    rules += [GradientRule("bare", name, (name,)) for name in others]
    probes = np.zeros((n_probes, 1), dtype=np.float32)
    return FactorFeatures(network, rules, parameters, probes, (0,)).layout


def _too_many(inner: nn.Module, others: Sequence[str]) -> str:
    """Reason why parameters outside Linear factors are too many; empty if they are few."""
    # Plain gradients take one column a number, so they must be few.
    size = sum(inner.get_parameter(name).numel() for name in others)
    if size <= SMALL_PARAMETERS:
        return ""
    owner = type(inner.get_submodule(others[0].rpartition(".")[0])).__name__
    return f"{others[0]} and others hold {size} numbers outside Linear layers ({owner})"


def _call_obstacles(calls: Sequence[Call], layers: Sequence[str], n_samples: int) -> dict[str, str]:
    """Reason why a layer is no exact factor, by the name of the layer."""
    names = [call.name for call in calls]
    obstacles = {}
    for layer in layers:
        # Never called, or called twice: no single input a_l.
        if names.count(layer) != 1:
            times = "twice" if layer in names else "nowhere"
            obstacles[layer] = f"layer {layer} is called {times} as a layer"
    for call in calls:
        shape = tuple(call.input.shape)
        if len(shape) != 2 or shape[0] != n_samples:
            reason = f"layer {call.name} reads shape {shape}, not one vector a sample"
            obstacles.setdefault(call.name, reason)
    return obstacles


def _term_obstacle(jacobian: Jacobian, samples: torch.Tensor) -> str:
    """Reason why a plain gradient cannot be a part of the row; empty if there is none."""
    recording = jacobian.record(samples)
    for term in jacobian.terms(recording, torch.ones(recording.outputs.shape[1])):
        if not isinstance(term, DenseGradient) or term.start:
            return f"{term.parameter} has a factored gradient outside Linear layers"
        if term.values[0].numel() != math.prod(jacobian.shapes[term.parameter]):
            return f"{term.parameter} is used in parts"
    return ""


def _consecutive(start: int, widths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Consecutive ranges [start, stop) of these widths."""
    stops = np.cumsum([start, *widths]).tolist()
    return tuple((int(a), int(b)) for a, b in itertools.pairwise(stops))


def _spans(factor: LayerFactor) -> tuple[tuple[int, int], ...]:
    """Column ranges of a factor: inputs first, then one range a probe."""
    return factor.gradients if factor.inputs is None else (factor.inputs, *factor.gradients)


def _join(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf
