"""The recipe key ``network``: a factory, its arguments and its weights.

torch is imported on first use, so that reading a recipe stays fast.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krepes_ooc.core.import_object import find_factory, signature_text
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import NetworkError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from krepes_ooc.network.frozen import FrozenNetwork

# Factories that ship with krepes.
SHIPPED_CODE = "krepes_ooc.network.zoo:"
# Value of an argument ``inputs`` that stands for the number of inputs of the source.
AUTO = "auto"
# Values of the key ``weights`` that are no paths.
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
    objective: str = setting(
        "",
        about="objective that trained the network, such as simclr, dino or mae; it is recorded",
        digest_omits="",
    )


def wants_inputs(spec: NetworkSpec) -> bool:
    """Whether a shipped factory takes its number of inputs from the source."""
    return spec.factory.startswith(SHIPPED_CODE) and spec.arguments.get("inputs") == AUTO


def with_inputs(spec: NetworkSpec, n_inputs: int) -> NetworkSpec:
    """The network with its number of inputs in place of ``auto``, as if it had been declared so."""
    return replace(spec, arguments=spec.arguments | {"inputs": n_inputs})


def build_network(spec: NetworkSpec, base: Path = Path()) -> nn.Module:
    """Module of the factory in float32, as initialised by the factory, still trainable.

    Args:
        spec: which factory and with which arguments.
        base: folder that a ``path/to/file.py`` factory is relative to.

    Raises:
        UsageError: no such factory, or it does not take these arguments.
        NetworkError: the factory failed, or returned something whose layers cannot be recorded.
    """
    from krepes_ooc.network.frozen import check_module

    factory = find_factory(spec.factory, base)
    try:
        # A wrong argument is a wrong recipe, not a failure inside the factory.
        inspect.signature(factory).bind(**spec.arguments)
    except TypeError as error:
        raise UsageError(
            f"the factory does not take these arguments: {error}",
            where="network.arguments",
            expected=signature_text(factory),
        ) from error
    except ValueError:
        pass  # a builtin without a signature: the call itself decides
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

    # Weights are found before the network is built: building may take minutes.
    path = resolve_weights(spec, weights_path, base)
    module = build_network(spec, base)
    if path is not None:
        state = checkpoint.read_state(path, spec.state_key)
        checkpoint.fill_module(module, state, path, spec.strip_prefix)
    # Last: initial values of the factory can be infinite too.
    check_state_finite(module)
    return freeze(module, spec.output)


def resolve_weights(spec: NetworkSpec, weights_path: Path | None, base: Path) -> Path | None:
    """Path of the checkpoint; None if the factory loads the weights itself.

    Raises:
        UsageError: the weights come from the demo trainer, which has not run, or do not exist.
    """
    # A path given by the caller wins over the recipe.
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
