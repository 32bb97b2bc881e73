"""Frozen networks: eval mode, no trainable parameter, one flat output row a sample."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from krepes_ooc.errors import NetworkError, UsageError
from krepes_ooc.network.activation_checkpoints import without_checkpoints
from krepes_ooc.network.older_norms import rewrite_older_norms
from krepes_ooc.network.read_point import read_output

# Parameters that a note names.
_SHOWN = 5
# Where torch keeps the layers with integer weights.
_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
)


class FrozenNetwork(nn.Module):
    """A module in eval mode, without trainable parameters, from inputs to outputs[sample, output].

    Args:
        inner: the user's module; krepes displays its parameter names.
        output: key or index of the audited output if ``inner`` returns a dict or a tuple.
        read_at: path of the module inside ``inner`` whose output is the embedding; empty: that of
            ``inner`` itself.
        notes: lines for people on how the weights were read.
    """

    def __init__(
        self,
        inner: nn.Module,
        output: str | None = None,
        read_at: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.output = output
        self.read_at = read_at
        hooked = [name for name, p in inner.named_parameters() if p._backward_hooks]
        if hooked:
            named = ", ".join(hooked[:_SHOWN]) + (", ..." if len(hooked) > _SHOWN else "")
            notes += (f"hooks on parameters change no row, which is the gradient itself: {named}",)
        self.notes = notes
        rewrite_older_norms(inner)
        # Recorded before freezing: the default selection of audited parameters.
        self.trainable = tuple(n for n, p in inner.named_parameters() if p.requires_grad)
        self.inner = inner.float().requires_grad_(False)
        # Module.compile keeps the layers: without it they run, and can be recorded.
        for layer in inner.modules():
            layer._compiled_call_impl = None
        self.train()

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in eval mode: batch statistics would make a row depend on its batch."""
        del mode
        return super().train(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """outputs[sample, output] of inputs[sample, ...].

        Raises:
            NetworkError: the result is no floating-point tensor with one row a sample.
        """
        with without_checkpoints():
            if self.read_at:
                whole = read_output(self.inner, self.read_at, inputs)
            else:
                whole = self.inner(inputs)
        result: Any = pick_output(whole, self.output)
        is_tensor = isinstance(result, torch.Tensor)
        if is_tensor and result.layout != torch.strided:
            result = result.to_dense()
        if not is_tensor or not result.is_floating_point():
            kind = f"a tensor of {result.dtype}" if is_tensor else type(result).__name__
            raise NetworkError(
                f"the network returns {kind}",
                where="network.output",
                expected="one floating-point tensor",
                advice=_output_advice(result),
            )
        # One row a sample, whatever the shape of the output.
        if result.ndim < 1 or result.shape[0] != inputs.shape[0]:
            raise NetworkError(
                f"output shape {tuple(result.shape)} for {inputs.shape[0]} samples",
                where="network.output",
                expected="one output row a sample",
            )
        rows: torch.Tensor = result.reshape(result.shape[0], -1)
        return rows

    def deep_copy(self) -> FrozenNetwork:
        """Deep copy, whose weights may be changed.

        Raises:
            NetworkError: the module cannot be copied.
        """
        return _copy(self, {})

    def shared_copy(self) -> FrozenNetwork:
        """Copy of the modules and hooks on shared weights: one set of weights for all threads.

        Raises:
            NetworkError: the module cannot be copied.
        """
        # Tensors in the memo of deepcopy are not copied.
        tensors = [*self.parameters(), *self.buffers()]
        return _copy(self, {id(tensor): tensor for tensor in tensors})

    def differentiable_copy(self, parameters: Collection[str]) -> FrozenNetwork:
        """Copy on shared weights whose named parameters take gradients.

        Args:
            parameters: names inside the user's module.

        Raises:
            NetworkError: the module cannot be copied.
        """
        chosen = {id(p) for name, p in self.inner.named_parameters() if name in set(parameters)}
        shared: dict[int, Any] = {id(buffer): buffer for buffer in self.buffers()}
        # New leaves on the same memory: no second copy of the weights.
        for parameter in self.parameters():
            leaf = nn.Parameter(parameter.detach(), requires_grad=id(parameter) in chosen)
            shared[id(parameter)] = leaf
        return _copy(self, shared)


def freeze(module: nn.Module, output: str | None = None) -> FrozenNetwork:
    """Frozen network of ``module``; one that is frozen already is returned as it is."""
    return module if isinstance(module, FrozenNetwork) else FrozenNetwork(module, output)


def pick_output(result: Any, output: str | None) -> Any:
    """Entry of a dict, tuple or attribute output that the recipe names.

    Raises:
        UsageError: the network's output has no such entry.
    """
    if output is None:
        return result
    if isinstance(result, Mapping):
        # Mapping: by key.
        if output in result:
            return result[output]
        known = ", ".join(map(str, result))
    elif isinstance(result, tuple | list):
        # Tuple: by index; named tuple: by field.
        if output.lstrip("-").isdigit() and -len(result) <= int(output) < len(result):
            return result[int(output)]
        named = getattr(result, "_fields", ())
        if output in named:
            return getattr(result, output)
        known = ", ".join(named) or f"0 to {len(result) - 1}"
    else:
        # Output classes of transformer libraries: by attribute.
        attribute = getattr(result, output, None) if output.isidentifier() else None
        if attribute is not None and not isinstance(result, torch.Tensor):
            return attribute
        known = f"no entry: the network returns {type(result).__name__}"
    raise UsageError(
        f"the network has no output {output!r}", where="network.output", expected=known
    )


def check_state_finite(module: nn.Module) -> None:
    """Check every parameter and buffer.

    Raises:
        NetworkError: a value is NaN or infinite, has no storage yet, or is no real number.
    """
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        shown = name.removeprefix("inner.")
        # A lazy module gets its shapes from the first batch: the audit needs them before.
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise NetworkError(
                "has no values yet",
                where=shown,
                expected="a module whose shapes are known when the factory returns",
            )
        # float() would drop the imaginary part or the sparsity in silence.
        if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
            raise NetworkError(
                f"is {tensor.dtype} with layout {tensor.layout}",
                where=shown,
                expected="dense real numbers",
            )
        # One NaN in a weight is a NaN in every row.
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise NetworkError(
                f"{bad} of {tensor.numel()} values are NaN or infinite",
                where=shown,
                expected="finite weights",
                advice="the checkpoint is damaged or the training diverged",
            )


def check_module(module: Any) -> nn.Module:
    """Check that a factory gave an eager module whose samples do not depend on each other.

    Raises:
        NetworkError: it is no module, or a kind of module whose layers cannot be recorded.
    """
    kind = type(module).__name__
    eager = "an eager torch.nn.Module from network.factory"
    # Hooks need eager layers: compiled and exported graphs call none.
    if isinstance(module, torch.jit.ScriptModule):
        raise NetworkError("TorchScript hides its layers", where=kind, expected=eager)
    if isinstance(module, torch.export.ExportedProgram):
        raise NetworkError("an exported program hides its layers", where=kind, expected=eager)
    if not isinstance(module, nn.Module):
        raise NetworkError(f"the factory returned {kind}", where="network.factory", expected=eager)
    if hasattr(module, "_orig_mod"):
        raise NetworkError(
            "a compiled module hides its layers",
            where=kind,
            expected=eager,
            advice="return the module from before torch.compile",
        )
    # A traced graph is fine as long as it calls layers as modules.
    if isinstance(module, torch.fx.GraphModule) and not _calls_layers(module):
        raise NetworkError("an exported graph hides its layers", where=kind, expected=eager)
    for name, layer in module.named_modules():
        _check_layer(layer, name, eager)
        # Without running statistics, eval mode normalises by the batch.
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            raise NetworkError(
                f"{type(layer).__name__} has track_running_stats=False: "
                "a row would depend on its batch",
                where=name,
                expected="running statistics",
                advice="train with track_running_stats=True or replace the layer",
            )
    return module


def _check_layer(layer: nn.Module, name: str, eager: str) -> None:
    """Check that a layer inside a module is eager and computes with floating-point weights.

    Raises:
        NetworkError: it hides its own layers, or is quantised.
    """
    if isinstance(layer, torch.jit.ScriptModule):
        raise NetworkError("TorchScript hides its layers", where=name, expected=eager)
    if hasattr(layer, "_orig_mod"):
        raise NetworkError(
            "a compiled module hides its layers",
            where=name,
            expected=eager,
            advice="return the module from before torch.compile",
        )
    if type(layer).__module__.startswith(_QUANTISED):
        raise NetworkError(
            f"{type(layer).__name__} is quantised and has no gradients",
            where=name or type(layer).__name__,
            expected="floating-point layers",
            advice="return the module from before it is quantised",
        )


def _copy(network: FrozenNetwork, memo: dict[int, Any]) -> FrozenNetwork:
    try:
        return copy.deepcopy(network, memo)
    # TypeError: locks, open files. RuntimeError: tensors that carry a graph.
    except (TypeError, RuntimeError) as error:
        raise NetworkError(
            f"the network cannot be copied: {str(error).split('.  ')[0].splitlines()[0]}",
            where=type(network.inner).__name__,
            expected="a module without locks, open files or computed tensors as attributes",
        ) from error


def _calls_layers(graph: torch.fx.GraphModule) -> bool:
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    return any(list(graph.get_submodule(name).parameters()) for name in called)


def _output_advice(result: Any) -> str:
    if isinstance(result, Mapping):
        return "set network.output to one of " + ", ".join(map(str, result))
    if isinstance(result, tuple | list):
        return f"set network.output to an index from 0 to {len(result) - 1}"
    if isinstance(result, torch.Tensor):
        return "audit what it is computed from, such as logits: network.output or network.module"
    return "set network.output to the name of the tensor"
