"""Plan of the path to every parameter's per-sample gradient, each proven on two samples.

The fast paths record what layers read and write. What they do not see (functional use of a weight,
a parametrisation, an unusual sample axis) they would miss in silence, so each choice is compared
with plain autograd, and a parameter that fails moves on to the next path: its layer with another
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
    """Cheapest proven path to each parameter's gradient.

    Args:
        network: the frozen network.
        parameters: canonical names of the audited parameters.
        inputs: different samples [sample, ...], 2 or more: gradients of the first two are compared,
            and all are run once, because a network may branch for some samples.

    Raises:
        NetworkError: no path gives autograd's gradient; the message names the parameter.
    """
    trial = GradientTrial(network, inputs[:2])
    paths = {name: _candidate_paths(network.inner, name) for name in parameters}
    current: dict[str, GradientPath] = {}
    # Each round tries the next path of every parameter that failed so far.
    pending = list(parameters)
    while pending:
        for name in pending:
            # Generators keep their place: a failed path is never tried twice.
            path = next(paths[name], None)
            if path is None:
                raise NetworkError(
                    "no way was found to this parameter's per-sample gradient",
                    where=name,
                    expected="a network whose samples can be run one by one",
                    advice="leave it out: features.parameters",
                )
            current[name] = trial.with_sample_axes(path)
        pending = trial.wrong_parameters({name: current[name] for name in pending})
        # Only when all gradients agree: the other samples may take other branches.
        pending = pending or trial.failing_parameters(current, inputs)
    return merge_rules(rule for name in parameters for rule in current[name])


def merge_rules(rules: Iterable[GradientRule]) -> tuple[GradientRule, ...]:
    """Rules merged over all parameters that are reached in the same way."""
    merged: dict[GradientRule, list[str]] = defaultdict(list)
    for rule in rules:
        # Rules are equal up to their parameters: one recording serves them all.
        merged[replace(rule, parameters=())] += rule.parameters
    return tuple(
        replace(rule, parameters=tuple(dict.fromkeys(names))) for rule, names in merged.items()
    )


class GradientTrial:
    """Comparison of gradient paths with autograd on two samples.

    Args:
        network: the frozen network.
        inputs: two different samples [2, ...].
    """

    def __init__(self, network: FrozenNetwork, inputs: torch.Tensor) -> None:
        self.network = network
        # A third entry, so that an axis of two is not taken for the samples.
        self.inputs = torch.cat([inputs, inputs[:1]])
        with torch.no_grad():
            n_outputs = network(inputs.clone()).shape[1]
        dtype = next(network.parameters()).dtype
        self.tolerance = TOLERANCE[dtype]
        self.probe = random_probe(n_outputs, range(n_outputs), dtype)

    def wrong_parameters(self, paths: dict[str, GradientPath]) -> list[str]:
        """Parameters whose path does not give autograd's gradient."""
        try:
            errors = self._errors(paths)
        except Exception:  # a path may fail in the user's code, in any manner
            # One path that fails to run spoils all: try each by itself.
            if len(paths) == 1:
                return list(paths)
            return [name for name, path in paths.items() if self.wrong_parameters({name: path})]
        # Written so that a NaN counts as wrong.
        return [name for name, error in errors.items() if not error <= self.tolerance]

    def failing_parameters(self, paths: dict[str, GradientPath], inputs: torch.Tensor) -> list[str]:
        """Parameters whose path fails to run on these samples."""
        jacobian = Jacobian(self.network, merge_rules(u for path in paths.values() for u in path))
        try:
            for _ in jacobian.terms(jacobian.record(inputs.clone()), self.probe):
                pass
        except Exception:  # as above
            if len(paths) == 1:
                return list(paths)
            return [
                name
                for name, path in paths.items()
                if self.failing_parameters({name: path}, inputs)
            ]
        return []

    def with_sample_axes(self, path: GradientPath) -> GradientPath:
        """The path with the sample axes of the modules that are run again."""
        return tuple(
            replace(rule, axes=self._axes(rule.name)) if rule.method in ("vjp", "loop") else rule
            for rule in path
        )

    def _errors(self, paths: dict[str, GradientPath]) -> dict[str, float]:
        jacobian = Jacobian(self.network, merge_rules(u for path in paths.values() for u in path))
        with torch.no_grad():
            expected = self.network(self.inputs.clone())
            recording = jacobian.record(self.inputs.clone())
        difference = float((expected - recording.outputs.detach()).norm())
        if difference > self.tolerance * float(expected.norm()):
            raise NetworkError("recording changes the outputs")
        return gradient_errors(
            self.network.deep_copy(), jacobian, list(paths), self.inputs, self.probe
        )

    def _axes(self, name: str) -> module_vjp.Axes:
        tape = Tape(self.network, (name,))
        try:
            # The sample axis is the one that grows with the batch.
            two, three = (tape.record(self.inputs[:size].clone()).calls for size in (2, 3))
            return module_vjp.sample_axes(two[0], three[0], 2, 3)
        except Exception:  # never called, or the user's code fails: no path through this module
            return ()


def _candidate_paths(inner: nn.Module, name: str) -> Iterator[GradientPath]:
    """Candidate paths to one parameter, cheapest first."""
    canonical = canonical_names(inner)
    # A tied parameter is reached through each layer that uses it.
    aliases = [alias for alias, first in canonical.items() if first == name]
    owners = [alias.rpartition(".")[0] for alias in aliases]
    modules = [inner.get_submodule(owner) for owner in owners]
    heads = [_attention_head(inner, owner) for owner in owners]
    # Attention projections, once for each layer.
    if all(head is not None for head in heads):
        yield tuple(GradientRule("attention", str(head), (name,)) for head in dict.fromkeys(heads))
    # Layers with closed per-sample gradients; the sample axis is 0, or 1 for [token, sample, ...].
    elif all(layer_gradients.is_known(module) for module in modules):
        for axis in (0, 1):
            yield tuple(
                GradientRule("layer", owner, (name,), axis) for owner in dict.fromkeys(owners)
            )
    # A bare parameter that broadcasts: one copy a sample.
    elif len(aliases) == 1 and _broadcasts(modules[0]):
        yield from _bare_paths(name, inner.get_parameter(name))
    # Last: run the smallest module around it again, by vmap, else in a loop.
    for module_name in _common_ancestors(owners):
        yield (GradientRule("vjp", module_name, (name,)),)
        yield (GradientRule("loop", module_name, (name,)),)


def _broadcasts(owner: nn.Module) -> bool:
    """Whether a bare parameter may be used by broadcasting: not inside layers of torch."""
    lists = (nn.ParameterList, nn.ParameterDict)
    return isinstance(owner, lists) or not type(owner).__module__.startswith("torch.")


def _bare_paths(name: str, parameter: torch.Tensor) -> Iterator[GradientPath]:
    # A leading axis of one, as of class tokens, can become the sample axis.
    if parameter.ndim and parameter.shape[0] == 1:
        yield (GradientRule("bare", name, (name,), -1),)
    # Else insert a sample axis and some axes to broadcast over.
    for ones in range(4):
        yield (GradientRule("bare", name, (name,), ones),)


def _attention_head(inner: nn.Module, owner: str) -> str | None:
    """Name of the recordable attention layer that a module belongs to, if there is one."""
    for name in (owner, owner.rpartition(".")[0]):
        if attention.can_record(inner.get_submodule(name)):
            return name
    return None


def _common_ancestors(owners: Sequence[str]) -> list[str]:
    """Modules that contain all owners, innermost first; the network itself is the last."""
    chains: list[Any] = [[*_prefixes(owner)] for owner in owners]
    return [name for name in chains[0] if all(name in chain for chain in chains)]


def _prefixes(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
