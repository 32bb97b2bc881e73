"""Selection of the audited parameters and outputs of a network."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch

from krepes_ooc.errors import NetworkError, UsageError
from krepes_ooc.network.frozen import FrozenNetwork


def select_parameters(network: FrozenNetwork, globs: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the audited parameters, in network order; no glob: those that were trainable.

    Raises:
        UsageError: a glob, or the whole selection, matches no parameter.
    """
    names = [name for name, _ in network.inner.named_parameters()]
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    # Every glob must match: a misspelled one would drop parameters in silence.
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise UsageError(
                f"{glob!r} matches no parameter", where="features.parameters", expected=listed
            )
    if globs:
        # Network order, whatever the order of the globs: the order is part of the bits.
        return tuple(n for n in names if any(fnmatch.fnmatchcase(n, glob) for glob in globs))
    if not network.trainable:
        raise UsageError(
            "the network has no trainable parameter",
            where="features.parameters",
            expected="at least one",
            advice=f"name some of {listed}" if names else "an NTK needs parameters",
        )
    return network.trainable


def select_outputs(
    network: FrozenNetwork, outputs: tuple[int, ...], inputs: npt.NDArray[Any]
) -> tuple[int, ...]:
    """Indices of the audited outputs; none given: all.

    Raises:
        UsageError: an index is outside the network's output, or stands twice.
        NetworkError: the network does not run on the samples.
    """
    # Only a run tells the number of outputs.
    n_outputs = _n_outputs(network, inputs)
    selected = outputs or tuple(range(n_outputs))
    distinct = len(set(selected)) == len(selected)
    if not distinct or not all(0 <= index < n_outputs for index in selected):
        raise UsageError(
            f"outputs {list(selected)}",
            where="features.outputs",
            expected=f"different indices from 0 to {n_outputs - 1}",
        )
    return selected


def _n_outputs(network: FrozenNetwork, inputs: npt.NDArray[Any]) -> int:
    with torch.no_grad(), named_failure(network, inputs):
        return int(network(torch.tensor(inputs)).shape[1])


@contextlib.contextmanager
def named_failure(network: FrozenNetwork, inputs: npt.NDArray[Any]) -> Iterator[None]:
    """Name shape and type of the inputs where the network does not run on them.

    Raises:
        NetworkError: it does not.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        # Weights of half and double precision are read as float32; casts in the forward stay.
        if "dtype" in str(error) or "ScalarType" in str(error):
            raise NetworkError(
                f"the network does not run in float32: {error}",
                where=f"inputs of type {inputs.dtype}",
                expected="a network that takes the type of its weights, which become float32",
                advice="leave out casts such as x.half() and x.double() in forward",
            ) from error
        raise NetworkError(
            f"the network does not run: {error}",
            where=f"inputs of shape {tuple(inputs.shape)} and type {inputs.dtype}",
            expected=f"the shape that the network was built for{_first_width(network, inputs)}",
            advice="check network.arguments and the source",
        ) from error


def _first_width(network: FrozenNetwork, inputs: npt.NDArray[Any]) -> str:
    """Width of the first linear layer in words, where it differs from that of flat inputs."""
    linear = next((m for m in network.modules() if isinstance(m, torch.nn.Linear)), None)
    if inputs.ndim != 2 or linear is None or linear.in_features == inputs.shape[1]:
        return ""
    return f", {linear.in_features} inputs to its first linear layer"
