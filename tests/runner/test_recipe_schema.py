"""The JSON schema of recipes says what ``read_settings`` takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from krepes_ooc.core.json_schema import settings_schema
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import RecipeError
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.recipe_schema import recipe_schema
from krepes_ooc.stages.registry import STAGES
from tests import small

RECIPES = sorted([*small.ROOT.glob("pipelines/*.yaml"), *small.ROOT.glob("examples/*/*.yaml")])
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The part of draft 7 that the schema uses."""
    kinds = schema.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool):
        if "boolean" not in kinds:
            return False
    elif not any(isinstance(value, TYPES[kind]) for kind in kinds):  # type: ignore[arg-type]
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "anyOf" in schema and not any(fits(value, choice) for choice in schema["anyOf"]):
        return False
    if any(name in schema and not ok(value, schema[name]) for name, ok in BOUNDS.items()):
        return False
    if isinstance(value, list):
        return all(fits(item, schema.get("items", {})) for item in value)
    return not isinstance(value, dict) or keys_fit(value, schema)


def keys_fit(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    """Whether all keys of a mapping are known, and their values fit."""
    for rule in schema.get("allOf", []):
        named = rule["if"]["properties"]["objective"]["const"]
        if value.get("objective") == named and not fits(value, rule["then"]):
            return False
    others = schema.get("additionalProperties", True)
    known = schema.get("properties", {})
    for key, item in value.items():
        if key not in known and others is False:
            return False
        inner = known.get(key, others)
        if isinstance(inner, dict) and not fits(item, inner):
            return False
    return all(key in value for key in schema.get("required", []))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_fit(path: Path) -> None:
    assert fits(yaml.safe_load(path.read_text()), recipe_schema())


CASES = [
    ("stages.newton.damping", 2.0, True),
    ("stages.newton.damping", "auto", True),
    ("stages.newton.damping", 0, False),
    ("stages.newton.damping_grid", [1, 10], True),
    ("stages.newton.damping_grid", [1, -1], False),
    ("stages.newton.objective", "vicreg", True),
    ("stages.newton.objective", "vicregg", False),
    ("stages.newton.lm_steps", 1.5, False),
    ("stages.newton.steps", 1, False),
    ("stages.newton", None, True),
    ("stages.newtons", {}, False),
    ("stages.features.deflated_probes", 2, True),
    ("stages.features.sketch", 8, False),
    ("source.limit", 100, True),
    ("source.limit", 0, False),
    ("source.limt", 100, False),
    ("views.flip", True, True),
    ("views.flip", 1, False),
    ("views.jitter", 1.0, False),
    ("network.output", None, True),
    ("network.arguments", {"hidden": [1], "any": {"thing": None}}, True),
    ("seed", -1, False),
]


@pytest.mark.parametrize(("path", "value", "right"), CASES, ids=[f"{c[0]}={c[1]}" for c in CASES])
def test_the_schema_and_the_reader_agree(path: str, value: Any, right: bool) -> None:
    recipe = yaml.safe_load((small.ROOT / "pipelines" / "digits.yaml").read_text())
    *folders, key = path.split(".")
    place = recipe
    for name in folders:
        place = place.setdefault(name, {})
    place[key] = value
    assert fits(recipe, recipe_schema()) == right
    try:
        Recipe.parse(json.dumps(recipe), Path(), "r")
    except RecipeError:
        assert not right
    else:
        assert right


def test_constants_of_the_named_objective() -> None:
    newton = recipe_schema()["properties"]["stages"]["properties"]["newton"]
    constants = {"objective": "simclr", "objective_settings": {"batch": 64}}
    assert fits(constants, newton)
    assert not fits({**constants, "objective": "vicreg"}, newton)


def test_every_key_has_type_default_and_meaning() -> None:
    stages = recipe_schema()["properties"]["stages"]["properties"]
    assert list(stages) == [stage.name for stage in STAGES]
    for stage in STAGES:
        keys = stages[stage.name]["properties"]
        assert list(keys) == [field.name for field in dataclasses.fields(stage.settings)]
        for key in keys.values():
            assert key["description"]
            assert key.keys() & {"type", "anyOf", "enum"} or key == {
                "description": key["description"],
                "default": key["default"],
            }
            assert "default" in key


@dataclasses.dataclass(frozen=True)
class Small:
    path: str = setting(about="file")
    rate: float = setting(0.5, about="rate", above=0, maximum=1)
    names: tuple[str, ...] = setting((), about="names")


def test_schema_of_a_dataclass() -> None:
    assert settings_schema(Small) == {
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": {
            "path": {"type": "string", "description": "file"},
            "rate": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "description": "rate",
                "default": 0.5,
            },
            "names": {
                "type": "array",
                "items": {"type": "string"},
                "description": "names",
                "default": [],
            },
        },
        "required": ["path"],
    }
