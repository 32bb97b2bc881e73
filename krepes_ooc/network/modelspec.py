"""Which network is audited: a factory, its arguments and its weights.

torch is imported on first use, so that reading a recipe stays fast.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import NetworkError, UsageError
from krepes_ooc.settings import setting

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
            expected=_signature(factory),
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
    from krepes_ooc.network import checkpoint
    from krepes_ooc.network.digests import file_sha256

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


def find_factory(text: str, base: Path = Path()) -> Callable[..., Any]:
    """The callable named ``module:callable`` or ``path/to/file.py:callable``.

    Raises:
        UsageError: the text has another form, or there is no such module, file or callable.
        NetworkError: the module's own code fails while it is imported.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(
            f"{text!r} names no factory", where="network.factory", expected="module:callable"
        )
    found: Any = _import_file(base / place) if place.endswith(".py") else _import_module(place)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UsageError(
            f"no callable {name!r} in {place}", where="network.factory", expected="module:callable"
        )
    return found  # type: ignore[no-any-return]


def factory_sha256(text: str, base: Path = Path()) -> str:
    """sha256 of the file that the factory is named in; nothing but its parent package is imported.

    Raises:
        UsageError: the text has another form, or there is no such module or file.
    """
    place, colon, name = text.rpartition(":")
    if colon and place.endswith(".py") and (base / place).is_file():
        return hashlib.sha256(_code(base / place)).hexdigest()
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(place) if colon and name else None
        if found is not None and found.origin and Path(found.origin).is_file():
            return hashlib.sha256(_code(Path(found.origin))).hexdigest()
    find_factory(text, base)
    return hashlib.sha256(text.encode()).hexdigest()


def _code(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            expected="the file of network.factory",
        ) from error


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not (name == error.name or name.startswith(error.name + ".")):
            raise _import_failed(name, error) from error
        raise UsageError(
            f"no module {name!r}",
            where="network.factory",
            expected="an installed module, or path/to/file.py:callable",
        ) from error
    except Exception as error:
        raise _import_failed(name, error) from error


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError("no such file", where=str(path), expected="the file of network.factory")
    # The name is keyed by path and content: an edited file is a new module, never a stale one.
    key = hashlib.sha256(str(path.resolve()).encode() + _code(path)).hexdigest()[:16]
    name = f"krepes_factory_{path.stem}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _import_failed(str(path), error) from error
    return module


def _import_failed(name: str, error: Exception) -> NetworkError:
    return NetworkError(f"the import failed: {type(error).__name__}: {error}", where=name)


def _signature(factory: Callable[..., Any]) -> str:
    return f"{getattr(factory, '__name__', 'factory')}{inspect.signature(factory)}"
