"""Plain autograd, sample by sample: what every faster way to a gradient is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from krepes_ooc.errors import NetworkError
from krepes_ooc.network.frozen import FrozenNetwork

INDEPENDENCE_TOLERANCE = 1e-4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
# A parameter whose gradient is this much smaller than the whole row cannot change the kernel; in
# float32 it is rounding (the bias of attention keys, whose gradient is zero by algebra).
NEGLIGIBLE = {torch.float64: 1e-6, torch.float32: 1e-4}


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
        floor = NEGLIGIBLE[probe.dtype] * float(torch.stack([g.norm() for g in found]).norm())
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


def check_function(network: FrozenNetwork, samples: npt.NDArray[Any]) -> float:
    """Check that f is finite, deterministic and independent of the batch.

    Returns:
        The largest difference between a sample alone and in a batch, relative to max |f|.

    Raises:
        NetworkError: one of the three does not hold.
    """
    inputs = torch.tensor(samples)
    with torch.no_grad():
        together, again = network(inputs.clone()), network(inputs.clone())
        alone = torch.cat([network(inputs[i : i + 1].clone()) for i in range(len(inputs))])
    if not bool(torch.isfinite(together).all()):
        raise NetworkError(
            "outputs are NaN or infinite",
            where="network",
            expected="finite outputs",
            advice="check the inputs' scale and the checkpoint",
        )
    if not torch.equal(together, again):
        raise NetworkError(
            f"two runs on the same input differ by {float((together - again).abs().max()):.2g}",
            where="network",
            expected="a deterministic network in eval mode",
            advice="noise is drawn: pass training=self.training to functional dropout, and leave "
            "other noise out of forward",
        )
    scale = float(together.abs().max()) or 1.0
    difference = float((together - alone).abs().max()) / scale
    if difference > INDEPENDENCE_TOLERANCE:
        raise NetworkError(
            f"a sample's output changes by {difference:.2g} of the largest with its batch",
            where="network",
            expected="outputs that depend on their own sample only",
            advice="look for batch statistics or attention across the batch",
        )
    return difference


def used_parameters(
    network: FrozenNetwork, parameters: Sequence[str], inputs: npt.NDArray[Any]
) -> tuple[str, ...]:
    """The parameters that the outputs depend on; the gradients of the others are zero.

    Raises:
        NetworkError: the outputs depend on none of them, or autograd fails.
    """
    own = network.deep_copy()
    chosen = [own.inner.get_parameter(name).requires_grad_(True) for name in parameters]
    outputs = own(torch.tensor(inputs))
    found: Sequence[torch.Tensor | None] = [None] * len(chosen)
    if outputs.requires_grad:
        try:
            found = torch.autograd.grad(outputs.sum(), chosen, allow_unused=True)
        except RuntimeError as error:
            raise NetworkError(
                f"autograd cannot differentiate the network: {error}",
                expected="a network that could be trained as it is",
                advice="replace in-place operations by their plain form",
            ) from error
    used = tuple(name for name, g in zip(parameters, found, strict=True) if g is not None)
    if used:
        return used
    raise NetworkError(
        "the outputs depend on none of the audited parameters",
        where=", ".join(parameters[:3]),
        expected="a network that computes its outputs with them, outside torch.no_grad",
    )


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
            network.deep_copy().double()(as_precision(inputs, torch.float64))
    except RuntimeError:  # the network fixes its own precision somewhere
        return torch.float32
    return torch.float64


def as_precision(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy of inputs in a precision; integers (tokens) stay integers."""
    return inputs.to(dtype, copy=True) if inputs.is_floating_point() else inputs.clone()
