"""The recipe key ``network``: a factory, its arguments and its weights.

torch is imported on first use, so that reading a recipe stays fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krepes_ooc.core.import_object import find_factory, locate_arguments, signature_text
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import NetworkError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from krepes_ooc.network.frozen import FrozenNetwork
    from krepes_ooc.network.read_point import ReadPoint
    from krepes_ooc.network.state_fit import Filled

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
        about="path of a checkpoint: a file of safetensors or torch.save, the index or folder of "
        "shards; 'pretrain' for the demo trainer's checkpoint; 'factory' if the factory loads its "
        "weights itself",
    )
    output: str | None = setting(None, about="key or index of the audited output")
    strip_prefix: str = setting("", about="read only keys with this prefix, without it: 'module.'")
    state_key: str = setting("", about="key of the state dict inside the checkpoint: 'state_dict'")
    ignore: tuple[str, ...] = setting(
        (), about="globs of keys of the checkpoint to leave out: ['fc.*']", digest_omits=()
    )
    rename: dict[str, str] = setting(
        {}, about="beginnings of keys of the checkpoint to their new form", digest_omits={}
    )
    module: str = setting(
        "",
        about="path of the module whose output is the embedding: 'backbone'; default the network",
        digest_omits="",
    )
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
    arguments = locate_arguments(spec.arguments, base)
    try:
        # A wrong argument is a wrong recipe, not a failure inside the factory.
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise UsageError(
            f"the factory does not take these arguments: {error}",
            where="network.arguments",
            expected=signature_text(factory),
        ) from error
    except ValueError:
        pass  # a builtin without a signature: the call itself decides
    try:
        module = factory(**arguments)
    except Exception as error:
        raise NetworkError(
            f"the factory failed: {type(error).__name__}: {error}", where=spec.factory
        ) from error
    return check_module(module).float()


def load_network(
    spec: NetworkSpec,
    weights_path: Path | None,
    base: Path,
    example: Callable[[], npt.NDArray[np.float32]] | None = None,
    model: nn.Module | None = None,
) -> FrozenNetwork:
    """The audited network: weights loaded, eval mode, frozen, float32, every value finite.

    Args:
        spec: the recipe key ``network``.
        weights_path: the checkpoint; None to take ``spec.weights`` relative to ``base``.
        base: folder of the recipe.
        example: gives one input [1, ...], which ``spec.module`` needs.
        model: the network of a script, in place of what the factory builds; copied.

    Raises:
        UsageError: a path, key or argument is wrong.
        NetworkError: the checkpoint does not fit the network, or the network cannot be trusted.
    """
    from krepes_ooc.network.live_module import copy_module
    from krepes_ooc.network.state_fit import Filled

    # Weights are found before the network is built: building may take minutes.
    path = resolve_weights(spec, weights_path, base)
    module = build_network(spec, base) if model is None else copy_module(model)
    filled = Filled() if path is None else _fill(module, spec, path)
    return freeze_network(spec, module, example, filled)


def freeze_network(
    spec: NetworkSpec,
    module: nn.Module,
    example: Callable[[], npt.NDArray[np.float32]] | None = None,
    filled: Filled | None = None,
) -> FrozenNetwork:
    """A module frozen, read where the recipe says.

    Args:
        spec: the recipe key ``network``.
        module: the network, its weights loaded.
        example: as for ``load_network``.
        filled: what became of the checkpoint.

    Raises:
        UsageError: the network has no such module.
        NetworkError: a value is not finite, or the embedding depends on values that the checkpoint
            does not hold.
    """
    import torch

    from krepes_ooc.network.frozen import FrozenNetwork, check_state_finite
    from krepes_ooc.network.read_point import ReadPoint, find_read_point

    point = ReadPoint(module, "")
    if spec.module:
        if example is None:
            raise UsageError(
                "a module is read by running the network once",
                where="network.module",
                expected="an input of the network",
            )
        point = find_read_point(module, spec.module, torch.tensor(example()))
    notes = filled.notes if filled is not None else ()
    if filled is not None and filled.kept:
        notes = (*notes, _check_kept(filled.kept, point))
    # Parameters behind the embedding have no gradient, hence no rows.
    for name, parameter in point.module.named_parameters():
        if name in point.unused:
            parameter.requires_grad_(False)
    # Last: initial values of the factory can be infinite too.
    check_state_finite(point.module)
    return FrozenNetwork(point.module, spec.output, point.path, notes)


def _fill(module: nn.Module, spec: NetworkSpec, path: Path) -> Filled:
    """Load a checkpoint into a module by the keys of the recipe."""
    from krepes_ooc.network.checkpoint import read_state
    from krepes_ooc.network.state_fit import KeyRules, fill_module

    loaded = read_state(path, spec.state_key, spec.ignore)
    rules = KeyRules(spec.strip_prefix, spec.ignore, spec.rename)
    return fill_module(module, loaded, path, rules)


def _check_kept(kept: tuple[str, ...], point: ReadPoint) -> str:
    """A note on values of the factory that stay, which the embedding must not depend on.

    Raises:
        NetworkError: it does: initial values would be audited.
    """
    if point.alone:
        used = [name for name in kept if name.startswith(point.alone)]
    else:
        used = [name for name in kept if name not in point.unused]
    if used:
        raise NetworkError(
            f"{len(used)} keys missing ({', '.join(used[:3])}), which the embedding depends on",
            where="network.ignore",
            expected="weights of the checkpoint for all that comes before the embedding",
            advice="set network.module to the part of the network that was trained, or build the "
            "network without these layers",
        )
    return f"{len(kept)} values behind the embedding are not in the checkpoint, not needed"


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
    path = weights_path or base / Path(spec.weights).expanduser()
    if not path.exists():
        raise UsageError(
            "no such file",
            where=str(path),
            expected="a checkpoint: a file, or a folder as model libraries write it",
        )
    return path


def weight_files(spec: NetworkSpec, base: Path) -> tuple[Path, ...]:
    """Files of the checkpoint that the recipe names, whose bytes are part of every digest.

    Raises:
        UsageError: there is none.
        NetworkError: it holds no weights.
    """
    from krepes_ooc.network.checkpoint_file import content_files

    path = resolve_weights(spec, None, base)
    return content_files(path) if path is not None else ()
