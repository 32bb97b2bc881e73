"""JSON schema of settings: what an editor needs to complete and check a recipe."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from krepes_ooc.core.settings import to_mapping

DIALECT = "http://json-schema.org/draft-07/schema#"  # what editors of YAML know
SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
LIMITS = {
    "minimum": "minimum",
    "maximum": "maximum",
    "above": "exclusiveMinimum",
    "below": "exclusiveMaximum",
}


def settings_schema(kind: type[Any]) -> dict[str, Any]:
    """The schema of a frozen dataclass whose fields are declared by ``setting``.

    Args:
        kind: the dataclass, as ``read_settings`` takes it.

    Returns:
        An object schema: types, limits, defaults and meanings of all keys, and no other key.
    """
    hints = typing.get_type_hints(kind)
    properties = {}
    required = []
    for field in dataclasses.fields(kind):
        key = _type_schema(hints[field.name], _limits(field.metadata))
        key["description"] = field.metadata["about"]
        if field.default is not dataclasses.MISSING:
            key["default"] = to_mapping(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            key["default"] = to_mapping(field.default_factory())
        else:
            required.append(field.name)
        properties[field.name] = key
    # An empty value in YAML is null, and stands for no keys.
    schema: dict[str, Any] = {"type": ["object", "null"], "additionalProperties": False}
    schema["properties"] = properties
    return schema | ({"required": required} if required else {})


def _limits(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {word: metadata[name] for name, word in LIMITS.items() if name in metadata}


def _type_schema(hint: Any, limits: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of one type; limits hold for every number in it."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if hint is Any:
        return {}
    if dataclasses.is_dataclass(hint):
        return settings_schema(typing.cast("type[Any]", hint))
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type_schema(choice, limits) for choice in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _type_schema(arguments[0], limits)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1], limits)}
    return {"type": SCALARS[hint], **(limits if hint in (int, float) else {})}
