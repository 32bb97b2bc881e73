"""Jacobian of a network as unexpanded terms, by one rule for each group of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from krepes_ooc.jacobian.gradients import computed_gradients, layer_gradients, module_vjp
from krepes_ooc.jacobian.gradients.layer_gradients import DenseGradient, GradientTerm
from krepes_ooc.jacobian.gradients.tape import Call, Recording, Tape
from krepes_ooc.network.frozen import FrozenNetwork

Method = Literal["layer", "attention", "recurrent", "computed", "bare", "vjp", "loop"]


@dataclass(frozen=True)
class GradientRule:
    """Rule by which the gradients of some parameters are computed.

    Args:
        method: ``layer``, ``attention`` and ``recurrent`` from a layer's input and output gradient;
            ``computed`` likewise, through the computation of its weight; ``bare`` by one leaf a
            sample; ``vjp`` and ``loop`` by running a module again sample by sample.
        name: the module, or the bare parameter.
        parameters: canonical names of the parameters that the rule contributes to.
        axis: sample axis of a layer, or axes inserted behind a bare parameter's sample axis.
        axes: sample axes of a module's arguments and results, for ``vjp`` and ``loop``.
    """

    method: Method
    name: str
    parameters: tuple[str, ...]
    axis: int = 0
    axes: module_vjp.Axes = ()

    def in_loop(self) -> GradientRule:
        """The rule with a loop for vmap: some layers of torch run under vmap in float32 only."""
        return replace(self, method="loop") if self.method == "vjp" else self

    def to_attributes(self) -> dict[str, Any]:
        """The rule as JSON."""
        return {"method": self.method, "name": self.name, "parameters": list(self.parameters)}

    def to_record(self) -> dict[str, Any]:
        """The rule with its axes as JSON, for the record of an opening."""
        return self.to_attributes() | {"axis": self.axis, "axes": list(self.axes)}

    @classmethod
    def from_record(cls, known: Mapping[str, Any]) -> GradientRule:
        """The rule from ``to_record``."""
        axes = tuple(known["axes"])
        return cls(known["method"], known["name"], tuple(known["parameters"]), known["axis"], axes)


class Jacobian:
    """Per-sample gradients of probed outputs with respect to the parameters of a plan.

    Args:
        network: the frozen network; copied.
        rules: the plan; several rules may contribute to one (tied) parameter.
    """

    def __init__(self, network: FrozenNetwork, rules: Sequence[GradientRule]) -> None:
        self.rules = tuple(rules)
        own = ("attention", "recurrent", "computed", "bare")
        by_method = {m: [r for r in rules if r.method == m] for m in own}
        # A module may serve several rules: it is hooked once.
        hooked = [r.name for r in rules if r.method in ("layer", "vjp", "loop")]
        self._tape = Tape(
            network,
            tuple(dict.fromkeys(hooked)),
            tuple(rule.name for rule in by_method["attention"]),
            {rule.name: rule.axis for rule in by_method["bare"]},
            tuple(dict.fromkeys(rule.name for rule in by_method["computed"])),
            tuple(dict.fromkeys(rule.name for rule in by_method["recurrent"])),
        )
        inner = self._tape.network.inner
        self._canonical = canonical_names(inner)
        self.shapes = {name: tuple(p.shape) for name, p in inner.named_parameters()}

    def record(self, inputs: torch.Tensor) -> Recording:
        """Run the network on inputs[sample, ...]."""
        return self._tape.record(inputs)

    def terms(self, recording: Recording, probe: torch.Tensor) -> Iterator[GradientTerm]:
        """Terms of the gradient of <probe, outputs>, named by canonical parameter."""
        gradients = recording.backward(probe)
        for call, at_results in zip(recording.calls, gradients, strict=True):
            yield from self.call_terms(call, at_results, len(recording.outputs))

    def call_terms(
        self, call: Call, gradients: Sequence[torch.Tensor | None], n_samples: int
    ) -> Iterator[GradientTerm]:
        """Terms of one call, given the gradients at its results."""
        # The probed outputs do not depend on this call.
        if all(gradient is None for gradient in gradients):
            return
        for rule in self.rules:
            # A hooked module, its projections and its computed weights have one name.
            if rule.name == call.name and _records(rule.method, call):
                yield from self._rule_terms(rule, call, gradients, n_samples)

    def gradients(
        self, inputs: torch.Tensor, probe: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and gradient [sample, *parameter] of <probe, f>, parameter by parameter."""
        return self.recorded_gradients(self.record(inputs), probe)

    def recorded_gradients(
        self, recording: Recording, probe: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """As ``gradients``, of a pass that is recorded already."""
        by_name: dict[str, list[GradientTerm]] = {
            name: [] for rule in self.rules for name in rule.parameters
        }
        for term in self.terms(recording, probe):
            by_name[term.parameter].append(term)
        for name, terms in by_name.items():
            # Terms of tied parameters and of repeated calls add up.
            total = probe.new_zeros(len(recording.outputs), *self.shapes[name])
            for term in terms:
                values = layer_gradients.expand(term, self.shapes[name])
                # Terms of modules that are run again come a few samples at a time.
                first = term.first if isinstance(term, DenseGradient) else 0
                total[first : first + len(values)] += values
            yield name, total

    def _rule_terms(
        self,
        rule: GradientRule,
        call: Call,
        gradients: Sequence[torch.Tensor | None],
        n_samples: int,
    ) -> Iterator[GradientTerm]:
        """Terms of one call by one rule, under canonical names."""
        if rule.method == "bare":
            assert gradients[0] is not None
            yield DenseGradient(rule.name, gradients[0].reshape(n_samples, *self.shapes[rule.name]))
            return
        for term in self._module_terms(rule, call, gradients, n_samples):
            prefix = f"{rule.name}." if rule.name else ""
            # A weight that a parametrisation computes has no canonical name.
            name = self._canonical.get(prefix + term.parameter, "")
            if name in rule.parameters:
                yield replace(term, parameter=name)

    def _module_terms(
        self,
        rule: GradientRule,
        call: Call,
        gradients: Sequence[torch.Tensor | None],
        n_samples: int,
    ) -> Iterable[GradientTerm]:
        """Terms of one call of a module, under the names inside the module."""
        if rule.method in ("vjp", "loop"):
            assert call.layer is not None
            inside = self._names_inside(rule, call.layer)
            loop = rule.method == "loop"
            return module_vjp.call_terms(call, gradients, inside, rule.axes, n_samples, loop)
        gradient = gradients[0]
        assert gradient is not None
        if call.weight is not None:
            return computed_gradients.computed_terms(call, gradient, n_samples)
        if call.projection is not None:
            return layer_gradients.projection_terms(call, gradient, n_samples)
        return layer_gradients.layer_terms(call, gradient, n_samples, rule.axis)

    def _names_inside(self, rule: GradientRule, module: nn.Module) -> list[str]:
        """One name inside the module for each wanted parameter; tied ones are swapped together."""
        prefix = f"{rule.name}." if rule.name else ""
        names = [name for name, _ in module.named_parameters()]
        return [name for name in names if self._canonical[prefix + name] in rule.parameters]


def _records(method: Method, call: Call) -> bool:
    """Whether a call is of the kind that the method records."""
    if method in ("attention", "recurrent"):
        return call.projection is not None
    if method == "computed":
        return call.weight is not None
    return call.projection is None and call.weight is None


def canonical_names(module: nn.Module) -> dict[str, str]:
    """First name of each parameter, by every name that it has."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
