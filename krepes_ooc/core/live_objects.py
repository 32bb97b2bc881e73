"""Objects of a running script that a recipe cannot name: a network, a data set, a view."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from krepes_ooc.core.files import to_json
from krepes_ooc.errors import UsageError

# The word in a recipe that stands for such an object.
LIVE = "live"
# Packages whose versions a run records: their code is not hashed.
_LIBRARIES = {"torch", "numpy", "builtins", "typing", "abc", "collections", "krepes_ooc"}


@dataclass(frozen=True)
class LiveObjects:
    """Objects that a script holds; each is None where the recipe names something else.

    Args:
        model: the network.
        dataset: a map-style data set.
        view: ``view(x, sample_id, view_id, seed)``.
    """

    model: Any = None
    dataset: Any = None
    view: Any = None


NOT_LIVE = LiveObjects()


def live_error(key: str) -> UsageError:
    """The error for a live object that this process does not hold.

    Args:
        key: key of the recipe that names it.
    """
    return UsageError(
        "is a live object of the script that made this workspace; commands read what is stored "
        "and compute nothing",
        where=key,
        expected="that script, which resumes here when it is run again",
    )


def object_sha256(value: Any) -> str:
    """sha256 of the code of an object: a function, or the methods of its classes.

    Functions of the same script that they call count too, and so do plain values (numbers, texts)
    that they close over, take as defaults, or read from the script. Of a network the classes of all
    its modules count, and what it prints of itself. Comments and line numbers do not count. An
    object that has ``content_sha256()`` counts with that as well.
    """
    parts: list[Any] = []
    if isinstance(value, functools.partial):
        parts += [object_sha256(value.func), _plain(value.args), _plain(value.keywords)]
    elif isinstance(value, types.FunctionType):
        parts.append(_function(value, set()))
    elif isinstance(value, types.MethodType):
        code = value.__func__
        own = _function(code, set()) if isinstance(code, types.FunctionType) else _plain(code)
        parts += [own, object_sha256(value.__self__)]
    else:
        for kind in _classes(value):
            parts.append([kind.__module__, kind.__qualname__, list(_methods(kind))])
        # A view may be an object with settings.
        if callable(value) and not hasattr(value, "modules"):
            parts.append(_plain(getattr(value, "__dict__", None)))
    if callable(getattr(value, "modules", None)):
        # Addresses differ in every process.
        parts.append(re.sub(r" at 0x[0-9a-f]+", "", repr(value)))
    if callable(getattr(value, "content_sha256", None)):
        parts.append(str(value.content_sha256()))
    return hashlib.sha256(to_json(parts).encode()).hexdigest()


def _classes(value: Any) -> list[type]:
    """Classes whose code an object runs, libraries left out."""
    members = list(value.modules()) if callable(getattr(value, "modules", None)) else [value]
    classes = {base for member in members for base in type(member).__mro__}
    own = [kind for kind in classes if not _is_library(kind)]
    return sorted(own, key=lambda kind: (kind.__module__, kind.__qualname__))


def _methods(kind: type) -> Iterator[Any]:
    for name, member in sorted(vars(kind).items()):
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, types.FunctionType):
            yield [name, _function(function, set())]


def _function(function: types.FunctionType, seen: set[int]) -> list[Any]:
    """Code of a function, the plain values that it holds, and the functions that it calls.

    Args:
        function: the function.
        seen: functions that were described before; is added to.
    """
    seen.add(id(function))
    held: list[Any] = [_plain(function.__defaults__), _plain(function.__kwdefaults__)]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            held.append(_plain(cell.cell_contents))
    # Names of the script that it reads: other functions and constants.
    called = []
    for name in sorted(_global_names(function.__code__)):
        entry = function.__globals__.get(name)
        if isinstance(entry, types.FunctionType) and not _is_library(entry):
            called.append([name, _function(entry, seen) if id(entry) not in seen else ""])
        elif isinstance(entry, bool | int | float | str):
            called.append([name, _plain(entry)])
    return [_instructions(function.__code__), held, called]


def _global_names(code: types.CodeType) -> set[str]:
    inner = [value for value in code.co_consts if isinstance(value, types.CodeType)]
    return set(code.co_names).union(*map(_global_names, inner))


def _instructions(code: types.CodeType) -> list[Any]:
    """Instructions, names and constants of a function, those inside it included."""
    constants = [
        _instructions(value) if isinstance(value, types.CodeType) else _plain(value)
        for value in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _plain(value: Any) -> Any:
    """A plain value, or plain values in a container, as text; of anything else its class."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    # The order of a set differs between processes.
    if isinstance(value, frozenset | set):
        return sorted(str(_plain(entry)) for entry in value)
    if isinstance(value, Mapping):
        return [[str(key), _plain(entry)] for key, entry in value.items()]
    return type(value).__qualname__


def _is_library(member: Any) -> bool:
    return str(member.__module__).partition(".")[0] in _LIBRARIES
