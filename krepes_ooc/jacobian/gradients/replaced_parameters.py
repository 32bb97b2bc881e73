"""A module with some of its parameters replaced for a while, wherever they lie.

``torch.func.functional_call`` replaces a tied parameter once a name. Two names of one module that
several blocks share mean one place, which it then restores to the replacement; here every place is
replaced once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


@contextlib.contextmanager
def replaced_parameters(module: nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The module with other tensors for some parameters; it is restored afterwards.

    Args:
        module: the module; used by one thread at a time.
        values: a tensor for one name of each parameter.
    """
    by_parameter = {id(module.get_parameter(name)): value for name, value in values.items()}
    # ``modules`` gives a shared module once, ``_parameters`` its own places.
    places = [
        (owner, leaf, parameter)
        for owner in module.modules()
        for leaf, parameter in owner._parameters.items()
        if id(parameter) in by_parameter
    ]
    try:
        for owner, leaf, parameter in places:
            owner._parameters[leaf] = by_parameter[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for owner, leaf, parameter in places:
            owner._parameters[leaf] = parameter
