"""Weights that a module computes from its parameters before a linear layer or a convolution.

Weight standardisation, equalised learning rates and parametrisations (weight_norm, spectral_norm,
orthogonal) run z = W a + b with W = g(p), which is the same for all samples. The gradient of a
sample with respect to W is that of a plain layer, and dL/dp = J_g^T dL/dW takes one backward pass
through g, which no sample's activations enter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from krepes_ooc.jacobian.gradients.replaced_parameters import replaced_parameters
from krepes_ooc.network.frozen import FrozenNetwork

_RANKS = {
    functional.linear: 0,
    functional.conv1d: 1,
    functional.conv2d: 2,
    functional.conv3d: 3,
}
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class ComputedWeight:
    """A weight with the graph of its computation, and the layer that it is used in.

    Args:
        value: W [row, column] or [row, channel, ...], with its graph.
        leaves: the parameters that it is computed from, by their names inside the module.
        rank: spatial axes of the convolution; 0 for a linear layer.
        padding: zeros before and behind each axis, last axis first, as ``functional.pad`` takes it.
        stride: steps of the convolution.
        dilation: distances of its taps.
        groups: its groups.
    """

    value: torch.Tensor
    leaves: Mapping[str, torch.Tensor]
    rank: int
    padding: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


# Name of the module, weight, input and result; returns the result as the network goes on with it.
WeightRecorder = Callable[[str, ComputedWeight, torch.Tensor, torch.Tensor], torch.Tensor]


def record_weights(
    module: nn.Module, name: str, record: WeightRecorder, is_active: Callable[[], bool]
) -> None:
    """Make a module, in place, tell every weight that it computes from its parameters.

    Args:
        module: the module, which may be used by one thread only from now on.
        name: its name in the user's module.
        record: the recorder.
        is_active: whether anything is recorded now.
    """
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (is_active() and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        # What is no parameter stands for a bare one: it has a leaf of its own already.
        leaves = {
            leaf: nn.Parameter(parameter.detach())
            for leaf, parameter in module.named_parameters()
            if isinstance(parameter, nn.Parameter)
        }
        with replaced_parameters(module, leaves), _Watching(name, leaves, record):
            return plain(*args, **kwargs)

    module.forward = forward


def find_computed(network: FrozenNetwork, inputs: torch.Tensor) -> dict[str, str]:
    """Module that computes a weight from it, by name of the parameter; found by one pass.

    Args:
        network: the frozen network.
        inputs: a few samples [sample, ...].
    """
    copied = network.shared_copy()
    found: dict[str, str] = {}

    def record(
        name: str, weight: ComputedWeight, inputs: torch.Tensor, result: torch.Tensor
    ) -> torch.Tensor:
        del inputs
        reached = torch.autograd.grad(
            weight.value,
            list(weight.leaves.values()),
            torch.zeros_like(weight.value),
            retain_graph=True,
            allow_unused=True,
        )
        for leaf, gradient in zip(weight.leaves, reached, strict=True):
            if gradient is not None:
                found[f"{name}.{leaf}" if name else leaf] = name
        return result

    candidates = [(n, m) for n, m in copied.inner.named_modules() if may_compute(m)]
    for name, module in candidates:
        record_weights(module, name, record, lambda: True)
    if candidates:
        # Where the user's code fails on a copy of its parameters, there is no such way.
        with contextlib.suppress(Exception), torch.enable_grad():
            copied(inputs.clone())
    return found


def expected_computed(inner: nn.Module) -> dict[str, str]:
    """As ``find_computed``, from classes alone: originals of parametrised layers of torch."""
    return {
        f"{name}.{leaf}" if name else leaf: name
        for name, module in inner.named_modules()
        if parametrize.is_parametrized(module) and isinstance(module, _LAYERS)
        for leaf, _ in module.named_parameters()
        if leaf.startswith("parametrizations.weight.")
    }


def may_compute(module: nn.Module) -> bool:
    """Whether a module may compute a weight: it is parametrised, or has a forward of its own."""
    if parametrize.is_parametrized(module):
        return True
    is_part = isinstance(module, parametrize.ParametrizationList)
    owns = any(True for _ in module.parameters(recurse=False))
    return owns and not is_part and not _runs_torch(module)


def _runs_torch(module: nn.Module) -> bool:
    """Whether the forward of the module is one of torch's own layers."""
    return str(getattr(type(module).forward, "__module__", "")).startswith("torch.")


class _Watching(TorchFunctionMode):
    """Records linear layers and convolutions whose weight carries a graph."""

    def __init__(
        self, name: str, leaves: Mapping[str, torch.Tensor], record: WeightRecorder
    ) -> None:
        super().__init__()
        self.name = name
        self.leaves = leaves
        self.record = record

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """The function's own result, recorded where its weight is computed."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in _RANKS:
            return result
        given = dict(zip(_NAMES, args, strict=False)) | kwargs
        # A leaf is a parameter as it is: hooks see such layers.
        if given["weight"].grad_fn is None:
            return result
        weight = _computed_weight(given, self.leaves, _RANKS[func])
        return self.record(self.name, weight, given["input"], result)


def _computed_weight(
    given: dict[str, Any], leaves: Mapping[str, torch.Tensor], rank: int
) -> ComputedWeight:
    """The weight of a call of a layer, with the settings of the layer."""
    value = given["weight"]
    if not rank:
        return ComputedWeight(value, leaves, rank)
    stride, dilation = (_each_axis(given.get(key, 1), rank) for key in ("stride", "dilation"))
    before_and_behind = _padding(given.get("padding", 0), value.shape[2:], dilation)
    return ComputedWeight(
        value, leaves, rank, before_and_behind, stride, dilation, given.get("groups", 1)
    )


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Zeros before and behind each axis, last axis first."""
    totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    if padding == "same":
        # As torch has it: the larger half behind.
        pairs = [(total // 2, total - total // 2) for total in totals]
    elif padding == "valid":
        pairs = [(0, 0)] * len(kernel)
    else:
        pairs = [(each, each) for each in _each_axis(padding, len(kernel))]
    return tuple(entry for pair in reversed(pairs) for entry in pair)


def _each_axis(value: Any, rank: int) -> tuple[int, ...]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * rank if len(numbers) == 1 else numbers
