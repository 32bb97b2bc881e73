"""JSON schema of recipes, for editors."""

from __future__ import annotations

from typing import Any

from krepes_ooc.core.json_schema import DIALECT, settings_schema
from krepes_ooc.runner.recipe import NAME, RecipeFile
from krepes_ooc.stages.newton.objectives.registry import OBJECTIVES
from krepes_ooc.stages.registry import STAGES


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file: all keys of source, network, views and stages."""
    schema = settings_schema(RecipeFile)
    keys = schema["properties"]
    keys["recipe"]["pattern"] = f"^{NAME.pattern}$"
    # In the settings of a recipe the stages are any mapping: each reads its own part.
    stages = {stage.name: _stage_schema(stage.settings, stage.about) for stage in STAGES}
    keys["stages"] |= {
        "type": ["object", "null"],
        "properties": stages,
        "additionalProperties": False,
    }
    stages["newton"]["allOf"] = _constants_of_objectives()
    return {"$schema": DIALECT, "title": "krepes recipe", **schema, "type": "object"}


def _stage_schema(settings: type[Any], about: str) -> dict[str, Any]:
    return settings_schema(settings) | {"description": about}


def _constants_of_objectives() -> list[dict[str, Any]]:
    """Conditions that give ``objective_settings`` the keys of the objective that is named."""
    # Where no objective is named, any constants pass: the reader checks those of the default.
    return [
        {
            "if": {"properties": {"objective": {"const": name}}, "required": ["objective"]},
            "then": {"properties": {"objective_settings": settings_schema(settings)}},
        }
        for name, (_, settings) in OBJECTIVES.items()
    ]
