"""Plan of the path to every parameter's per-sample gradient, each proven on two samples.

The fast paths record what layers read and write. What they do not see (functional use of a weight,
an unusual sample axis) they would miss in silence, so each choice is compared with plain autograd,
and a parameter that fails moves on to the next path: the weight that a module computes from it, its
layer, that with another sample axis, one leaf a sample, then the module that owns it, and the
modules around that one, run again sample by sample. This trial is in float32 and finds gross
errors; the self-check then proves the plan in float64.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian.autograd_reference import (
    TOLERANCE,
    AutogradGradients,
    random_probe,
    update_error,
)
from krepes_ooc.jacobian.gradients import (
    attention,
    computed_weights,
    layer_gradients,
    module_vjp,
    recurrent,
)
from krepes_ooc.jacobian.gradients.tape import Call, Recording, Tape
from krepes_ooc.jacobian.jacobian import GradientRule, Jacobian, canonical_names
from krepes_ooc.jacobian.opening import MAX_BATCH, Opening
from krepes_ooc.network.frozen import FrozenNetwork

GradientPath = tuple[GradientRule, ...]
Paths = dict[str, GradientPath]


def plan_rules(
    network: FrozenNetwork,
    parameters: Sequence[str],
    inputs: torch.Tensor,
    batch: int = MAX_BATCH,
    opening: Opening | None = None,
) -> tuple[GradientRule, ...]:
    """Cheapest proven path to each parameter's gradient.

    Args:
        network: the frozen network.
        parameters: canonical names of the audited parameters.
        inputs: different samples [sample, ...], 2 or more: gradients of the first two are compared,
            and all are run once, because a network may branch for some samples.
        batch: samples of one pass.
        opening: record and announcements.

    Raises:
        NetworkError: no path gives autograd's gradient; the message names the parameter.
    """
    opening = opening or Opening()
    known = opening.found("rules", parameters=list(parameters))
    if known is not None:
        return tuple(map(GradientRule.from_record, known))
    with opening.step(f"ways to {len(parameters)} gradients", count_trial_passes(len(inputs))):
        rules = _proven_rules(network, parameters, inputs, batch)
    opening.keep("rules", [rule.to_record() for rule in rules], parameters=list(parameters))
    return rules


def count_trial_passes(n_samples: int) -> float:
    """Forward and backward passes of one sample that trials of the first paths take."""
    # Autograd on two samples, a look at one for computed weights (a forward pass), outputs and
    # gradients of a trial on three, and the other samples.
    return 2 + 1 + 3 + max(0, n_samples - 2)


def _proven_rules(
    network: FrozenNetwork, parameters: Sequence[str], inputs: torch.Tensor, batch: int
) -> tuple[GradientRule, ...]:
    """Cheapest proven path to each parameter, by rounds over all that failed so far."""
    trial = GradientTrial(network, parameters, inputs[:2])
    computed = computed_weights.find_computed(network, inputs[:1])
    candidates = {name: _candidate_paths(network.inner, name, computed) for name in parameters}
    current: Paths = {}
    # Each round tries the next path of every parameter that failed so far.
    pending = list(parameters)
    while pending:
        for name in pending:
            # Generators keep their place: a failed path is never tried twice.
            path = next(candidates[name], None)
            if path is None:
                raise NetworkError(
                    "no way was found to this parameter's per-sample gradient",
                    where=name,
                    expected="a network whose samples can be run one by one",
                    advice="leave it out: features.parameters",
                )
            current[name] = path
        current |= trial.with_sample_axes({name: current[name] for name in pending})
        pending = trial.wrong_parameters({name: current[name] for name in pending})
        # Only when all gradients agree: the other samples may take other branches.
        for part in torch.split(inputs[2:], batch) if len(inputs) > 2 else ():
            pending = pending or trial.failing_parameters(current, part)
    return merge_rules(rule for name in parameters for rule in current[name])


def expected_rules(network: FrozenNetwork, parameters: Sequence[str]) -> tuple[GradientRule, ...]:
    """First path to each parameter that would be tried, from classes alone; nothing is run.

    Args:
        network: the frozen network.
        parameters: canonical names of the audited parameters.
    """
    computed = computed_weights.expected_computed(network.inner)
    paths = (next(_candidate_paths(network.inner, name, computed), ()) for name in parameters)
    return merge_rules(rule for path in paths for rule in path)


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

    Paths are tried together; those that fail to run are found class by class (``_failing``).

    Args:
        network: the frozen network.
        parameters: names of all audited parameters.
        inputs: two different samples [2, ...].
    """

    def __init__(
        self, network: FrozenNetwork, parameters: Sequence[str], inputs: torch.Tensor
    ) -> None:
        self.network = network
        # A third entry, so that an axis of two is not taken for the samples.
        self.inputs = torch.cat([inputs, inputs[:1]])
        with torch.no_grad():
            self._outputs = network(self.inputs.clone())
        n_outputs = self._outputs.shape[1]
        dtype = next(network.parameters()).dtype
        self.tolerance = TOLERANCE[dtype]
        self._axes: dict[str, module_vjp.Axes] = {}
        self.probe = random_probe(n_outputs, range(n_outputs), dtype)
        # Once for all rounds, and at the scale of whole rows.
        self._exact = AutogradGradients(network, parameters, inputs, self.probe)

    def wrong_parameters(self, paths: Paths) -> list[str]:
        """Parameters whose path does not give autograd's gradient."""
        return _failing(self.network.inner, paths, self._wrong)

    def failing_parameters(self, paths: Paths, inputs: torch.Tensor) -> list[str]:
        """Parameters whose path fails to run on these samples."""

        def run(some: Paths) -> list[str]:
            jacobian = Jacobian(self.network, merge_rules(u for p in some.values() for u in p))
            for _ in jacobian.terms(jacobian.record(inputs.clone()), self.probe):
                pass
            return []

        return _failing(self.network.inner, paths, run)

    def with_sample_axes(self, paths: Paths) -> Paths:
        """The paths with the sample axes of the modules that are run again, found together."""
        again = {rule.name for path in paths.values() for rule in path if _runs_again(rule)}
        self._find_axes(sorted(again - self._axes.keys()))
        return {
            name: tuple(replace(r, axes=self._axes[r.name]) if _runs_again(r) else r for r in path)
            for name, path in paths.items()
        }

    def _wrong(self, paths: Paths) -> list[str]:
        """Parameters whose gradient is wrong; fails where one of the paths fails to run."""
        jacobian = Jacobian(self.network, merge_rules(u for path in paths.values() for u in path))
        recording = jacobian.record(self.inputs.clone())
        difference = float((self._outputs - recording.outputs.detach()).norm())
        if difference > self.tolerance * float(self._outputs.norm()):
            raise NetworkError("recording changes the outputs")
        errors = self._exact.errors(list(paths), jacobian.recorded_gradients(recording, self.probe))
        wrong = self._beyond_tolerance(errors)
        return self._wrong_in_batch(wrong, jacobian, recording) if wrong else wrong

    def _wrong_in_batch(
        self, names: Sequence[str], jacobian: Jacobian, recording: Recording
    ) -> list[str]:
        """Those of the parameters whose gradient is also another than autograd's in this batch.

        A sample alone rounds otherwise than in a batch. Deep rectifiers that lie near zero turn
        that into a few hundredths of a gradient in float32, whatever its path; the self-check
        compares with the sample alone, in float64.
        """
        copied = self.network.differentiable_copy(names)
        tensors = [copied.inner.get_parameter(name) for name in names]
        outputs = copied(self.inputs.clone())
        found = jacobian.recorded_gradients(recording, self.probe)
        wanted = set(names)
        tested = {name: values for name, values in found if name in wanted}
        errors = dict.fromkeys(names, 0.0)
        for sample, floor in enumerate([*self._exact.floors, self._exact.floors[0]]):
            value = (outputs[sample] * self.probe).sum()
            gradients = torch.autograd.grad(
                value, tensors, retain_graph=True, materialize_grads=True
            )
            for name, exact in zip(names, gradients, strict=True):
                # A parameter that no path gives counts as a gradient of zero.
                given = tested[name][sample] if name in tested else torch.zeros_like(exact)
                update_error(errors, name, given.reshape(exact.shape) - exact, exact, floor)
        return self._beyond_tolerance(errors)

    def _beyond_tolerance(self, errors: Mapping[str, float]) -> list[str]:
        # Written so that a NaN counts as wrong.
        return [name for name, error in errors.items() if not error <= self.tolerance]

    def _find_axes(self, names: Sequence[str]) -> None:
        """Find the sample axes of modules by one pass of two samples and one of three."""
        # None where a module is never called or the user's code fails: no path through it.
        self._axes |= dict.fromkeys(names, ())
        if not names:
            return
        tape = Tape(self.network, names)
        with contextlib.suppress(Exception):
            two, three = (_first_calls(tape.record(self.inputs[:n].clone())) for n in (2, 3))
            for name in two.keys() & three.keys():
                # The sample axis is the one that grows with the batch.
                with contextlib.suppress(Exception):
                    self._axes[name] = module_vjp.sample_axes(two[name], three[name], 2, 3)


def _runs_again(rule: GradientRule) -> bool:
    return rule.method in ("vjp", "loop")


def _first_calls(recording: Recording) -> dict[str, Call]:
    """First call of each module."""
    return {call.name: call for call in reversed(recording.calls)}


def _failing(inner: nn.Module, paths: Paths, run: Callable[[Paths], list[str]]) -> list[str]:
    """Parameters whose path is wrong or fails to run, in few trials.

    All paths are tried at once. Where one fails to run, the classes of module are bisected; inside
    a class its first and its last path are tried, and where both fail all of it counts as failing:
    a deeper search would cost a trial a layer, and what counts as failing gets the next path.

    Args:
        inner: the user's module.
        paths: the path to each parameter.
        run: names of the wrong ones; raises where a path fails to run.
    """
    try:
        return run(paths)
    except Exception:  # a path may fail in the user's code, in any manner
        if len(paths) == 1:
            return list(paths)
    classes: dict[Any, Paths] = defaultdict(dict)
    for name, path in paths.items():
        classes[_path_class(inner, name, path)][name] = path
    if len(classes) > 1:
        return [n for half in _halves(list(classes.values())) for n in _failing(inner, half, run)]
    names = list(paths)
    ends = [_failing(inner, {name: paths[name]}, run) for name in (names[0], names[-1])]
    if all(ends):
        return names
    inside = {name: paths[name] for name in names[1:-1]}
    middle = _halves([{name: path} for name, path in inside.items()]) if inside else ()
    return [*ends[0], *(n for half in middle for n in _failing(inner, half, run)), *ends[1]]


def _halves(parts: Sequence[Paths]) -> tuple[Paths, ...]:
    """Two halves of a list of paths, each as one; the second one may be missing."""
    half = (len(parts) + 1) // 2
    joined = (
        {n: p for part in some for n, p in part.items()} for some in (parts[:half], parts[half:])
    )
    return tuple(part for part in joined if part)


def _path_class(inner: nn.Module, name: str, path: GradientPath) -> Any:
    """Class of module, leaf of the parameter and method: members of one class fail alike."""
    owner, _, leaf = name.rpartition(".")
    rules = tuple((r.method, r.axis, r.name == "", len(r.axes)) for r in path)
    return type(inner.get_submodule(owner)), leaf, rules


def _candidate_paths(
    inner: nn.Module, name: str, computed: Mapping[str, str]
) -> Iterator[GradientPath]:
    """Candidate paths to one parameter, cheapest first.

    Args:
        inner: the user's module.
        name: canonical name of the parameter.
        computed: module that computes a weight from it, by name of the parameter.
    """
    canonical = canonical_names(inner)
    # A tied parameter is reached through each layer that uses it.
    aliases = [alias for alias, first in canonical.items() if first == name]
    owners = [alias.rpartition(".")[0] for alias in aliases]
    modules = [inner.get_submodule(owner) for owner in owners]
    heads = [_attention_head(inner, owner) for owner in owners]
    # A weight that is computed from it, in each module that does so.
    if computing := dict.fromkeys(computed[alias] for alias in aliases if alias in computed):
        yield tuple(GradientRule("computed", module, (name,)) for module in computing)
    # Attention projections, once for each layer.
    if all(head is not None for head in heads):
        yield tuple(GradientRule("attention", str(head), (name,)) for head in dict.fromkeys(heads))
    elif all(map(recurrent.can_record, modules)):
        yield tuple(GradientRule("recurrent", owner, (name,)) for owner in dict.fromkeys(owners))
    else:
        # Layers with closed per-sample gradients, subclasses with a forward of their own included;
        # the sample axis is 0, or 1 for [token, sample, ...].
        for axis in (0, 1) if all(map(layer_gradients.has_terms, modules)) else ():
            yield tuple(
                GradientRule("layer", owner, (name,), axis) for owner in dict.fromkeys(owners)
            )
        # A bare parameter that broadcasts: one copy a sample.
        certain = all(map(layer_gradients.inherits_forward, modules))
        if not certain and len(aliases) == 1 and _broadcasts(modules[0]):
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
