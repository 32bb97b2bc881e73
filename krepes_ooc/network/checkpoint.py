"""Checkpoints: read without running any of their code, fitted to a module, written atomically."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
from collections.abc import Callable, Mapping
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
MAX_LISTED = 3


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
            raise _damage_error(path, error) from error
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt"):
        raise UsageError(
            f"suffix {path.suffix!r}",
            where=str(path),
            expected=".safetensors, .pt, .pth, .bin or .ckpt",
        )
    try:
        # weights_only: a restricted unpickler that calls nothing but constructors of tensors.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The same exception for a damaged file and for one that contains code.
        if "Weights only load failed" not in str(error):
            raise _damage_error(path, error) from error
        raise NetworkError(
            "the checkpoint holds pickled code or a whole module, which krepes never runs",
            where=str(path),
            expected="a state dict",
            advice="save module.state_dict() with safetensors.torch.save_file or torch.save",
        ) from error
    except Exception as error:
        raise _damage_error(path, error) from error
    return _find_state(loaded, path, state_key)


def fill_module(module: nn.Module, state: State, path: Path, strip_prefix: str = "") -> None:
    """Copy a state dict into a module; every key must fit.

    Raises:
        NetworkError: keys are missing, left over or of another shape; the message names the
            prefix to strip if that would help.
    """
    expected = module.state_dict()
    # Wrappers such as DataParallel prepend a name to every key.
    if strip_prefix:
        state = {
            k.removeprefix(strip_prefix): v for k, v in state.items() if k.startswith(strip_prefix)
        }
    # All keys or none: a partly loaded network would give plausible nonsense.
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    if missing or extra:
        raise NetworkError(
            f"{len(missing)} keys missing ({_few(missing)}), "
            f"{len(extra)} left over ({_few(extra)})",
            where=str(path),
            expected=f"the {len(expected)} keys of the factory's module",
            advice=_prefix_advice(set(expected), set(state)),
        )
    for key, tensor in expected.items():
        # load_state_dict would name all mismatches at once, in many lines.
        if nn.parameter.is_lazy(tensor) or tensor.shape == state[key].shape:
            continue
        raise NetworkError(
            f"{key} has shape {tuple(state[key].shape)}",
            where=str(path),
            expected=f"shape {tuple(tensor.shape)} as the factory builds it",
            advice="check network.arguments",
        )
    module.load_state_dict(state)


def save_weights(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a state dict as one safetensors file, whole or absent."""
    # Tied tensors share memory, which safetensors refuses: one copy a name.
    copies = {key: value.detach().clone().contiguous() for key, value in state.items()}
    write_file(path, lambda temporary: save_file(copies, temporary))


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under a temporary name, then rename it durably.

    Args:
        path: the file.
        write: writes the content to the path that it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A library may write for its user alone: the umask decides, as for all other files.
    with temporary.open("wb") as file:
        mode = os.fstat(file.fileno()).st_mode
    write(temporary)
    temporary.chmod(stat.S_IMODE(mode))
    publish(temporary, path)


def outputs_sha256(module: nn.Module, inputs: npt.NDArray[np.float32]) -> str:
    """sha256 of the bits of the network's outputs."""
    with torch.no_grad():
        # A copy, because the network may work in place.
        outputs = module(torch.tensor(inputs))
    return hashlib.sha256(outputs.contiguous().numpy().tobytes()).hexdigest()


def _find_state(loaded: Any, path: Path, state_key: str) -> State:
    """State dict at a dotted key of a loaded checkpoint."""
    entry = loaded
    for part in filter(None, state_key.split(".")):
        if not isinstance(entry, Mapping) or part not in entry:
            keys = (
                ", ".join(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
            )
            raise UsageError(f"no key {part!r}", where=f"{path} network.state_key", expected=keys)
        entry = entry[part]
    if _is_state(entry):
        return dict(entry)
    # Training frameworks nest the state dict: name the keys that lead to one.
    nested = (
        [str(k) for k, v in entry.items() if _is_state(v)] if isinstance(entry, Mapping) else []
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


def _prefix_advice(expected: set[str], keys: set[str]) -> str:
    """Advice that names the prefix of the expected keys in the checkpoint, if there is one."""
    # A prefix of all keys is a prefix of any one of them.
    anchor = min(expected, default="")
    prefixes = sorted(
        {key[: -len(anchor)] for key in keys if anchor and key.endswith(anchor)}, key=len
    )
    for prefix in filter(None, prefixes):
        if all(prefix + key in keys for key in expected):
            return f"set network.strip_prefix to {prefix!r}"
    if keys >= expected:
        return "remove the left-over keys, or build the whole network in the factory"
    return "check network.factory and network.arguments"


def _damage_error(path: Path, error: Exception) -> NetworkError:
    return NetworkError(
        f"cannot be read: {type(error).__name__}: {_first_sentence(error)}",
        where=str(path),
        expected="a complete checkpoint",
        advice=f"it has {path.stat().st_size} bytes, sha256 {file_sha256(path)}; copy it again",
    )


def _few(keys: list[str]) -> str:
    return (
        ", ".join(keys[:MAX_LISTED]) + (", ..." if len(keys) > MAX_LISTED else "")
        if keys
        else "none"
    )


def _first_sentence(error: Exception) -> str:
    """First sentence of a library's message, without its advice."""
    return " ".join(str(error).split()).split(". ")[0][:200]
