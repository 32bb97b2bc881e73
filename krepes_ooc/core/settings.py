"""Read a YAML mapping into a frozen dataclass: keys known, values of their declared types."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from krepes_ooc.errors import RecipeError

T = TypeVar("T")


def setting(default: Any = dataclasses.MISSING, *, about: str, **limits: float) -> Any:
    """A dataclass field: its meaning, its limits ``minimum``, ``maximum``, ``above``, ``below``."""
    metadata = {"about": about, **limits}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read_settings(kind: type[T], values: Mapping[str, Any] | None, where: str) -> T:
    """Build the frozen dataclass ``kind`` from a mapping.

    Args:
        kind: a dataclass; its annotations and ``setting`` limits are the schema.
        values: what the recipe says; missing keys take their default.
        where: file and key, for messages.

    Raises:
        RecipeError: unknown key, wrong type, value outside its limits, required key missing.
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise RecipeError(f"{values!r} is no mapping", where=where, expected="keys with values")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            raise unknown_key(str(key), list(fields), where)
    read = {}
    for name, field in fields.items():
        if name in values:
            read[name] = _convert(hints[name], values[name], f"{where}.{name}", field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecipeError(
                f"key {name!r} is missing",
                where=where,
                expected=str(field.metadata.get("about", "")),
            )
    return kind(**read)


def unknown_key(key: str, allowed: list[str], where: str) -> RecipeError:
    """The error for a key that nobody reads, with the nearest allowed one."""
    near = difflib.get_close_matches(key, allowed, n=1)
    return RecipeError(
        f"unknown key {key!r}",
        where=where,
        expected="one of " + ", ".join(sorted(allowed)),
        advice=f"did you mean {near[0]!r}?" if near else "",
    )


def to_mapping(value: Any) -> Any:
    """Frozen settings as plain JSON values, for digests and records."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_mapping(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_mapping(item) for item in value]
    return value


def _convert(hint: Any, value: Any, where: str, limits: Mapping[str, Any]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where, limits)
    if origin is typing.Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        raise _wrong(value, where, "one of " + ", ".join(map(str, arguments)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(value, where, "a list")
        return tuple(
            _convert(arguments[0], v, f"{where}[{i}]", limits) for i, v in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(value, where, "a mapping")
        return {str(k): _convert(arguments[1], v, f"{where}.{k}", limits) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else read_settings(hint, value, where)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, where, limits)


def _convert_union(
    choices: tuple[Any, ...], value: Any, where: str, limits: Mapping[str, Any]
) -> Any:
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    if len(choices) == 1:
        return _convert(choices[0], value, where, limits)
    failures = []
    for choice in choices:
        try:
            return _convert(choice, value, where, limits)
        except RecipeError as error:
            failures.append(error.expected)
    raise _wrong(value, where, " or ".join(failures))


def _convert_scalar(hint: Any, value: Any, where: str, limits: Mapping[str, Any]) -> Any:
    if hint is Any:
        return _plain(value, where)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        value = _to_float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(value, where, f"a value of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(value, where, "a finite number")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_limits(value, where, limits)
    return value


def _plain(value: Any, where: str) -> Any:
    """A value of any plain type: what JSON, and so a digest, can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is not None and not isinstance(value, bool | int | float | str):
        raise RecipeError(
            f"{value!s} is a {type(value).__name__}",
            where=where,
            expected="a number, text, true or false, a list or a mapping",
            advice=f'put it in quotes: "{value!s}"' if hasattr(value, "isoformat") else "",
        )
    return value


def _to_float(value: int | str) -> float | str | int:
    """YAML 1.1 reads ``1e-3`` as text; people mean the number."""
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _check_limits(value: float, where: str, limits: Mapping[str, Any]) -> None:
    checks = {
        "minimum": (value >= limits.get("minimum", -math.inf), "at least"),
        "maximum": (value <= limits.get("maximum", math.inf), "at most"),
        "above": (value > limits.get("above", -math.inf), "more than"),
        "below": (value < limits.get("below", math.inf), "less than"),
    }
    for name, (holds, words) in checks.items():
        if name in limits and not holds:
            raise _wrong(value, where, f"{words} {limits[name]:g}")


def _wrong(value: Any, where: str, expected: str) -> RecipeError:
    return RecipeError(f"{value!r} is not allowed", where=where, expected=expected)
