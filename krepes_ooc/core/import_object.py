"""Callables that a recipe names: factories, views, data sets; loaded, hashed and described."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from krepes_ooc.core.live_objects import LIVE, live_error
from krepes_ooc.errors import NetworkError, SourceError, UsageError

# Shipped modules as version 0.1 recorded them: digest of the canonical code to digest of the file.
RECORDED = {
    # network/zoo.py
    "df485e299c124c77017273457fb50c83bbc4dcec9c2a22116b894d7602cda19a": (
        "6df8d00edc909ff34ea8cf5c7afa41670051d2ab60d714ad29d665132b702aad"
    ),
}


def load_callable(text: str, base: Path, key: str) -> Callable[..., Any]:
    """The callable named ``module:callable`` or ``path/to/file.py:callable``; that code is run.

    Args:
        text: the name.
        base: folder of the recipe, where a file is looked up.
        key: the recipe's key, for messages.

    Raises:
        SourceError: the name has another form, the code fails, or holds no such callable.
        UsageError: it stands for an object of a script.
    """
    if text == LIVE:
        raise live_error(key)
    try:
        return find_factory(text, base)
    except (UsageError, NetworkError) as error:
        raise SourceError(
            error.what, where=key, expected="module:callable or path/to/file.py:callable"
        ) from error


def find_factory(text: str, base: Path = Path()) -> Callable[..., Any]:
    """The callable named ``module:callable`` or ``path/to/file.py:callable``.

    Raises:
        UsageError: the text has another form, or there is no such module, file or callable.
        NetworkError: the module's own code fails while it is imported.
    """
    if text == LIVE:
        raise live_error("network.factory")
    place, colon, name = text.rpartition(":")
    if not (colon and place and name):
        raise UsageError(
            f"{text!r} names no factory", where="network.factory", expected="module:callable"
        )
    # A dotted name walks down from the module: ``package.module:Class.method``.
    target: Any = _import_file(base / place) if place.endswith(".py") else _import_module(place)
    for part in name.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        raise UsageError(
            f"no callable {name!r} in {place}", where="network.factory", expected="module:callable"
        )
    return target  # type: ignore[no-any-return]


def locate_arguments(arguments: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Arguments of a factory, with paths that start from the recipe's folder made absolute.

    A text that begins with ``./`` or ``../`` is such a path; lists and mappings are searched.
    """

    def located(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(("./", "../")):
            return os.path.realpath(base / value)
        if isinstance(value, Mapping):
            return {key: located(entry) for key, entry in value.items()}
        return [located(entry) for entry in value] if isinstance(value, list) else value

    return {key: located(value) for key, value in arguments.items()}


def factory_sha256(text: str, base: Path = Path()) -> str:
    """sha256 of the file that the factory is named in; nothing but its parent package is imported.

    Of a user's file every byte counts; of a module of this package only its code, without comments,
    docstrings and formatting.

    Raises:
        UsageError: the text has another form, or there is no such module or file.
    """
    place, colon, name = text.rpartition(":")
    if colon and place.endswith(".py") and (base / place).is_file():
        return hashlib.sha256(_code(base / place)).hexdigest()
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(place) if colon and name else None
        if found is not None and found.origin and Path(found.origin).is_file():
            code = _code(Path(found.origin))
            return code_sha256(code) if _is_shipped(place) else hashlib.sha256(code).hexdigest()
    find_factory(text, base)
    return hashlib.sha256(text.encode()).hexdigest()


def code_sha256(source: bytes) -> str:
    """sha256 of Python code in a canonical form: comments, docstrings and formatting do not count.

    Code that an earlier version shipped has the digest that that version recorded, which was of the
    file's bytes.
    """
    text = json.dumps(_canonical(ast.parse(source)), separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return RECORDED.get(digest, digest)


def _canonical(node: Any) -> Any:
    """A syntax tree as nested lists, the same under every Python version that can run the code.

    Empty fields are left out, because newer versions add such fields to old kinds of node.
    """
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = fields["body"][1:]  # a docstring stands first
    pairs = [
        [name, _canonical(value)]
        for name, value in sorted(fields.items())
        if value is not None and value != [] and name != "ctx"
    ]
    return [type(node).__name__, *pairs]


def _is_shipped(place: str) -> bool:
    return place.partition(".")[0] == __name__.partition(".")[0]


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
        # The module is there, but something that it imports is not.
        if error.name and not (name == error.name or name.startswith(error.name + ".")):
            raise _import_failed(name, error) from error
        raise UsageError(
            f"no module {name!r}",
            where="network.factory",
            expected="an installed module, or path/to/file.py:callable",
        ) from error
    except Exception as error:
        raise _import_failed(name, error) from error


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Loads the source: the compiled copy of a file edited within a second would be the old one."""

    def get_code(self, fullname: str) -> Any:
        """Code of the source as it is now."""
        del fullname
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError("no such file", where=str(path), expected="the file of network.factory")
    # The name is keyed by path and content: an edited file is a new module, never a stale one.
    key = hashlib.sha256(str(path.resolve()).encode() + _code(path)).hexdigest()[:16]
    name = f"krepes_factory_{path.stem}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _SourceLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _import_failed(str(path), error) from error
    return module


def _import_failed(name: str, error: Exception) -> NetworkError:
    return NetworkError(f"the import failed: {type(error).__name__}: {error}", where=name)


def signature_text(factory: Callable[..., Any]) -> str:
    """Name and signature of a callable, for messages."""
    return f"{getattr(factory, '__name__', 'factory')}{inspect.signature(factory)}"
