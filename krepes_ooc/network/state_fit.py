"""Fit of a state dict to a module: names, harmless absences, shapes and types.

A partly loaded network would give plausible nonsense, so every name must fit, but for those that
the recipe leaves out and those whose absence loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from krepes_ooc.errors import NetworkError, UsageError
from krepes_ooc.network.checkpoint import LoadedState, State, list_few

_COUNTER = "num_batches_tracked"
# Names of one normalised weight: torch.nn.utils.weight_norm, and its parametrisation since torch 2.
_WEIGHT_NORM = (
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
)
_MOST_HEADS = 6


@dataclass(frozen=True)
class KeyRules:
    """Keys of the recipe that say how names of a checkpoint become names of the module.

    Args:
        strip_prefix: only names that begin so are read, without it.
        ignore: globs of names, after the prefix, that are left out; names of the module that they
            match may be absent.
        rename: old beginning of a name, up to a dot or whole, to the new one; a star is any text.
    """

    strip_prefix: str = ""
    ignore: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Filled:
    """Outcome of loading a checkpoint.

    Args:
        notes: lines for people on what was left out or filled in.
        kept: names of the module that keep the values of the factory, as the recipe allows.
    """

    notes: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def fill_module(module: nn.Module, loaded: LoadedState, path: Path, rules: KeyRules) -> Filled:
    """Copy a state dict into a module.

    Args:
        module: what the factory built.
        loaded: tensors by the names of the checkpoint.
        path: the checkpoint, for messages.
        rules: how names are changed.

    Raises:
        NetworkError: names are missing, unexpected, or of another shape or type; the message names
            the key of the recipe that helps.
        UsageError: a rule fits no name.
    """
    # Further state of a module that is no tensor stays as the factory made it.
    expected = {k: v for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
    notes = list(loaded.notes)
    # Names as the module has them.
    named = _stripped(loaded.tensors, path, rules.strip_prefix, notes)
    _check_globs(rules.ignore, (*named, *expected, *loaded.left_out), path)
    named = _ignored(named, rules.ignore, notes)
    named = _renamed(named, path, rules.rename)
    named = _with_weight_norm_names(named, expected, notes)
    # Absences that lose nothing.
    missing = _fill_absent(module, named, expected, notes)
    kept = [key for key in missing if _matches(key, rules.ignore)]
    missing = [key for key in missing if key not in kept]
    extra = [key for key in named if key not in expected]
    if missing or extra:
        raise _key_error(missing, extra, expected, named, path)
    for key, tensor in expected.items():
        if key in named:
            _check_fits(key, named[key], tensor, path)
    _check_tied(module, named, path)
    module.load_state_dict({**module.state_dict(), **named})
    return Filled(tuple(notes), tuple(kept))


def _stripped(state: State, path: Path, prefix: str, notes: list[str]) -> State:
    """Tensors whose names begin with a prefix, without it.

    Raises:
        UsageError: no name does.
    """
    # Wrappers such as DataParallel prepend a name to every key.
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not found:
        heads = sorted({key.partition(".")[0] + "." * ("." in key) for key in state})
        more = ", ..." if len(heads) > _MOST_HEADS else ""
        raise UsageError(
            f"no key of {path.name} begins with {prefix!r}",
            where="network.strip_prefix",
            expected="a beginning of its keys: " + ", ".join(heads[:_MOST_HEADS]) + more,
        )
    others = [key for key in state if not key.startswith(prefix)]
    if others:
        notes.append(f"{len(others)} keys do not begin with {prefix!r}: {list_few(others)}")
    return found


def _check_globs(globs: Iterable[str], names: Collection[str], path: Path) -> None:
    """Raise on a glob that matches no name: a misspelled one would be ignored in silence.

    Raises:
        UsageError: it matches neither a name of the checkpoint nor of the module.
    """
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise UsageError(
                f"{glob!r} matches no key of {path.name}",
                where="network.ignore",
                expected=f"globs of its keys, such as {list_few(list(names))}",
            )


def _ignored(state: State, globs: Iterable[str], notes: list[str]) -> State:
    """Tensors whose names no glob matches."""
    dropped = [key for key in state if _matches(key, globs)]
    if dropped:
        notes.append(f"network.ignore leaves out {_count(dropped, 'tensor')}: {list_few(dropped)}")
    return {key: value for key, value in state.items() if key not in dropped}


def _renamed(state: State, path: Path, rename: Mapping[str, str]) -> State:
    """Tensors under their new names; the first rule that fits a name changes it.

    Raises:
        UsageError: a rule fits no name, or two tensors get one name.
    """
    rules = {old: (_pattern(old, new), new) for old, new in rename.items()}
    renamed: State = {}
    used = set()
    for key, value in state.items():
        name = key
        for old, (pattern, new) in rules.items():
            if found := pattern.match(key):
                name = _with_stars(new, found.groups()) + key[found.end() :]
                used.add(old)
                break
        if name in renamed:
            raise UsageError(
                f"two tensors of {path.name} get the name {name!r}",
                where="network.rename",
                expected="different names",
            )
        renamed[name] = value
    for old in rename:
        if old not in used:
            raise UsageError(
                f"no key of {path.name} is {old!r} or begins with it and a dot",
                where="network.rename",
                expected=f"beginnings of its keys, such as {list_few(list(state))}",
            )
    return renamed


def _with_stars(text: str, parts: Iterable[str]) -> str:
    """A text with its stars replaced, in order."""
    for part in parts:
        text = text.replace("*", part, 1)
    return text


def _pattern(old: str, new: str) -> re.Pattern[str]:
    """The beginnings of names that a rule changes; a star stands for any text.

    Raises:
        UsageError: the new form has another number of stars.
    """
    if old.count("*") != new.count("*"):
        raise UsageError(
            f"{old!r} and {new!r} have different numbers of stars",
            where="network.rename",
            expected="a star in the new form for each in the old one",
        )
    text = "(.+?)".join(re.escape(part) for part in old.split("*"))
    # Whole parts of a name only: 'fc' is no beginning of 'fc2.weight'.
    return re.compile(text if old.endswith(".") else text + r"(?=\.|$)")


def _with_weight_norm_names(state: State, expected: State, notes: list[str]) -> State:
    """Tensors of normalised weights under the names of the module: torch has two forms of them."""
    moved = {}
    both_ways = [pair[::step] for pair in _WEIGHT_NORM for step in (1, -1)]
    for key in state:
        for one, other in both_ways:
            name = key.removesuffix(one) + other
            is_part = key.endswith(f".{one}") or key == one
            # The module has the other form of this name, and nothing else gives it.
            if is_part and key not in expected and name in expected and name not in state:
                moved[key] = name
    if moved:
        listed = f"{_count(list(moved), 'tensor')}: {list_few(list(moved))}"
        notes.append(f"weight_norm is written in its other form, read by another name: {listed}")
    return {moved.get(key, key): value for key, value in state.items()}


def _fill_absent(module: nn.Module, state: State, expected: State, notes: list[str]) -> list[str]:
    """Fill in names whose absence loses nothing; the others that are missing.

    Args:
        module: what the factory built.
        state: tensors by name; second names of tied weights are added.
        expected: tensors of the module by name.
        notes: receives what was filled in.
    """
    groups = _tied_names(module)
    counters, second, missing = [], [], []
    for key in expected:
        if key in state:
            continue
        other = next((name for name in groups.get(key, ()) if name in state), None)
        # A count of batches is used in training alone, and only without momentum.
        if key.rpartition(".")[2] == _COUNTER:
            counters.append(key)
        elif other is not None:
            state[key] = state[other]
            second.append(f"{key} from {other}")
        else:
            missing.append(key)
    if counters:
        notes.append(f"{_count(counters, 'counter')} of batches not in the checkpoint, not needed")
    if second:
        notes.append(f"{_count(second, 'second name')} of tied weights filled: {list_few(second)}")
    return missing


def _tied_names(module: nn.Module) -> dict[str, list[str]]:
    """All names of each tensor that has several."""
    names: dict[int, list[str]] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(key)
    return {key: group for group in names.values() if len(group) > 1 for key in group}


def _check_tied(module: nn.Module, state: State, path: Path) -> None:
    """Raise if a checkpoint gives a tied weight two values, the last of which would win.

    Raises:
        NetworkError: naming both names.
    """
    for key, group in _tied_names(module).items():
        first = group[0]
        if key in state and first in state and not torch.equal(state[key], state[first]):
            raise NetworkError(
                f"{first} and {key} hold different values",
                where=str(path),
                expected="one value, because the factory's module ties them",
                advice="build the module without the tie, or set network.ignore to one of them",
            )


def _check_fits(key: str, stored: torch.Tensor, expected: torch.Tensor, path: Path) -> None:
    """Raise on a tensor of another shape, or whose values another type would not keep.

    Raises:
        NetworkError: the name, and both shapes or types.
    """
    kind = str(expected.dtype).removeprefix("torch.")
    words = _misfit(stored, expected)
    if words:
        raise NetworkError(
            f"{key} is {words}",
            where=str(path),
            expected=f"{kind} as the factory builds it",
            advice="save the weights as floating-point numbers, before they are quantised, pruned "
            "or cast",
        )
    # A lazy module takes its shape from the checkpoint. load_state_dict would name all mismatches
    # at once, in many lines.
    if not nn.parameter.is_lazy(expected) and expected.shape != stored.shape:
        raise NetworkError(
            f"{key} has shape {tuple(stored.shape)}",
            where=str(path),
            expected=f"shape {tuple(expected.shape)} as the factory builds it",
            advice="check network.arguments",
        )


def _misfit(stored: torch.Tensor, expected: torch.Tensor) -> str:
    """Type of stored values that a copy would change in meaning; empty if it would not."""
    kind = str(stored.dtype).removeprefix("torch.")
    if stored.is_quantized:
        return f"quantised ({kind})"
    if stored.is_meta:
        return f"{kind} without values (meta)"
    if stored.layout != torch.strided:
        return f"sparse ({str(stored.layout).removeprefix('torch.')}, {kind})"
    # Eight bits are a scaled form: without the scale the numbers mean nothing.
    if stored.is_floating_point() and stored.element_size() == 1:
        return kind
    same_class = (
        stored.is_floating_point() == expected.is_floating_point()
        and stored.is_complex() == expected.is_complex()
    )
    # Whole numbers and truth values among each other: masks and positions keep their values.
    keeps = expected.dtype == stored.dtype or stored.is_floating_point() or stored.is_complex()
    if same_class and (keeps or torch.equal(stored, stored.to(expected.dtype).to(stored.dtype))):
        return ""
    return kind


def _key_error(
    missing: list[str], extra: list[str], expected: State, state: State, path: Path
) -> NetworkError:
    needed = {key for key in expected if key.rpartition(".")[2] != _COUNTER}
    return NetworkError(
        f"{len(missing)} keys missing ({list_few(missing)}), "
        f"{len(extra)} unexpected ({list_few(extra)})",
        where=str(path),
        expected=f"the {len(expected)} keys of the factory's module",
        advice=_key_advice(needed, missing, extra, set(state)),
    )


def _key_advice(needed: set[str], missing: list[str], extra: list[str], keys: set[str]) -> str:
    """Keys of the recipe that would make the names fit, if there are any."""
    if not missing:
        globs = sorted({_glob_of(key, needed) for key in extra})
        return f"leave them out with network.ignore: [{', '.join(globs)}]"
    # A prefix of all keys is a prefix of any one of them.
    anchor = min(needed, default="")
    candidates = {key[: -len(anchor)] for key in keys if anchor and key.endswith(anchor)}
    fitting = sorted(p for p in candidates - {""} if all(p + key in keys for key in needed))
    if len(fitting) == 1:
        return f"set network.strip_prefix to {fitting[0]!r}"
    if fitting:
        return f"set network.strip_prefix to one of {', '.join(map(repr, fitting))}"
    if any(key.endswith(("weight_g", "weight_v")) for key in extra):
        return "the checkpoint has weight_norm: wrap these layers of the factory's module in it too"
    return "check network.factory and network.arguments, or set network.rename"


def _glob_of(key: str, needed: set[str]) -> str:
    """Shortest glob, up to a dot, that matches a name and none of the names that are needed."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        head = ".".join(parts[:length]) + "."
        if not any(name.startswith(head) for name in needed):
            return f"{head}*"
    return key


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}" + ("s" if len(names) > 1 else "")
