"""Module inside a network whose output is the audited embedding (recipe key ``network.module``)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from krepes_ooc.errors import NetworkError, UsageError

_LISTED = 12


@dataclass(frozen=True)
class ReadPoint:
    """Place in a network where the embedding is read.

    Args:
        module: the network that is run: the named module alone where it takes the network's own
            input, else the whole network.
        path: the named module inside ``module``; empty where it is run alone.
        unused: names of parameters and buffers of ``module`` that come after the embedding.
        alone: prefix of the names of ``module`` in the whole network; empty for all of it.
    """

    module: nn.Module
    path: str
    unused: tuple[str, ...] = ()
    alone: str = ""


def find_read_point(network: nn.Module, path: str, example: torch.Tensor) -> ReadPoint:
    """Run a network once and find how the output of one of its modules is read.

    Args:
        network: the whole network, its weights loaded.
        path: dotted path of the module.
        example: one input [1, ...].

    Raises:
        UsageError: there is no such module.
        NetworkError: the network does not run, or runs the module never or several times.
    """
    target = _submodule(network, path)
    calls, called = _record(network, target, path, example)
    if len(calls) != 1:
        raise NetworkError(
            f"the network runs it {len(calls)} times",
            where=f"network.module {path}",
            expected="one run, whose output is the embedding",
            advice="name a module around it, or the one that it is part of",
        )
    arguments, output = calls[0]
    # Weights behind the embedding do not count: its gradient does not reach them.
    if len(arguments) == 1 and arguments[0] is example:
        return ReadPoint(target, "", (), f"{path}.")
    return ReadPoint(network, path, _unused(network, output, called))


def read_output(network: nn.Module, path: str, inputs: Any) -> Any:
    """Output of the module at ``path`` in one run of the network."""
    outputs: list[Any] = []

    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        # A copy: a later layer may work in place.
        outputs.append(_pytree.tree_map_only(torch.Tensor, torch.clone, output))

    handle = network.get_submodule(path).register_forward_hook(keep)
    try:
        network(inputs)
    finally:
        handle.remove()
    return outputs[-1]


def _submodule(network: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path.

    Raises:
        UsageError: there is none; names modules that are there.
    """
    modules: dict[str, nn.Module] = dict(network.named_modules())
    if path in modules and path:
        return modules[path]
    near = difflib.get_close_matches(path, list(modules), n=1)
    direct = [name for name, _ in network.named_children()]
    raise UsageError(
        f"the network has no module {path!r}",
        where="network.module",
        expected="a path of modules, such as " + ", ".join(direct[:_LISTED]),
        advice=f"did you mean {near[0]!r}?" if near and near[0] else "",
    )


def _record(
    network: nn.Module, target: nn.Module, path: str, example: torch.Tensor
) -> tuple[list[tuple[tuple[Any, ...], Any]], set[int]]:
    """Arguments and outputs of every run of a module, and the modules entered before it returned.

    Raises:
        NetworkError: the network does not run on the example.
    """
    calls: list[tuple[tuple[Any, ...], Any]] = []
    called: set[int] = set()

    def enter(module: nn.Module, _arguments: Any) -> None:
        if not calls:
            called.add(id(module))

    def leave(_module: nn.Module, arguments: tuple[Any, ...], named: Any, output: Any) -> None:
        given = (*arguments, *named.values())
        calls.append((given, _pytree.tree_map_only(torch.Tensor, torch.clone, output)))

    handles = [module.register_forward_pre_hook(enter) for module in network.modules()]
    handles.append(target.register_forward_hook(leave, with_kwargs=True))
    training = network.training
    try:
        network.eval()
        with torch.enable_grad():
            network(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise NetworkError(
            f"the network does not run: {error}",
            where=f"network.module {path}, an input of shape {tuple(example.shape)}",
            expected="the shape that the network was built for",
            advice="check network.arguments and the source",
        ) from error
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return calls, called


def _unused(network: nn.Module, output: Any, called: set[int]) -> tuple[str, ...]:
    """Names of the parameters and buffers that do not act on an output."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    tensors = [
        value
        for value in _pytree.tree_leaves(output)
        if isinstance(value, torch.Tensor) and value.requires_grad
    ]
    reached: set[str] = set()
    if tensors and parameters:
        with torch.enable_grad():
            total = torch.stack([tensor.sum() for tensor in tensors]).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        reached = {n for n, g in zip(parameters, gradients, strict=True) if g is not None}
    # Frozen parameters and buffers have no gradient: they act where their module was entered.
    entered = {
        f"{name}.{own}".lstrip(".")
        for name, module in network.named_modules()
        if id(module) in called
        for own, _ in (*module.named_parameters("", False), *module.named_buffers("", False))
    }
    used = reached | {name for name in entered if name not in parameters}
    return tuple(name for name in network.state_dict() if name not in used)
