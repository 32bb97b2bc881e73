"""Reference gradients by plain autograd, sample by sample, and checks of the network itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    """Per-sample gradients by parameter name."""

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
        network: a copy of the frozen network in the precision of ``inputs``; it is changed.
        source: the gradients under test.
        parameters: names of the parameters to compare.
        inputs: samples [sample, ...].
        probe: the output direction [output].
    """
    tested = {name: p for name, p in network.inner.named_parameters() if name in set(parameters)}
    for parameter in tested.values():
        parameter.requires_grad_(True)
    errors = dict.fromkeys(tested, 0.0)
    for sample in range(len(inputs)):
        # One sample at a time: what a network without any batching would give.
        value = (network(inputs[sample : sample + 1].clone()) * probe).sum()
        gradients = torch.autograd.grad(value, list(tested.values()), materialize_grads=True)
        exact = dict(zip(tested, gradients, strict=True))
        row_norm = float(torch.stack([g.norm() for g in gradients]).norm())
        floor = NEGLIGIBLE[probe.dtype] * row_norm
        # Whatever the tested source does not give counts as a gradient of zero.
        missing = dict(exact)
        for name, values in source.gradients(inputs.clone(), probe):
            tested_gradient = values[sample].reshape(exact[name].shape)
            difference = tested_gradient - missing.pop(name)
            update_error(errors, name, difference, exact[name], floor)
        for name, gradient in missing.items():
            update_error(errors, name, gradient, gradient, floor)
    return errors


def update_error(
    errors: dict[str, float],
    name: str,
    difference: torch.Tensor,
    exact: torch.Tensor,
    floor: float,
) -> None:
    """Maximum over samples of ||difference|| / ||exact||, the norm bounded from below."""
    scale = max(float(exact.norm()), floor, torch.finfo(exact.dtype).tiny)
    # The plain max() would drop a NaN, which is an error of its own.
    errors[name] = float(np.maximum(errors[name], float(difference.norm()) / scale))


def check_function(
    network: FrozenNetwork, samples: npt.NDArray[Any]
) -> tuple[float, npt.NDArray[np.float32]]:
    """Check that f is finite, deterministic and independent of the batch.

    Returns:
        The largest difference between a sample alone and in a batch, relative to max |f|; and the
        outputs [sample, output].

    Raises:
        NetworkError: one of the three does not hold.
    """
    inputs = torch.tensor(samples)
    with torch.no_grad():
        # Clones throughout: a network may work in place.
        batch = network(inputs.clone())
        repeated = network(inputs.clone())
        single = torch.cat([network(inputs[i : i + 1].clone()) for i in range(len(inputs))])
    if not bool(torch.isfinite(batch).all()):
        raise NetworkError(
            "outputs are NaN or infinite",
            where="network",
            expected="finite outputs",
            advice="check the inputs' scale and the checkpoint",
        )
    # Bit by bit: even rounding must repeat, or stored rows could not be checked.
    if not torch.equal(batch, repeated):
        raise NetworkError(
            f"two runs on the same input differ by {float((batch - repeated).abs().max()):.2g}",
            where="network",
            expected="a deterministic network in eval mode",
            advice="noise is drawn, or a state changes at every call: pass training=self.training "
            "to functional dropout, and leave other noise, counters and averages out of forward",
        )
    # Products of other shapes round otherwise, so independence holds to a tolerance.
    scale = float(batch.abs().max()) or 1.0
    difference = float((batch - single).abs().max()) / scale
    if difference > INDEPENDENCE_TOLERANCE:
        raise NetworkError(
            f"a sample's output changes by {difference:.2g} of the largest with its batch",
            where="network",
            expected="outputs that depend on their own sample only",
            advice="look for batch statistics or attention across the batch",
        )
    return difference, batch.numpy()


def used_parameters(
    network: FrozenNetwork, parameters: Sequence[str], inputs: npt.NDArray[Any]
) -> tuple[str, ...]:
    """Parameters that the outputs depend on; the gradients of the others are zero.

    Raises:
        NetworkError: the outputs depend on none of them, or autograd fails.
    """
    copied = network.differentiable_copy(parameters)
    tensors = [copied.inner.get_parameter(name) for name in parameters]
    outputs = copied(torch.tensor(inputs))
    gradients: Sequence[torch.Tensor | None] = [None] * len(tensors)
    if outputs.requires_grad:
        try:
            # allow_unused: None marks a parameter outside the graph.
            gradients = torch.autograd.grad(outputs.sum(), tensors, allow_unused=True)
        except RuntimeError as error:
            raise NetworkError(
                f"autograd cannot differentiate the network: {error}",
                expected="a network that could be trained as it is",
                advice="replace in-place operations by their plain form",
            ) from error
    used = tuple(name for name, g in zip(parameters, gradients, strict=True) if g is not None)
    if used:
        return used
    raise NetworkError(
        "the outputs depend on none of the audited parameters",
        where=", ".join(parameters[:3]),
        expected="a network that computes its outputs with them, outside torch.no_grad",
    )


def random_probe(n_outputs: int, outputs: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Fixed direction [output] of distinct entries on the selected outputs, zero elsewhere."""
    probe = torch.zeros(n_outputs, dtype=dtype)
    # Unlike entries, so that outputs exchanged by mistake change the gradient.
    entries = np.cos(1.0 + np.arange(len(outputs)) * np.sqrt(2.0)) + 1.5
    probe[list(outputs)] = torch.from_numpy(entries).to(dtype)
    return probe


class AutogradGradients:
    """Gradients of a few samples by plain autograd, one sample at a time, computed once.

    Args:
        network: the frozen network; its copy shares the weights.
        parameters: names of all audited parameters: together they are the scale of a row.
        inputs: samples [sample, ...].
        probe: the output direction [output].
    """

    def __init__(
        self,
        network: FrozenNetwork,
        parameters: Sequence[str],
        inputs: torch.Tensor,
        probe: torch.Tensor,
    ) -> None:
        copied = network.differentiable_copy(parameters)
        tensors = [copied.inner.get_parameter(name) for name in parameters]
        self.samples: list[dict[str, torch.Tensor]] = []
        self.floors: list[float] = []
        for sample in range(len(inputs)):
            value = (copied(inputs[sample : sample + 1].clone()) * probe).sum()
            gradients = torch.autograd.grad(value, tensors, materialize_grads=True)
            self.samples.append(dict(zip(parameters, gradients, strict=True)))
            row_norm = float(torch.stack([g.norm() for g in gradients]).norm())
            self.floors.append(NEGLIGIBLE[probe.dtype] * row_norm)

    def errors(
        self, names: Sequence[str], gradients: Iterable[tuple[str, torch.Tensor]]
    ) -> dict[str, float]:
        """Largest error over samples of each gradient, relative to its norm.

        Args:
            names: the parameters to compare; one that is not given has the gradient zero.
            gradients: name and gradient [sample, *parameter]; samples beyond those of autograd
                repeat them.
        """
        errors = dict.fromkeys(names, 0.0)
        missing = dict.fromkeys(names)
        for name, values in gradients:
            missing.pop(name, None)
            for sample, value in enumerate(values):
                known = sample % len(self.samples)
                exact = self.samples[known][name]
                difference = value.reshape(exact.shape) - exact
                update_error(errors, name, difference, exact, self.floors[known])
        for name in missing:
            for exact, floor in zip((s[name] for s in self.samples), self.floors, strict=True):
                update_error(errors, name, exact, exact, floor)
        return errors


def checking_precision(network: FrozenNetwork, inputs: torch.Tensor) -> torch.dtype:
    """float64 if the network runs in it, else float32, for the comparison of gradients."""
    try:
        with torch.no_grad():
            network.deep_copy().double()(as_precision(inputs, torch.float64))
    except RuntimeError:  # the network fixes its own precision somewhere
        return torch.float32
    return torch.float64


def as_precision(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Copy of inputs in a precision; integers (tokens) stay integers."""
    return inputs.to(dtype, copy=True) if inputs.is_floating_point() else inputs.clone()
