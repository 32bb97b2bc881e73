"""Per-sample gradients of the parameters that a weight is computed from.

The gradient of a sample with respect to the weight W = G(p) is that of a plain layer; dL/dp =
J_g^T dL/dW by one backward pass through g, which no activation enters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.nn import functional

from krepes_ooc.jacobian.gradients.computed_weights import ComputedWeight
from krepes_ooc.jacobian.gradients.layer_gradients import (
    ConvGradient,
    DenseGradient,
    GradientTerm,
    OuterProduct,
    expand,
)
from krepes_ooc.jacobian.gradients.tape import Call

# Positions up to which a convolution is cheaper as a product over unfolded patches.
MAX_UNFOLDED_POSITIONS = 64


def computed_terms(call: Call, gradient: torch.Tensor, n_samples: int) -> Iterator[GradientTerm]:
    """Gradients of the parameters behind one computed weight, sample by sample.

    Args:
        call: the linear layer or convolution with that weight.
        gradient: the gradient at its result.
        n_samples: samples in the batch.

    Raises:
        NetworkError: the layer read some of the samples only.
    """
    weight = call.weight
    assert weight is not None
    call.check_samples(n_samples)
    term = _weight_term(weight, call.input, gradient, n_samples)
    leaves = list(weight.leaves.values())
    for sample in range(n_samples):
        # dL/dW of one sample; then dL/dp = J_g^T dL/dW, by the graph of the weight alone.
        [at_weight] = expand(_one_sample(term, sample), tuple(weight.value.shape))
        at_leaves = torch.autograd.grad(
            weight.value, leaves, at_weight, retain_graph=True, allow_unused=True
        )
        for name, found in zip(weight.leaves, at_leaves, strict=True):
            if found is not None:
                yield DenseGradient(name, found[None], first=sample)


def _weight_term(
    weight: ComputedWeight, inputs: torch.Tensor, gradient: torch.Tensor, n_samples: int
) -> OuterProduct | ConvGradient:
    """The gradient of the computed weight itself."""
    if not weight.rank:
        rows, columns = weight.value.shape
        inputs = inputs.reshape(n_samples, -1, columns)
        return OuterProduct("", inputs, gradient.reshape(n_samples, -1, rows))
    inputs = functional.pad(inputs, weight.padding) if any(weight.padding) else inputs
    term = ConvGradient(
        "",
        inputs.reshape(n_samples, -1, *inputs.shape[1:]),
        gradient.reshape(n_samples, -1, *gradient.shape[1:]),
        tuple(weight.value.shape),
        weight.stride,
        weight.dilation,
        weight.groups,
    )
    few = term.n_positions <= MAX_UNFOLDED_POSITIONS and weight.rank < 3 and weight.groups == 1
    return term.unfold() if few else term


def _one_sample(term: OuterProduct | ConvGradient, sample: int) -> GradientTerm:
    """The term of one sample of a batch."""
    part = slice(sample, sample + 1)
    return replace(term, inputs=term.inputs[part], gradients=term.gradients[part])
