"""Which network is audited: a factory, its arguments and its weights.

torch is imported on first use, so that reading a recipe stays fast.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.import_object import factory_sha256, find_factory, signature_text
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import NetworkError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from krepes_ooc.network.frozen import FrozenNetwork

PRETRAIN = "pretrain"
FACTORY = "factory"


@dataclass(frozen=True)
class NetworkSpec:
    """The recipe key ``network``."""

    factory: str = setting(
        about="module:callable or path/to/file.py:callable giving a torch module; its code runs"
    )
    arguments: dict[str, Any] = setting({}, about="keyword arguments")
    weights: str = setting(
        PRETRAIN,
        about="path of a .safetensors or .pt state dict; 'pretrain' for the demo trainer's "
        "checkpoint; 'factory' if the factory loads its weights itself",
    )
    output: str | None = setting(None, about="key or index of the audited output")
    strip_prefix: str = setting("", about="read only keys with this prefix, without it: 'module.'")
    state_key: str = setting("", about="key of the state dict inside the checkpoint: 'state_dict'")


def build_network(spec: NetworkSpec, base: Path = Path()) -> nn.Module:
    """The factory's module in float32, as the factory initialises it, still trainable.

    Args:
        spec: which factory and with which arguments.
        base: folder that a ``path/to/file.py`` factory is relative to.

    Raises:
        UsageError: no such factory, or it does not take these arguments.
        NetworkError: the factory failed, or gave something whose layers cannot be recorded.
    """
    from krepes_ooc.network.frozen import check_module

    factory = find_factory(spec.factory, base)
    try:
        inspect.signature(factory).bind(**spec.arguments)
    except TypeError as error:
        raise UsageError(
            f"the factory does not take these arguments: {error}",
            where="network.arguments",
            expected=signature_text(factory),
        ) from error
    except ValueError:  # a builtin without a signature: let the call itself decide
        pass
    try:
        module = factory(**spec.arguments)
    except Exception as error:
        raise NetworkError(
            f"the factory failed: {type(error).__name__}: {error}", where=spec.factory
        ) from error
    return check_module(module).float()


def load_network(spec: NetworkSpec, weights_path: Path | None, base: Path) -> FrozenNetwork:
    """The audited network: weights loaded, eval mode, frozen, float32, every value finite.

    Args:
        spec: the recipe key ``network``.
        weights_path: the checkpoint; None to take ``spec.weights`` relative to ``base``.
        base: folder of the recipe.

    Raises:
        UsageError: a path, key or argument is wrong.
        NetworkError: the checkpoint does not fit the network, or the network cannot be trusted.
    """
    from krepes_ooc.network import checkpoint
    from krepes_ooc.network.frozen import check_state_finite, freeze

    path = resolve_weights(spec, weights_path, base)
    module = build_network(spec, base)
    if path is not None:
        state = checkpoint.read_state(path, spec.state_key)
        checkpoint.fill_module(module, state, path, spec.strip_prefix)
    check_state_finite(module)
    return freeze(module, spec.output)


def resolve_weights(spec: NetworkSpec, weights_path: Path | None, base: Path) -> Path | None:
    """The checkpoint file, or None if the factory loads the weights itself.

    Raises:
        UsageError: the weights come from the demo trainer, which has not run, or do not exist.
    """
    if spec.weights == FACTORY and weights_path is None:
        return None
    if weights_path is None and spec.weights == PRETRAIN:
        raise UsageError(
            "weights is 'pretrain' but there is no checkpoint yet",
            where="network.weights",
            expected="a finished pretrain stage",
            advice="run the recipe from its first stage, or name a .safetensors file",
        )
    path = weights_path or base / spec.weights
    if not path.is_file():
        raise UsageError("no such file", where=str(path), expected="a .safetensors or .pt file")
    return path


def network_fingerprint(
    spec: NetworkSpec,
    module: nn.Module,
    weights_path: Path | None,
    inputs: npt.NDArray[np.float32],
    base: Path = Path(),
) -> dict[str, Any]:
    """What identifies a network in a digest, as JSON.

    Args:
        spec: the recipe key ``network``.
        module: the loaded network.
        weights_path: the checkpoint that was read, or None.
        inputs: two fixed samples [2, ...].
        base: folder of the recipe.

    Returns:
        sha256 of the checkpoint file (empty without one), of the factory's source file, of all
        parameters and buffers, and of the bits of the outputs on ``inputs``; the dtypes that the
        parameters had before they became float32.
    """
    from krepes_ooc.core.digests import file_sha256
    from krepes_ooc.network import checkpoint

    return {
        "factory": spec.factory,
        "weights_sha256": file_sha256(weights_path) if weights_path else "",
        "checkpoint_dtypes": checkpoint.dtypes(weights_path, spec.state_key)
        if weights_path
        else [],
        "factory_sha256": factory_sha256(spec.factory, base),
        "state_sha256": checkpoint.state_sha256(module),
        "outputs_sha256": checkpoint.outputs_sha256(module, inputs),
    }
