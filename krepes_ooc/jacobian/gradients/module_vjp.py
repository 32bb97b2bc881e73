"""Per-sample vector-Jacobian products of any module, run again sample by sample.

``torch.func.vmap`` runs all samples at once where it can; otherwise a loop does, slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from krepes_ooc.jacobian.gradients.layer_gradients import DenseGradient, GradientTerm
from krepes_ooc.jacobian.gradients.replaced_parameters import replaced_parameters
from krepes_ooc.jacobian.gradients.tape import Call
from krepes_ooc.network.activation_checkpoints import without_checkpoints

# Most numbers in the gradients that are formed at once: 64 MiB of float32.
CHUNK_NUMBERS = 2**24
Axes = tuple[int | None, ...]
State = dict[str, torch.Tensor]


def call_terms(
    call: Call,
    gradients: Sequence[torch.Tensor | None],
    parameters: Sequence[str],
    axes: Axes,
    n_samples: int,
    loop: bool,
) -> Iterator[GradientTerm]:
    """Terms of one call of any module, a few samples at a time.

    Args:
        call: the call.
        gradients: the gradient at each of its results.
        parameters: names, inside the module, of the requested parameters.
        axes: the sample axis of each tensor argument and then of each result; None if it has none.
        n_samples: samples in the batch.
        loop: take the samples one after the other.
    """
    module = call.layer
    assert module is not None
    tensors = call.tensors()
    # A result that the outputs do not depend on has the cotangent zero.
    cotangents = [
        tensors[0].new_zeros(shape, dtype=_dtype(module)) if gradient is None else gradient
        for gradient, shape in zip(gradients, call.shapes, strict=True)
    ]
    # Arguments and cotangents with the sample axis in front; the rest is shared by all samples.
    varying = [
        _by_sample(v, a, n_samples) for v, a in zip([*tensors, *cotangents], axes, strict=True)
    ]
    in_axes = [None if axis is None else 0 for axis in axes]
    state = {name: module.get_parameter(name).detach() for name in parameters}
    product = _cotangent_product(call, module, len(tensors))
    # Bounded memory: per-sample gradients are as large as the parameters.
    step = max(1, CHUNK_NUMBERS // max(1, sum(value.numel() for value in state.values())))
    for first in range(0, n_samples, step):
        part = [
            value if axis is None else value[first : first + step]
            for value, axis in zip(varying, in_axes, strict=True)
        ]
        size = min(step, n_samples - first)
        with torch.enable_grad():
            if loop:
                rows = _loop(product, state, part, in_axes, size)
            else:
                rows = torch.func.vmap(torch.func.grad(product), (None, in_axes))(state, part)
        yield from (DenseGradient(name, rows[name].detach(), first=first) for name in parameters)


def sample_axes(small: Call, large: Call, n_small: int, n_large: int) -> Axes:
    """Axis that grows with the batch, for each tensor argument and result of two calls."""
    shapes = [
        [*(tuple(value.shape) for value in call.tensors()), *call.shapes] for call in (small, large)
    ]
    return tuple(
        _growing_axis(one, two, n_small, n_large) for one, two in zip(*shapes, strict=True)
    )


def _growing_axis(
    one: tuple[int, ...], two: tuple[int, ...], n_small: int, n_large: int
) -> int | None:
    for axis, (size, larger) in enumerate(zip(one, two, strict=True)):
        # Proportional growth: an axis may hold several entries a sample.
        if size != larger and size * n_large == larger * n_small:
            return axis
    return None


def _by_sample(value: torch.Tensor, axis: int | None, n_samples: int) -> torch.Tensor:
    """Split the sample axis into [sample, entries of one sample] and bring the sample first."""
    if axis is None:
        return value
    shape = (*value.shape[:axis], n_samples, -1, *value.shape[axis + 1 :])
    return value.reshape(shape).movedim(axis, 0)


def _cotangent_product(
    call: Call, module: nn.Module, n_arguments: int
) -> Callable[[State, list[torch.Tensor]], torch.Tensor]:
    """<cotangents, module(arguments)> as a function of the parameters and of both.

    Its gradient with respect to the parameters is the vector-Jacobian product.
    """
    leaves, tree = pytree.tree_flatten((call.args, call.kwargs))
    indices = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def product(state: State, values: list[torch.Tensor]) -> torch.Tensor:
        arguments = list(leaves)
        for index, value in zip(indices, values[:n_arguments], strict=True):
            # An in-place layer must not reach what the next sample or probe will read.
            arguments[index] = value.clone()
        args, kwargs = pytree.tree_unflatten(arguments, tree)
        # The module itself, with its parameters replaced by the arguments of this function.
        with replaced_parameters(module, state), without_checkpoints():
            result: Any = module(*args, **kwargs)
        results = [
            leaf
            for leaf in pytree.tree_leaves(result)
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        ]
        cotangents = values[n_arguments:]
        # Non-floating results have no gradient and no cotangent.
        products = [(r * c).sum() for r, c in zip(results, cotangents, strict=True)]
        return torch.stack(products).sum()

    return product


def _loop(
    product: Callable[[State, list[torch.Tensor]], torch.Tensor],
    state: State,
    varying: list[torch.Tensor],
    in_axes: list[int | None],
    n_samples: int,
) -> State:
    """Gradients [sample, *parameter] by one backward pass a sample."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in state}
    for sample in range(n_samples):
        # Leaves of their own for each sample: no gradient is accumulated.
        leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
        values = [v if a is None else v[sample] for v, a in zip(varying, in_axes, strict=True)]
        gradients = torch.autograd.grad(
            product(leaves, values), list(leaves.values()), materialize_grads=True
        )
        for name, gradient in zip(leaves, gradients, strict=True):
            rows[name].append(gradient)
    return {name: torch.stack(values) for name, values in rows.items()}


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
