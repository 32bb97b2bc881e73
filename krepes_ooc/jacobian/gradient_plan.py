"""Plan how every parameter's per-sample gradient is reached, and prove each choice on two samples.

The fast ways see what layers read and write. What they cannot see (functional use of a weight, a
parametrisation, an unusual sample axis) they would miss in silence, so each choice is compared
with plain autograd, and a parameter that fails moves on to the next way: its layer with another
sample axis, one leaf a sample, then the module that owns it, and the modules around that one, run
again sample by sample. This trial is in float32 and finds gross errors; the self-check then proves
the plan in float64.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian import attention, layer_gradients, module_vjp
from krepes_ooc.jacobian.autograd_reference import TOLERANCE, gradient_errors, random_probe
from krepes_ooc.jacobian.jacobian import GradientRule, Jacobian, canonical_names
from krepes_ooc.jacobian.tape import Tape
from krepes_ooc.network.frozen import FrozenNetwork

GradientPath = tuple[GradientRule, ...]


def plan_rules(
    network: FrozenNetwork, parameters: Sequence[str], inputs: torch.Tensor
) -> tuple[GradientRule, ...]:
    """The cheapest proven way to each parameter's gradient.

    Args:
        network: the frozen network.
        parameters: canonical names of the audited parameters.
        inputs: different samples [sample, ...], 2 or more: gradients of the first two are compared,
            and all are run once, because a network may take another path for some samples.

    Raises:
        NetworkError: no way gives autograd's gradient; the message names the parameters.
    """
    trial = GradientTrial(network, inputs[:2])
    ways = {name: _ways(network.inner, name) for name in parameters}
    current: dict[str, GradientPath] = {}
    pending = list(parameters)
    while pending:
        for name in pending:
            way = next(ways[name], None)
            if way is None:
                raise NetworkError(
                    "no way was found to this parameter's per-sample gradient",
                    where=name,
                    expected="a network whose samples can be run one by one",
                    advice="leave it out: features.parameters",
                )
            current[name] = trial.with_axes(way)
        pending = trial.errors_of({name: current[name] for name in pending})
        pending = pending or trial.raises(current, inputs)
    return merge_rules(unit for name in parameters for unit in current[name])


def merge_rules(units: Iterable[GradientRule]) -> tuple[GradientRule, ...]:
    """One unit for all parameters that are reached in the same way."""
    merged: dict[GradientRule, list[str]] = defaultdict(list)
    for unit in units:
        merged[replace(unit, parameters=())] += unit.parameters
    return tuple(
        replace(unit, parameters=tuple(dict.fromkeys(names))) for unit, names in merged.items()
    )


class GradientTrial:
    """Compare ways with autograd on two samples."""

    def __init__(self, network: FrozenNetwork, inputs: torch.Tensor) -> None:
        # A third entry, so that an axis of two is not taken for the samples.
        self.network, self.inputs = network, torch.cat([inputs, inputs[:1]])
        with torch.no_grad():
            n_outputs = network(inputs.clone()).shape[1]
        dtype = next(network.parameters()).dtype
        self.tolerance = TOLERANCE[dtype]
        self.probe = random_probe(n_outputs, range(n_outputs), dtype)

    def errors_of(self, ways: dict[str, GradientPath]) -> list[str]:
        """The parameters whose way does not give autograd's gradient."""
        try:
            errors = self._errors(ways)
        except Exception:  # a way may fail in the user's own code, in any manner
            # One way that fails to run spoils all: judge each alone.
            if len(ways) == 1:
                return list(ways)
            return [name for name, way in ways.items() if self.errors_of({name: way})]
        return [name for name, error in errors.items() if not error <= self.tolerance]

    def raises(self, ways: dict[str, GradientPath], inputs: torch.Tensor) -> list[str]:
        """The parameters whose way cannot be gone on these samples."""
        jacobian = Jacobian(self.network, merge_rules(u for way in ways.values() for u in way))
        try:
            for _ in jacobian.terms(jacobian.record(inputs.clone()), self.probe):
                pass
        except Exception:  # as above
            if len(ways) == 1:
                return list(ways)
            return [name for name, way in ways.items() if self.raises({name: way}, inputs)]
        return []

    def with_axes(self, way: GradientPath) -> GradientPath:
        """Find the sample axes of the modules that are run again."""
        return tuple(
            replace(unit, axes=self._axes(unit.name)) if unit.method in ("vjp", "loop") else unit
            for unit in way
        )

    def _errors(self, ways: dict[str, GradientPath]) -> dict[str, float]:
        jacobian = Jacobian(self.network, merge_rules(u for way in ways.values() for u in way))
        with torch.no_grad():
            expected, found = (
                self.network(self.inputs.clone()),
                jacobian.record(self.inputs.clone()),
            )
        if float((expected - found.outputs.detach()).norm()) > self.tolerance * float(
            expected.norm()
        ):
            raise NetworkError("recording changes the outputs")
        return gradient_errors(
            self.network.deep_copy(), jacobian, list(ways), self.inputs, self.probe
        )

    def _axes(self, name: str) -> module_vjp.Axes:
        tape = Tape(self.network, (name,))
        try:
            two, three = (tape.record(self.inputs[:size].clone()).calls for size in (2, 3))
            return module_vjp.sample_axes(two[0], three[0], 2, 3)
        except Exception:  # never called, or the user's own code fails: no way through this module
            return ()


def _ways(inner: nn.Module, name: str) -> Iterator[GradientPath]:
    """Ways to one parameter, cheapest first."""
    canonical = canonical_names(inner)
    aliases = [alias for alias, first in canonical.items() if first == name]
    owners = [alias.rpartition(".")[0] for alias in aliases]
    modules = [inner.get_submodule(owner) for owner in owners]
    heads = [_attention_head(inner, owner) for owner in owners]
    if all(head is not None for head in heads):
        yield tuple(GradientRule("attention", str(head), (name,)) for head in dict.fromkeys(heads))
    elif all(layer_gradients.is_known(module) for module in modules):
        for axis in (0, 1):
            yield tuple(
                GradientRule("layer", owner, (name,), axis) for owner in dict.fromkeys(owners)
            )
    elif len(aliases) == 1 and _broadcasts(modules[0]):
        yield from _bare_ways(name, inner.get_parameter(name))
    for module_name in _common_ancestors(owners):
        yield (GradientRule("vjp", module_name, (name,)),)
        yield (GradientRule("loop", module_name, (name,)),)


def _broadcasts(owner: nn.Module) -> bool:
    """Whether a bare parameter may be used by broadcasting: not inside torch's own layers."""
    lists = (nn.ParameterList, nn.ParameterDict)
    return isinstance(owner, lists) or not type(owner).__module__.startswith("torch.")


def _bare_ways(name: str, parameter: torch.Tensor) -> Iterator[GradientPath]:
    if parameter.ndim and parameter.shape[0] == 1:
        yield (GradientRule("bare", name, (name,), -1),)
    for ones in range(4):
        yield (GradientRule("bare", name, (name,), ones),)


def _attention_head(inner: nn.Module, owner: str) -> str | None:
    """The recordable attention layer that holds a module, if there is one."""
    for name in (owner, owner.rpartition(".")[0]):
        if attention.can_record(inner.get_submodule(name)):
            return name
    return None


def _common_ancestors(owners: Sequence[str]) -> list[str]:
    """Modules that hold all owners, innermost first; the network itself is the last."""
    chains: list[Any] = [[*_prefixes(owner)] for owner in owners]
    return [name for name in chains[0] if all(name in chain for chain in chains)]


def _prefixes(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
