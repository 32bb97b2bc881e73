"""Checkpoints: read without running any of their code, and written atomically."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from krepes_ooc.core.files import publish
from krepes_ooc.errors import NetworkError, UsageError
from krepes_ooc.network import restricted_pickle
from krepes_ooc.network.checkpoint_file import CheckpointFile, damage_error, list_files
from krepes_ooc.network.restricted_pickle import foreign_objects

State = dict[str, torch.Tensor]
MAX_LISTED = 3
_NESTED_DEPTH = 3
_PROTOCOL = 2
_EXTRA_STATE = "*_extra_state"


@dataclass(frozen=True)
class LoadedState:
    """A state dict, and what else the checkpoint holds.

    Args:
        tensors: by name, as they are stored.
        notes: lines for people on what was left out or converted.
        left_out: names of entries that are no tensors, left out as the recipe says.
    """

    tensors: State
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def read_state(path: Path, state_key: str = "", ignore: Iterable[str] = ()) -> LoadedState:
    """The state dict of a checkpoint; pickled code is never run.

    Args:
        path: a file of safetensors, of ``torch.save`` or of NumPy (npz), by content; or the index
            or the folder of shards.
        state_key: key of the state dict inside a checkpoint that holds more than that.
        ignore: globs of names; entries of these names that are no tensors are left out.

    Raises:
        UsageError: ``state_key`` does not lead to a state dict.
        NetworkError: the file is damaged, holds no weights, or names classes that are not allowed.
    """
    files = list_files(path)
    parts = [_read_file(file) for file in files]
    if len(parts) == 1 and files[0].names is None:
        return _find_state(parts[0], path, state_key, tuple(ignore))
    # Shards: each gives the tensors that the index names.
    whole: dict[str, Any] = {}
    for file, part in zip(files, parts, strict=True):
        absent = [name for name in file.names or () if name not in part]
        if absent:
            raise NetworkError(
                f"{len(absent)} tensors are missing ({list_few(absent)})",
                where=str(file.path),
                expected=f"what the index {path.name} says",
                advice="copy the shard again",
            )
        whole |= {name: part[name] for name in file.names or ()}
    return _find_state(whole, path, state_key, tuple(ignore))


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


def list_few(names: list[str]) -> str:
    """The first names of a list, for messages."""
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "") or "none"


def _read_file(file: CheckpointFile) -> Any:
    """Content of one file.

    Raises:
        NetworkError: it is damaged, or names classes that are not allowed.
    """
    try:
        if file.form == "safetensors":
            return load_file(file.path)
        if file.form == "numpy":
            with np.load(file.path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        with warnings.catch_warnings():
            # Other protocols have a message of their own.
            warnings.simplefilter("ignore", UserWarning)
            return restricted_pickle.load_pickled(file.path)
    except pickle.UnpicklingError as error:
        # The same exception for a damaged file, for one that holds code, and for other protocols.
        raise _unpickling_error(file.path, error) from error
    # Every library refuses damaged files by exceptions of its own.
    except Exception as error:
        raise damage_error(file.path, _cause(error)) from error


def _unpickling_error(path: Path, error: Exception) -> NetworkError:
    """The error for what torch's restricted unpickler refused."""
    names = restricted_pickle.refused_names(path)
    protocol = _pickle_protocol(path)
    if protocol > _PROTOCOL:
        return NetworkError(
            f"was saved with pickle protocol {protocol}",
            where=str(path),
            expected=f"protocol {_PROTOCOL}, the default of torch.save",
            advice="save it again without pickle_protocol, or as safetensors",
        )
    if not names and "Weights only load failed" not in str(error):
        return damage_error(path, _cause(error))
    places = restricted_pickle.places_of(path, names)
    held = [name + (f" under {places[name]}" if name in places else "") for name in names]
    what = f"{'; '.join(held[:MAX_LISTED])}: " if held else ""
    # A class beside the weights is left out by whoever saves them alone.
    tops = sorted({place.partition(".")[0] for place in places.values()} - {""})
    save = "save module.state_dict() with safetensors.torch.save_file or torch.save"
    drop = f"leave {', '.join(map(repr, tops))} out when you save, or " if tops else ""
    return NetworkError(
        f"{what}the checkpoint holds pickled code or a whole module, which krepes never runs",
        where=str(path),
        expected="a state dict",
        advice=drop + save,
    )


def _pickle_protocol(path: Path) -> int:
    """Protocol of a pickled file; 0 if it does not begin with one."""
    head = b""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                with archive.open(name) as stream:
                    head = stream.read(2)
        else:
            with path.open("rb") as stream:
                head = stream.read(2)
    except (OSError, zipfile.BadZipFile, StopIteration, RuntimeError):
        return 0
    return head[1] if head[:1] == b"\x80" and len(head) > 1 else 0


def _find_state(loaded: Any, path: Path, state_key: str, ignore: tuple[str, ...]) -> LoadedState:
    """State dict at a dotted key of a loaded checkpoint.

    Raises:
        UsageError: the key leads nowhere, or to something else.
    """
    entry = _entry_at(loaded, path, state_key)
    if isinstance(entry, Mapping):
        # What a module stores beside its tensors needs its code: it is left out like other names.
        names = (*ignore, _EXTRA_STATE)
        left = {k: v for k, v in entry.items() if _is_weight(v) or not _matches(str(k), names)}
        if _is_state(left):
            left_out = tuple(str(key) for key in entry if key not in left)
            return LoadedState(*_as_tensors(left, path, loaded), left_out)
    raise _no_state_error(entry, path, state_key)


def _entry_at(loaded: Any, path: Path, state_key: str) -> Any:
    """Entry of nested mappings at a dotted key; names may hold dots themselves.

    Raises:
        UsageError: there is none; names the entries that are there.
    """
    entry = loaded
    parts = state_key.split(".") if state_key else []
    while parts:
        names = list(entry) if isinstance(entry, Mapping) else []
        # The longest name that is there: 'model.module' may be one name or two.
        lengths = [n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in names]
        if not lengths:
            known = ", ".join(map(str, names)) or type(entry).__name__
            raise UsageError(
                f"no key {parts[0]!r}", where=f"{path} network.state_key", expected=known
            )
        entry = entry[".".join(parts[: lengths[0]])]
        parts = parts[lengths[0] :]
    return entry


def _no_state_error(entry: Any, path: Path, state_key: str) -> UsageError:
    """The error for an entry that is no state dict, naming those that are."""
    nested = [f"{state_key}.{key}".lstrip(".") for key in _nested_states(entry, _NESTED_DEPTH)]
    nested.sort(key=lambda key: key.count("."))
    advice = f"set network.state_key to one of {', '.join(nested)}" if nested else ""
    what = "the checkpoint is no state dict"
    if isinstance(entry, Mapping) and any(map(_is_weight, entry.values())):
        # A state dict but for some entries: they can be left out by name.
        others = [str(key) for key, value in entry.items() if not _is_weight(value)]
        kinds = [f"{key} ({_kind(entry[key])})" for key in entry if not _is_weight(entry[key])]
        what = f"beside tensors the state dict holds {list_few(kinds)}"
        if not nested:
            advice = f"leave them out with network.ignore: [{', '.join(others[:MAX_LISTED])}]"
    elif not isinstance(entry, Mapping):
        what += f" but {_kind(entry)}"
    return UsageError(
        what,
        where=str(path),
        expected="a mapping from parameter names to tensors",
        advice=advice,
    )


def _as_tensors(state: Mapping[str, Any], path: Path, loaded: Any) -> tuple[State, tuple[str, ...]]:
    """Tensors of a state dict, and notes on what was converted or stands beside it."""
    notes = []
    arrays = [key for key, value in state.items() if isinstance(value, np.ndarray)]
    if arrays:
        notes.append(f"{len(arrays)} values of {path.name} are NumPy arrays, read as tensors")
    foreign = foreign_objects(loaded)
    if foreign:
        named = [f"{kind} under {key}" for key, kind in foreign.items()]
        notes.append(f"left out of {path.name}, and not run: {list_few(named)}")
    tensors = {
        # A copy: the array's memory is that of the file's bytes, which are read only.
        key: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value.detach()
        for key, value in state.items()
    }
    return tensors, tuple(notes)


def _nested_states(entry: Any, depth: int) -> list[str]:
    """Dotted keys of the state dicts inside a mapping."""
    found = []
    for key, value in entry.items() if isinstance(entry, Mapping) and depth else ():
        if _is_state(value):
            found.append(str(key))
        else:
            found += [f"{key}.{below}" for below in _nested_states(value, depth - 1)]
    return found


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and _is_weight(v) for k, v in value.items())
    )


def _is_weight(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _kind(value: Any) -> str:
    return getattr(value, "stands_for", "") or type(value).__name__


def _cause(error: Exception) -> str:
    """Class and first sentence of a library's error, without its advice."""
    return f"{type(error).__name__}: " + " ".join(str(error).split()).split(". ")[0][:200]
