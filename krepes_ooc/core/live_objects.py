"""Objects of a running script that a recipe cannot name: a network, a data set, a view."""

from __future__ import annotations

import hashlib
import re
import types
from collections.abc import Iterator
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

    Of a network the classes of all its modules count, and what it prints of itself. Comments and
    line numbers do not count, nor do values that functions close over. An object that has
    ``content_sha256()`` counts with that as well.
    """
    parts: list[Any] = [
        [kind.__module__, kind.__qualname__, list(_code_of(kind))] for kind in _kinds(value)
    ]
    if callable(getattr(value, "modules", None)):
        # Addresses differ in every process.
        parts.append(re.sub(r" at 0x[0-9a-f]+", "", repr(value)))
    if callable(getattr(value, "content_sha256", None)):
        parts.append(str(value.content_sha256()))
    return hashlib.sha256(to_json(parts).encode()).hexdigest()


def _kinds(value: Any) -> list[Any]:
    """Functions and classes whose code an object runs, libraries left out."""
    if isinstance(value, types.FunctionType | type):
        return [value]
    members = list(value.modules()) if callable(getattr(value, "modules", None)) else [value]
    kinds = {base for member in members for base in type(member).__mro__}
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in _LIBRARIES]
    return sorted(own, key=lambda kind: (kind.__module__, kind.__qualname__))


def _code_of(kind: Any) -> Iterator[Any]:
    if isinstance(kind, types.FunctionType):
        yield _instructions(kind.__code__)
        return
    for name, member in sorted(vars(kind).items()):
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, types.FunctionType):
            yield [name, _instructions(function.__code__)]


def _instructions(code: types.CodeType) -> list[Any]:
    """Instructions, names and constants of a function, those inside it included."""
    constants = [
        _instructions(value) if isinstance(value, types.CodeType) else _constant(value)
        for value in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _constant(value: Any) -> str:
    # The order of a set differs between processes.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
