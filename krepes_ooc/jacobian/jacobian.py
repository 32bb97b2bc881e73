"""The Jacobian of a network in unexpanded pieces, by a plan of how each parameter is reached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from krepes_ooc.jacobian import layer_gradients, module_vjp
from krepes_ooc.jacobian.layer_gradients import DenseGradient, GradientTerm
from krepes_ooc.jacobian.tape import Call, Recording, Tape
from krepes_ooc.network.frozen import FrozenNetwork

Method = Literal["layer", "attention", "bare", "vjp", "loop"]


@dataclass(frozen=True)
class GradientRule:
    """How some parameters are reached.

    Args:
        method: ``layer`` and ``attention`` from a layer's input and output gradient; ``bare`` by
            one leaf a sample; ``vjp`` and ``loop`` by running a module again sample by sample.
        name: the module, or the bare parameter.
        parameters: canonical names of the parameters that this unit contributes to.
        axis: sample axis of a layer, or axes inserted behind a bare parameter's sample axis.
        axes: sample axes of a module's arguments and results, for ``vjp`` and ``loop``.
    """

    method: Method
    name: str
    parameters: tuple[str, ...]
    axis: int = 0
    axes: module_vjp.Axes = ()

    def in_loop(self) -> GradientRule:
        """The same with a loop for vmap: some of torch's layers run under vmap in float32 only."""
        return replace(self, method="loop") if self.method == "vjp" else self

    def to_attributes(self) -> dict[str, Any]:
        """The unit as JSON."""
        return {"method": self.method, "name": self.name, "parameters": list(self.parameters)}


class Jacobian:
    """Per-sample gradients of probed outputs with respect to the parameters of a plan.

    Args:
        network: the frozen network; copied.
        units: the plan; several units may contribute to one (tied) parameter.
    """

    def __init__(self, network: FrozenNetwork, units: Sequence[GradientRule]) -> None:
        self.units = tuple(units)
        by_method = {m: [u for u in units if u.method == m] for m in ("attention", "bare")}
        hooked = [u.name for u in units if u.method in ("layer", "vjp", "loop")]
        self._tape = Tape(
            network,
            tuple(dict.fromkeys(hooked)),
            tuple(unit.name for unit in by_method["attention"]),
            {unit.name: unit.axis for unit in by_method["bare"]},
        )
        inner = self._tape.network.inner
        self._canonical = canonical_names(inner)
        self.shapes = {name: tuple(p.shape) for name, p in inner.named_parameters()}

    def record(self, inputs: torch.Tensor) -> Recording:
        """Run the network on inputs[sample, ...]."""
        return self._tape.record(inputs)

    def terms(self, recording: Recording, probe: torch.Tensor) -> Iterator[GradientTerm]:
        """Pieces of the gradient of <probe, outputs>, named by canonical parameter."""
        gradients = recording.backward(probe)
        for call, found in zip(recording.calls, gradients, strict=True):
            yield from self.call_terms(call, found, len(recording.outputs))

    def call_terms(
        self, call: Call, gradients: Sequence[torch.Tensor | None], n_samples: int
    ) -> Iterator[GradientTerm]:
        """Pieces of one call, given the gradients at its results."""
        if all(gradient is None for gradient in gradients):
            return
        for unit in self.units:
            if unit.name == call.name and (unit.method == "attention") == bool(call.projection):
                yield from self._rule_terms(unit, call, gradients, n_samples)

    def gradients(
        self, inputs: torch.Tensor, probe: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and gradient [sample, *parameter] of <probe, f>, parameter by parameter."""
        by_name: dict[str, list[GradientTerm]] = {
            name: [] for u in self.units for name in u.parameters
        }
        for piece in self.terms(self.record(inputs), probe):
            by_name[piece.parameter].append(piece)
        for name, pieces in by_name.items():
            total = probe.new_zeros(len(inputs), *self.shapes[name])
            for piece in pieces:
                values = layer_gradients.expand(piece, self.shapes[name])
                first = piece.first if isinstance(piece, DenseGradient) else 0
                total[first : first + len(values)] += values
            yield name, total

    def _rule_terms(
        self,
        unit: GradientRule,
        call: Call,
        gradients: Sequence[torch.Tensor | None],
        n_samples: int,
    ) -> Iterator[GradientTerm]:
        if unit.method == "bare":
            assert gradients[0] is not None
            yield DenseGradient(unit.name, gradients[0].reshape(n_samples, *self.shapes[unit.name]))
            return
        for piece in self._module_terms(unit, call, gradients, n_samples):
            prefix = f"{unit.name}." if unit.name else ""
            name = self._canonical.get(prefix + piece.parameter, "")  # none: a computed weight
            if name in unit.parameters:
                yield replace(piece, parameter=name)

    def _module_terms(
        self,
        unit: GradientRule,
        call: Call,
        gradients: Sequence[torch.Tensor | None],
        n_samples: int,
    ) -> Iterable[GradientTerm]:
        if unit.method in ("vjp", "loop"):
            assert call.layer is not None
            inside = self._names_inside(unit, call.layer)
            loop = unit.method == "loop"
            return module_vjp.call_terms(call, gradients, inside, unit.axes, n_samples, loop)
        gradient = gradients[0]
        assert gradient is not None
        if unit.method == "attention":
            return layer_gradients.projection_terms(call, gradient, n_samples)
        return layer_gradients.layer_terms(call, gradient, n_samples, unit.axis)

    def _names_inside(self, unit: GradientRule, module: nn.Module) -> list[str]:
        """One name inside the module for each wanted parameter; tied ones are swapped together."""
        prefix = f"{unit.name}." if unit.name else ""
        names = [name for name, _ in module.named_parameters()]
        return [name for name in names if self._canonical[prefix + name] in unit.parameters]


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Every name of every parameter to the first name of that parameter."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
