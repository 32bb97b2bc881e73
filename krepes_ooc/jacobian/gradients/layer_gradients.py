"""Per-sample parameter gradients of known layers, as unexpanded terms.

For a layer z = W a + b with gradient d at its output, dL/dW = sum_t d_t a_t^T over the positions t
of a sample and dL/db = sum_t d_t; a convolution is the same on unfolded patches; a normalisation
has dL/dweight = sum_t d_t * normalised input; an embedding adds d_t to the row of its token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from krepes_ooc.jacobian.gradients.tape import Call


@dataclass(frozen=True)
class OuterProduct:
    """sum over positions of gradients[sample, position, row] inputs[sample, position, column].

    Args:
        parameter: leaf name of the parameter.
        inputs: a [sample, position, column].
        gradients: d [sample, position, row].
        start: first row of the parameter that this term fills.
    """

    parameter: str
    inputs: torch.Tensor
    gradients: torch.Tensor
    start: int = 0


@dataclass(frozen=True)
class DenseGradient:
    """values[sample, ...] that fill the parameter from row ``start`` on.

    Args:
        parameter: leaf name of the parameter.
        values: the gradient of samples ``first`` to ``first + len(values)``.
        start: first row of the parameter.
        first: first sample.
    """

    parameter: str
    values: torch.Tensor
    start: int = 0
    first: int = 0


@dataclass(frozen=True)
class EmbeddingGradient:
    """gradients[sample, position, column] added to the parameter's rows index[sample, position]."""

    parameter: str
    index: torch.Tensor
    gradients: torch.Tensor


@dataclass(frozen=True)
class ConvGradient:
    """The weight gradient of a convolution without padding.

    Args:
        parameter: leaf name of the parameter.
        inputs: padded inputs [sample, entry, channel, ...].
        gradients: gradients at the output [sample, entry, row, ...].
        shape: shape of the weight.
        stride: steps of the convolution.
        dilation: distances of its taps.
        groups: its groups.
    """

    parameter: str
    inputs: torch.Tensor
    gradients: torch.Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def n_positions(self) -> int:
        """Output positions of one sample."""
        return math.prod(self.gradients.shape[3:]) * self.gradients.shape[1]

    def weights(self, sample: int) -> torch.Tensor:
        """The gradient [*parameter] of one sample."""
        rank = len(self.stride)
        weight = self.inputs.new_empty(self.shape)
        gradient: torch.Tensor
        # Only the weight gradient: the input needs none, and the bias has a term of its own.
        _, gradient, _ = torch.ops.aten.convolution_backward(
            self.gradients[sample],
            self.inputs[sample],
            weight,
            None,
            self.stride,
            (0,) * rank,
            self.dilation,
            False,
            (0,) * rank,
            self.groups,
            (False, True, False),
        )
        return gradient

    def unfold(self) -> OuterProduct:
        """The same gradient as a sum over positions; for one group and at most two axes."""
        kernel = self.shape[2:]
        stride = self.stride
        dilation = self.dilation
        inputs = self.inputs.flatten(0, 1)
        # torch unfolds two axes only: a sequence becomes an image of height 1.
        if len(kernel) == 1:
            inputs = inputs.unsqueeze(2)
            kernel = (1, *kernel)
            stride = (1, *stride)
            dilation = (1, *dilation)
        # a_t: the patch [channel * kernel] that output position t reads.
        patches = functional.unfold(inputs, kernel, dilation=dilation, stride=stride)
        n_samples = len(self.inputs)
        width = patches.shape[1]
        patches = patches.transpose(1, 2).reshape(n_samples, -1, width)
        # d_t: the gradient at output position t, channels last.
        gradients = self.gradients.flatten(3).transpose(2, 3).reshape(n_samples, -1, self.shape[0])
        return OuterProduct(self.parameter, patches, gradients)


GradientTerm = OuterProduct | DenseGradient | EmbeddingGradient | ConvGradient
LayerTerms = Callable[[Any, torch.Tensor, torch.Tensor, int], Iterator[GradientTerm]]


def has_terms(layer: nn.Module) -> bool:
    """Whether the parameters of the layer itself may have closed per-sample gradients here.

    A subclass with a forward of its own may compute something else: a trial proves it.
    """
    if _terms_of(layer) is None:
        return False
    # These options change the weight in the forward pass, or scale gradients by the batch.
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq
    return True


def inherits_forward(layer: nn.Module) -> bool:
    """Whether the layer has closed gradients and runs the forward of its class in torch."""
    kinds = (kind for kind in _terms_by_kind() if isinstance(layer, kind))
    return has_terms(layer) and any(type(layer).forward is kind.forward for kind in kinds)


def layer_terms(
    call: Call, gradient: torch.Tensor, n_samples: int, axis: int
) -> list[GradientTerm]:
    """Terms of one call of a known layer.

    Args:
        call: the call.
        gradient: the gradient at its result.
        n_samples: samples in the batch.
        axis: the sample axis of the layer's input, 0 or 1; along axis 0 each sample may hold
            several consecutive entries (windows, frames, tokens folded into the batch).

    Raises:
        NetworkError: the layer read some of the samples only.
    """
    assert call.layer is not None
    inputs = call.input
    call.check_samples(n_samples, axis)
    # Samples first: below, the entries of a sample are its positions.
    if axis == 1:
        inputs = inputs.transpose(0, 1)
        gradient = gradient.transpose(0, 1)
    terms = _terms_of(call.layer)
    assert terms is not None
    return list(terms(call.layer, inputs, gradient, n_samples))


def projection_terms(call: Call, gradient: torch.Tensor, n_samples: int) -> list[GradientTerm]:
    """Terms of one projection inside attention."""
    part = call.projection
    assert part is not None
    # All tokens of a sample are its positions.
    inputs = call.input.reshape(n_samples, -1, call.input.shape[-1])
    gradient = gradient.reshape(n_samples, -1, gradient.shape[-1])
    terms: list[GradientTerm] = [OuterProduct(part.weight, inputs, gradient, part.weight_start)]
    if part.bias is not None:
        terms.append(DenseGradient(part.bias, gradient.sum(dim=1), part.bias_start))
    return terms


def expand(term: GradientTerm, shape: tuple[int, ...]) -> torch.Tensor:
    """Gradient [sample, *parameter] of a term, for the samples that it covers."""
    n_samples = len(term.values if isinstance(term, DenseGradient) else term.gradients)
    if isinstance(term, ConvGradient):
        return torch.stack([term.weights(sample) for sample in range(n_samples)])
    if isinstance(term, OuterProduct):
        # sum_t d_t a_t^T as one matrix product a sample.
        values = term.gradients.transpose(1, 2) @ term.inputs
        part = values.reshape(n_samples, values.shape[1], *shape[1:])
    elif isinstance(term, DenseGradient):
        part = term.values.reshape(n_samples, -1, *shape[1:]) if shape else term.values
    else:
        # Each token adds its gradient to its row of the table.
        part = term.gradients.new_zeros(n_samples, *shape)
        index = term.index[:, :, None].expand_as(term.gradients)
        return part.scatter_add_(1, index, term.gradients)
    if not shape or part.shape[1] == shape[0]:
        return part.reshape(n_samples, *shape)
    # A term of some rows only, such as one of the three projections of attention.
    padded = part.new_zeros(n_samples, *shape)
    start = 0 if isinstance(term, EmbeddingGradient) else term.start
    padded[:, start : start + part.shape[1]] = part
    return padded


def _linear(
    layer: nn.Linear, inputs: torch.Tensor, gradient: torch.Tensor, n_samples: int
) -> Iterator[GradientTerm]:
    """dL/dW = sum_t d_t a_t^T and dL/db = sum_t d_t."""
    gradient = gradient.reshape(n_samples, -1, layer.out_features)
    yield OuterProduct("weight", inputs.reshape(n_samples, -1, layer.in_features), gradient)
    if layer.bias is not None:
        yield DenseGradient("bias", gradient.sum(dim=1))


def _transposed_linear(
    layer: Any, inputs: torch.Tensor, gradient: torch.Tensor, n_samples: int
) -> Iterator[GradientTerm]:
    """Z = a W + b: dL/dW = sum_t a_t d_t^T."""
    rows, columns = layer.weight.shape
    gradient = gradient.reshape(n_samples, -1, columns)
    yield OuterProduct("weight", gradient, inputs.reshape(n_samples, -1, rows))
    if getattr(layer, "bias", None) is not None:
        yield DenseGradient("bias", gradient.sum(dim=1))


def _convolution(
    layer: Any, inputs: torch.Tensor, gradient: torch.Tensor, n_samples: int
) -> Iterator[GradientTerm]:
    if layer.bias is not None:
        # The bias adds to every output position.
        sums = gradient.flatten(2).sum(dim=2)
        yield DenseGradient("bias", sums.reshape(n_samples, -1, layer.out_channels).sum(dim=1))
    # With explicit padding the convolution has none, whatever its mode.
    inputs = _pad(layer, inputs)
    yield ConvGradient(
        "weight",
        inputs.reshape(n_samples, -1, *inputs.shape[1:]),
        gradient.reshape(n_samples, -1, *gradient.shape[1:]),
        tuple(layer.weight.shape),
        tuple(layer.stride),
        tuple(layer.dilation),
        layer.groups,
    )


def _normalisation(
    layer: Any, inputs: torch.Tensor, gradient: torch.Tensor, n_samples: int
) -> Iterator[GradientTerm]:
    # Norms of pictures over their channels, in subclasses of layer norm: channels come last.
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and _is_channels_first(layer, inputs):
        inputs, gradient = (each.movedim(1, -1) for each in (inputs, gradient))
    normalised = _normalise(layer, inputs)
    for leaf, product in (("weight", gradient * normalised), ("bias", gradient)):
        if getattr(layer, leaf, None) is None:
            continue
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            # Layer norm: one weight an entry, summed over positions.
            values = product.reshape(n_samples, -1, *layer.normalized_shape)
        else:
            # Batch and group norm: one weight a channel, summed over pixels.
            values = product.flatten(2).sum(dim=2) if product.ndim > 2 else product
            values = values.reshape(n_samples, -1, values.shape[1])
        yield DenseGradient(leaf, values.sum(dim=1))


def _embedding(
    layer: nn.Embedding, inputs: torch.Tensor, gradient: torch.Tensor, n_samples: int
) -> Iterator[GradientTerm]:
    index = inputs.reshape(n_samples, -1)
    gradient = gradient.reshape(n_samples, -1, layer.embedding_dim)
    # torch gives the padding token no gradient.
    if layer.padding_idx is not None:
        gradient = gradient * (index != layer.padding_idx)[:, :, None]
    yield EmbeddingGradient("weight", index, gradient)


def _normalise(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Normalised inputs before weight and bias."""
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return functional.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return functional.batch_norm(
        inputs, layer.running_mean, layer.running_var, training=False, eps=layer.eps
    )


def _is_channels_first(layer: Any, inputs: torch.Tensor) -> bool:
    """Whether the normalised axis is the second one and cannot be the last."""
    shape = tuple(layer.normalized_shape)
    is_last = tuple(inputs.shape[-len(shape) :]) == shape
    return len(shape) == 1 and inputs.ndim > 2 and not is_last and inputs.shape[1] == shape[0]


def _pad(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Inputs of a convolution with its padding made explicit."""
    # torch's bookkeeping of "same", asymmetric and non-zero padding, last axis first.
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(inputs, padding, mode=mode) if any(padding) else inputs


def _terms_of(layer: nn.Module) -> LayerTerms | None:
    """Closed gradients of the torch class that the layer is of, or of a layer known by its form."""
    for kind, terms in _terms_by_kind().items():
        if isinstance(layer, kind):
            return terms
    # GPT-2's linear layer in transformers: a weight [input, output], whatever its module is called.
    weight = getattr(layer, "weight", None)
    is_transposed = type(layer).__name__ == "Conv1D" and getattr(weight, "ndim", 0) == 2
    return _transposed_linear if is_transposed else None


def _terms_by_kind() -> dict[type[nn.Module], LayerTerms]:
    norms = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return {
        nn.Linear: _linear,
        **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
        nn.Embedding: _embedding,
        **dict.fromkeys((*norms, *batch_norms), _normalisation),
    }
