"""Read a checkpoint without running any of its code, and fit it to a module."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from krepes_ooc.core.digests import file_sha256
from krepes_ooc.core.files import publish
from krepes_ooc.errors import NetworkError, UsageError

State = dict[str, torch.Tensor]
_SHOWN = 3


def read_state(path: Path, state_key: str = "") -> State:
    """The state dict of a .safetensors or .pt file; pickled code is never run.

    Args:
        path: the checkpoint.
        state_key: key of the state dict inside a .pt checkpoint that holds more than that.

    Raises:
        UsageError: the suffix is unknown, or ``state_key`` does not lead to a state dict.
        NetworkError: the file is damaged, or holds pickled code.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from error
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt"):
        raise UsageError(
            f"suffix {path.suffix!r}",
            where=str(path),
            expected=".safetensors, .pt, .pth, .bin or .ckpt",
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise _damaged(path, error) from error
        raise NetworkError(
            "the checkpoint holds pickled code or a whole module, which krepes never runs",
            where=str(path),
            expected="a state dict",
            advice="save module.state_dict() with safetensors.torch.save_file or torch.save",
        ) from error
    except Exception as error:
        raise _damaged(path, error) from error
    return _find_state(loaded, path, state_key)


def fill_module(module: nn.Module, state: State, path: Path, strip_prefix: str = "") -> None:
    """Copy a state dict into a module; every key must fit.

    Raises:
        NetworkError: keys are missing, left over or of another shape; the message names the
            prefix to strip if that would help.
    """
    wanted = module.state_dict()
    if strip_prefix:
        state = {
            k.removeprefix(strip_prefix): v for k, v in state.items() if k.startswith(strip_prefix)
        }
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    if missing or extra:
        raise NetworkError(
            f"{len(missing)} keys missing ({_few(missing)}), "
            f"{len(extra)} left over ({_few(extra)})",
            where=str(path),
            expected=f"the {len(wanted)} keys of the factory's module",
            advice=_prefix_advice(set(wanted), set(state)),
        )
    for key, tensor in wanted.items():
        if nn.parameter.is_lazy(tensor) or tensor.shape == state[key].shape:
            continue
        raise NetworkError(
            f"{key} has shape {tuple(state[key].shape)}",
            where=str(path),
            expected=f"shape {tuple(tensor.shape)} as the factory builds it",
            advice="check network.arguments",
        )
    module.load_state_dict(state)


def save_state(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Publish a state dict as one safetensors file: complete or not there at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Tied tensors share memory, which safetensors refuses: each name gets its own copy.
    save_file({key: value.detach().clone().contiguous() for key, value in state.items()}, temporary)
    publish(temporary, path)


def dtypes(path: Path, state_key: str = "") -> list[str]:
    """The floating-point types in a checkpoint, sorted: float16 is widened on loading."""
    state = read_state(path, state_key)
    kinds = {str(t.dtype).removeprefix("torch.") for t in state.values() if t.is_floating_point()}
    return sorted(kinds)


def state_sha256(module: nn.Module) -> str:
    """sha256 over names, shapes, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name.removeprefix('inner.')}|{value.dtype}|{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def outputs_sha256(module: nn.Module, inputs: npt.NDArray[np.float32]) -> str:
    """sha256 of the bits of the network's outputs."""
    with torch.no_grad():
        outputs = module(torch.tensor(inputs))
    return hashlib.sha256(outputs.contiguous().numpy().tobytes()).hexdigest()


def _find_state(loaded: Any, path: Path, state_key: str) -> State:
    found = loaded
    for part in filter(None, state_key.split(".")):
        if not isinstance(found, Mapping) or part not in found:
            keys = (
                ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            )
            raise UsageError(f"no key {part!r}", where=f"{path} network.state_key", expected=keys)
        found = found[part]
    if _is_state(found):
        return dict(found)
    nested = (
        [str(k) for k, v in found.items() if _is_state(v)] if isinstance(found, Mapping) else []
    )
    raise UsageError(
        "the checkpoint is no state dict",
        where=str(path),
        expected="a mapping from parameter names to tensors",
        advice=f"set network.state_key to one of {', '.join(nested)}" if nested else "",
    )


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def _prefix_advice(wanted: set[str], found: set[str]) -> str:
    """Name the prefix under which the checkpoint holds the wanted keys, if there is one."""
    anchor = min(wanted, default="")
    prefixes = sorted(
        {key[: -len(anchor)] for key in found if anchor and key.endswith(anchor)}, key=len
    )
    for prefix in filter(None, prefixes):
        if all(prefix + key in found for key in wanted):
            return f"set network.strip_prefix to {prefix!r}"
    if found >= wanted:
        return "remove the left-over keys, or build the whole network in the factory"
    return "check network.factory and network.arguments"


def _damaged(path: Path, error: Exception) -> NetworkError:
    return NetworkError(
        f"cannot be read: {type(error).__name__}: {_first_sentence(error)}",
        where=str(path),
        expected="a complete checkpoint",
        advice=f"it has {path.stat().st_size} bytes, sha256 {file_sha256(path)}; copy it again",
    )


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "") if keys else "none"


def _first_sentence(error: Exception) -> str:
    """What a library says first, without its advice."""
    return " ".join(str(error).split()).split(". ")[0][:200]
