"""Tape: inputs and output gradients of every layer with parameters, in a few passes.

Parameters stay frozen, so autograd never forms a weight gradient; the tape keeps each layer's
inputs and asks autograd for the gradient at each layer's output, and the per-sample parameter
gradients follow from the two. Gradients are taken at graph edges recorded when the layer returns,
because a later in-place operation changes which edge the tensor itself stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as pytree

from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian.gradients.attention import Projection, record_attention
from krepes_ooc.jacobian.gradients.computed_weights import ComputedWeight, record_weights
from krepes_ooc.jacobian.gradients.recurrent import record_recurrent
from krepes_ooc.jacobian.gradients.replaced_parameters import replaced_parameters
from krepes_ooc.network.frozen import FrozenNetwork

Gradients = tuple[torch.Tensor | None, ...]
# Layers that never return an argument, a parameter or a view of either.
_FRESH_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Call:
    """One call of one recorded layer, projection or bare parameter.

    Args:
        name: the layer's (or bare parameter's) name in the user's module.
        layer: the layer; None for a bare parameter.
        projection: which rows of which parameters, for a projection inside attention or a product
            inside a recurrent layer.
        args: the layer's positional arguments; tensors are detached.
        kwargs: its keyword arguments; tensors are detached.
        shapes: shape of each floating-point tensor in its result.
        edges: graph edge of each of them, where its gradient is taken.
        versions: how often each tensor argument had been overwritten when the layer read it.
        weight: the computed weight, for a linear layer or a convolution with one.
    """

    name: str
    layer: nn.Module | None
    projection: Projection | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    edges: tuple[GradientEdge, ...]
    versions: tuple[int, ...]
    weight: ComputedWeight | None = None

    @property
    def input(self) -> torch.Tensor:
        """The first argument."""
        value = self.tensors()[0]
        assert isinstance(value, torch.Tensor)
        return value

    def tensors(self) -> list[torch.Tensor]:
        """All tensor arguments, in the order in which pytrees are flattened.

        Raises:
            NetworkError: the network overwrote one after the layer had read it.
        """
        # torch counts in-place writes: another count means another input than the layer read.
        if self.versions != _versions(self.args, self.kwargs):
            raise NetworkError(
                "the network overwrites this layer's input in place",
                where=self.name,
                expected="inputs that stay as the layer read them",
                advice="replace the in-place operation (x += ..., relu_) by its plain form",
            )
        return _tensor_arguments(self.args, self.kwargs)

    def check_samples(self, n_samples: int, axis: int = 0) -> None:
        """Check that the layer read all samples of the batch, or none.

        Raises:
            NetworkError: it read some, and which sample a row belongs to is unknown.
        """
        shape = self.input.shape
        n_rows = shape[axis] if axis < len(shape) else 0
        # Several rows a sample are fine, a fraction of the samples is not.
        if n_rows % n_samples:
            raise NetworkError(
                f"this layer read {n_rows} rows in a batch of {n_samples} samples",
                where=self.name,
                expected="layers that read every sample of a batch",
                advice="the network takes another path for some samples: set forward_batch to 1, "
                "or leave the layer out (features.parameters)",
            )


@dataclass(frozen=True)
class Recording:
    """One forward pass: outputs[sample, output] and the recorded calls in order."""

    outputs: torch.Tensor
    calls: tuple[Call, ...]

    def backward(self, probe: torch.Tensor) -> list[Gradients]:
        """For each call the gradients of <probe, outputs> at its results; None where unused."""
        # One backward pass to the edges of all calls at once.
        edges = [edge for call in self.calls for edge in call.edges]
        if not edges or not self.outputs.requires_grad:
            return [(None,) * len(call.edges) for call in self.calls]
        at_edges: Sequence[torch.Tensor | None] = torch.autograd.grad(
            self.outputs,
            edges,
            probe.to(self.outputs.dtype).expand_as(self.outputs),
            retain_graph=True,
            allow_unused=True,
        )
        # Back to one tuple a call, in the order of its results.
        gradients = iter(None if g is None else g.detach() for g in at_edges)
        return [tuple(next(gradients) for _ in call.edges) for call in self.calls]


class Tape:
    """Recorder of layers in a copy of a network; one tape belongs to one thread.

    Args:
        network: copied with shared weights, so that hooks are never shared.
        layers: layers whose calls are recorded, named as in the user's module.
        attention: attention layers whose projections are recorded.
        bare: parameters replaced by one leaf a sample, with the number of axes to insert
            behind the sample axis; -1 if the parameter's first axis becomes the sample axis.
        computed: modules whose computed weights are recorded.
        recurrent: recurrent layers whose products are recorded.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        layers: Sequence[str],
        attention: Sequence[str] = (),
        bare: Mapping[str, int] | None = None,
        computed: Sequence[str] = (),
        recurrent: Sequence[str] = (),
    ) -> None:
        self.network = network.shared_copy()
        self._bare = dict(bare or {})
        self._calls: list[Call] = []
        self._active = False
        # Before any hook: fused kernels would call no sublayers.
        _disable_fused_paths(self.network)
        for name in attention:
            record_attention(self.network.inner.get_submodule(name), name, self._record_projection)
        for name in recurrent:
            record_recurrent(self.network.inner.get_submodule(name), name, self._record_projection)
        for name in computed:
            module = self.network.inner.get_submodule(name)
            record_weights(module, name, self._record_weight, lambda: self._active)
        for name in layers:
            layer = self.network.inner.get_submodule(name)
            layer.register_forward_hook(self._hook(name), with_kwargs=True)

    def record(self, inputs: torch.Tensor) -> Recording:
        """Run the network on inputs[sample, ...]."""
        self._calls = []
        self._active = True
        try:
            with torch.enable_grad():
                outputs = self._outputs(inputs)
        finally:
            self._active = False
            calls = tuple(self._calls)
            self._calls = []
        return Recording(outputs, calls)

    def _outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self._bare:
            plain: torch.Tensor = self.network(inputs)
            return plain
        leaves = self._leaves(len(inputs))
        # The network with its bare parameters replaced by one copy a sample.
        with replaced_parameters(self.network, leaves):
            outputs: torch.Tensor = self.network(inputs)
        return outputs

    def _leaves(self, n_samples: int) -> dict[str, torch.Tensor]:
        """One leaf [sample, *axes, *parameter] of each bare parameter."""
        leaves = {}
        for name, ones in self._bare.items():
            value = self.network.inner.get_parameter(name).detach()
            # [sample, 1, ..., *parameter]: one value a sample, and axes to broadcast over.
            shape = value.shape[1:] if ones < 0 else (1,) * ones + tuple(value.shape)
            value = value.reshape(shape).expand(n_samples, *shape)
            leaf = leaves[f"inner.{name}"] = with_graph(value)
            self._record_call(name, leaf)
        return leaves

    def _hook(self, name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not (self._active and torch.is_grad_enabled()):
                return None  # what runs under no_grad has no gradient, in autograd too
            arguments = {id(value) for value in _tensor_arguments(args, kwargs)}
            # A tensor that is referenced nowhere else needs no copy.
            if _starts_graph(layer, output):
                leaf = torch.zeros((), requires_grad=True, device=output.device)
                result = _FreshEdge.apply(output, leaf)  # type: ignore[no-untyped-call]
            elif isinstance(output, torch.Tensor):
                result = with_graph(output, arguments)
            else:
                result = pytree.tree_map(lambda value: with_graph(value, arguments), output)
            self._record_call(name, result, layer=layer, args=args, kwargs=kwargs)
            return result

        return hook

    def _record_projection(
        self, name: str, projection: Projection, inputs: torch.Tensor, result: torch.Tensor
    ) -> torch.Tensor:
        if not (self._active and torch.is_grad_enabled()):
            return result
        result = with_graph(result)
        self._record_call(name, result, projection=projection, args=(inputs,))
        return result

    def _record_weight(
        self, name: str, weight: ComputedWeight, inputs: torch.Tensor, result: torch.Tensor
    ) -> torch.Tensor:
        result = with_graph(result)
        self._record_call(name, result, args=(inputs,), weight=weight)
        return result

    def _record_call(
        self,
        name: str,
        result: Any,
        *,
        layer: nn.Module | None = None,
        projection: Projection | None = None,
        args: Any = (),
        kwargs: Any = None,
        weight: ComputedWeight | None = None,
    ) -> None:
        """Append one call; arguments are detached, results keep their edges only."""
        results = [value for value in _tensors(result) if value.is_floating_point()]
        if _only_tensors(args, kwargs):
            args = tuple([value.detach() for value in args])
            kwargs = {}
        else:
            args, kwargs = pytree.tree_map(_detached, (args, kwargs or {}))
        call = Call(
            name,
            layer,
            projection,
            args,
            kwargs,
            tuple(tuple(value.shape) for value in results),
            # Edges, not tensors: a later in-place operation changes the edge of a tensor.
            tuple(get_gradient_edge(value) for value in results),
            _versions(args, kwargs),
            weight,
        )
        self._calls.append(call)


def with_graph(value: Any, arguments: set[int] | frozenset[int] = frozenset()) -> Any:
    """Result with a graph edge of its own, which no in-place operation can replace.

    Args:
        value: a result; anything but a floating-point tensor is returned as it is.
        arguments: ids of the arguments: a result that is an argument gets an edge of its own.
    """
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    if not value.requires_grad:
        # All parameters are frozen: the first layers start the graph. A clone, because an in-place
        # operation on a leaf is an error.
        return value.detach().requires_grad_().clone()
    # In-place operations on a view rewrite its edge.
    return value.clone() if value._is_view() or id(value) in arguments else value


class _FreshEdge(torch.autograd.Function):
    """A new tensor as a node of the graph, without a copy: in-place operations may follow."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        """The value itself; it requires a gradient because the leaf does."""
        del leaf
        ctx.mark_dirty(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None]:
        """No gradient: nothing lies before this node."""
        del ctx, gradients
        return None, None


def _starts_graph(layer: nn.Module, output: Any) -> bool:
    """Whether a result is a new tensor, referenced nowhere else, without a gradient yet."""
    if type(layer) not in _FRESH_LAYERS or len(layer._forward_hooks) > 1:
        return False
    return isinstance(output, torch.Tensor) and not output.requires_grad and not output._is_view()


def _disable_fused_paths(network: nn.Module) -> None:
    """Make torch's encoder layers call their sublayers, as they do in training."""
    for layer in network.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0
        if isinstance(layer, nn.TransformerEncoder):
            layer.use_nested_tensor = False


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [value for value in pytree.tree_leaves(tree) if isinstance(value, torch.Tensor)]


def _versions(args: Any, kwargs: Any) -> tuple[int, ...]:
    return tuple([value._version for value in _tensor_arguments(args, kwargs)])


def _tensor_arguments(args: Any, kwargs: Any) -> list[torch.Tensor]:
    """All tensor arguments; the plain case without pytree, which costs more than a small layer."""
    return list(args) if _only_tensors(args, kwargs) else _tensors((args, kwargs))


def _only_tensors(args: Any, kwargs: Any) -> bool:
    """Whether all arguments are tensors, and none is given by keyword."""
    return not kwargs and all(isinstance(value, torch.Tensor) for value in args)
