"""Plain autograd, sample by sample: what every faster way to a gradient is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from krepes_ooc.network.frozen import FrozenNetwork

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
# A parameter whose gradient is this much smaller than the whole row cannot change the kernel.
NEGLIGIBLE = 1e-6


class GradientSource(Protocol):
    """Anything that gives per-sample gradients by parameter name."""

    def gradients(
        self, inputs: torch.Tensor, probe: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and gradient [sample, *parameter] of <probe, f>, parameter by parameter."""


def gradient_errors(
    network: FrozenNetwork,
    source: GradientSource,
    parameters: Sequence[str],
    inputs: torch.Tensor,
    probe: torch.Tensor,
) -> dict[str, float]:
    """Largest error over samples of each parameter's gradient, relative to its norm.

    A parameter that ``source`` does not give has the error 1 unless its gradient is negligible.

    Args:
        network: an own copy of the frozen network in the precision of ``inputs``.
        source: the gradients to be judged.
        parameters: names of the parameters to compare.
        inputs: samples [sample, ...].
        probe: the output direction [output].
    """
    chosen = {name: p for name, p in network.inner.named_parameters() if name in set(parameters)}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    errors = dict.fromkeys(chosen, 0.0)
    for sample in range(len(inputs)):
        value = (network(inputs[sample : sample + 1].clone()) * probe).sum()
        found = torch.autograd.grad(value, list(chosen.values()), materialize_grads=True)
        exact = dict(zip(chosen, found, strict=True))
        floor = NEGLIGIBLE * float(torch.stack([g.norm() for g in found]).norm())
        missing = dict(exact)
        for name, gradients in source.gradients(inputs.clone(), probe):
            near = gradients[sample].reshape(exact[name].shape)
            _raise_error(errors, name, near - missing.pop(name), exact[name], floor)
        for name, gradient in missing.items():
            _raise_error(errors, name, gradient, gradient, floor)
    return errors


def _raise_error(
    errors: dict[str, float], name: str, wrong: torch.Tensor, exact: torch.Tensor, floor: float
) -> None:
    scale = max(float(exact.norm()), floor, torch.finfo(exact.dtype).tiny)
    # The plain max() would drop a NaN, which is an error of its own.
    errors[name] = float(np.maximum(errors[name], float(wrong.norm()) / scale))


def random_probe(n_outputs: int, outputs: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A fixed direction of unlike entries on the selected outputs [output]."""
    probe = torch.zeros(n_outputs, dtype=dtype)
    entries = np.cos(1.0 + np.arange(len(outputs)) * np.sqrt(2.0)) + 1.5
    probe[list(outputs)] = torch.from_numpy(entries).to(dtype)
    return probe


def checking_precision(network: FrozenNetwork, inputs: torch.Tensor) -> torch.dtype:
    """float64 if the network runs in it, else float32."""
    try:
        with torch.no_grad():
            network.copied().double()(as_precision(inputs, torch.float64))
    except RuntimeError:  # the network fixes its own precision somewhere
        return torch.float32
    return torch.float64


def as_precision(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy of inputs in a precision; integers (tokens) stay integers."""
    return inputs.to(dtype, copy=True) if inputs.is_floating_point() else inputs.clone()
