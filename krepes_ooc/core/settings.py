"""Settings: YAML mappings read into frozen dataclasses, with known keys and checked values."""

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


def setting(
    default: Any = dataclasses.MISSING,
    *,
    about: str,
    digest_name: str = "",
    digest_omits: Any = dataclasses.MISSING,
    **limits: float,
) -> Any:
    """A dataclass field that is one key of a recipe or contract.

    Args:
        default: the value of a missing key; without one the key is required.
        about: meaning, for people.
        digest_name: the key's first name, if it was renamed since. Digests go on spelling it so;
            whoever still writes it is shown the new one.
        digest_omits: for a key that was added to a published stage, the value that does what was
            done before it. There the key leaves no trace in a digest: earlier results stay valid.
        **limits: ``minimum``, ``maximum``, ``above`` or ``below`` of its numbers.
    """
    metadata = {"about": about, "digest_name": digest_name, "digest_omits": digest_omits, **limits}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read_settings(kind: type[T], values: Mapping[str, Any] | None, where: str) -> T:
    """Build the frozen dataclass ``kind`` from a mapping.

    Args:
        kind: a dataclass; its annotations and ``setting`` limits are the schema.
        values: the mapping in the recipe; missing keys take their default.
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
    # Unknown keys first: a typo explains a missing key.
    renamed = {field.metadata.get("digest_name"): name for name, field in fields.items()}
    for key in values:
        if key not in fields:
            if key and key in renamed:
                raise RecipeError(
                    f"key {key!r} was renamed", where=where, expected=repr(renamed[key])
                )
            raise unknown_key(str(key), list(fields), where)
    # Values by their type, defaults by the dataclass.
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
    """The error for an unknown key, with the nearest allowed one."""
    near = difflib.get_close_matches(key, allowed, n=1)
    return RecipeError(
        f"unknown key {key!r}",
        where=where,
        expected="one of " + ", ".join(sorted(allowed)),
        advice=f"did you mean {near[0]!r}?" if near else "",
    )


def to_mapping(value: Any) -> Any:
    """Frozen settings as plain JSON values, for records and people."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_mapping(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_mapping(item) for item in value]
    return value


def digest_mapping(value: Any) -> Any:
    """Frozen settings as plain JSON values in the form that digests are taken of.

    It outlives renamed and added keys; see ``digest_name`` and ``digest_omits`` of ``setting``.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        mapping = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if item != field.metadata.get("digest_omits", dataclasses.MISSING):
                name = field.metadata.get("digest_name") or field.name
                mapping[name] = digest_mapping(item)
        return mapping
    if isinstance(value, Mapping):
        return {str(key): digest_mapping(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [digest_mapping(item) for item in value]
    return value


def read_recorded_settings(kind: type[T], values: Mapping[str, Any] | None, where: str) -> T:
    """Build settings from what ``digest_mapping`` gave of them, by this or an earlier version.

    Args:
        kind: the frozen dataclass.
        values: the recorded mapping.
        where: what was recorded, for messages.

    Raises:
        RecipeError: as ``read_settings``.
    """
    names = digest_names(kind)
    read = {names.get(key, key): value for key, value in (values or {}).items()}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        # A key that digests leave out stands at the value that leaves no trace.
        if field.metadata.get("digest_omits", dataclasses.MISSING) is not dataclasses.MISSING:
            read.setdefault(field.name, field.metadata["digest_omits"])
    return read_settings(kind, read, where)


def digest_names(kind: type[Any]) -> dict[str, str]:
    """Keys of settings that digests spell otherwise: name in digests to name in recipes."""
    fields = dataclasses.fields(kind)
    return {f.metadata["digest_name"]: f.name for f in fields if f.metadata.get("digest_name")}


def _convert(hint: Any, value: Any, where: str, limits: Mapping[str, Any]) -> Any:
    """A value as its declared type; limits hold for every number in it.

    Raises:
        RecipeError: naming the value, its place and what is allowed.
    """
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where, limits)
    # True equals 1, so a boolean would pass for a number.
    if origin is typing.Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        raise _wrong(value, where, "one of " + ", ".join(map(str, arguments)))
    # Containers: every entry by its own type, named by its place.
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
    """The value as the first type that takes it.

    Raises:
        RecipeError: none does; of a single type its own message.
    """
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    if len(choices) == 1:
        return _convert(choices[0], value, where, limits)
    # What each of them would have taken, for one message.
    failures = []
    for choice in choices:
        try:
            return _convert(choice, value, where, limits)
        except RecipeError as error:
            failures.append(error.expected)
    raise _wrong(value, where, " or ".join(failures))


def _convert_scalar(hint: Any, value: Any, where: str, limits: Mapping[str, Any]) -> Any:
    """Text, a boolean or a finite number within its limits; of type Any whatever JSON holds.

    Raises:
        RecipeError: it is not.
    """
    if hint is Any:
        return _plain(value, where)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        value = _to_float(value)
    # A boolean is an int in Python, in a recipe it is not.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(value, where, f"a value of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(value, where, "a finite number")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_limits(value, where, limits)
    return value


def _plain(value: Any, where: str) -> Any:
    """A value of any type that JSON, and so a digest, can hold.

    Raises:
        RecipeError: it has another type, such as a date.
    """
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
