"""What a run would cost, before it starts."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import default_budget
from krepes_ooc.recipes import Recipe
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.stages.sizing import shape_of
from krepes_ooc.storage.workspace import Workspace


def make_plan(recipe: Recipe, workspace: Path | str, options: Options) -> dict[str, Any]:
    """What every stage would cost, as plain values; opens source and network, computes nothing.

    Args:
        recipe: what would be run.
        workspace: where; need not exist.
        options: memory and workers.
    """
    root = Path(workspace)
    with contextlib.ExitStack() as stack:
        if not root.exists():
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="krepes-plan-")))
        audit = Audit(recipe, Workspace(root))
        inputs = audit.inputs
        states = audit.office(inputs).states(recipe.stages)
        shape = shape_of(audit.workspace, inputs, recipe.settings)
    budget = default_budget(options.memory, options.workers)
    base = machine.anonymous_bytes()
    stages = []
    for state in states:
        cost = state.stage.predict(shape, recipe.settings[state.stage.name])
        fitting = budget.fitting(cost.need, base)
        held = base + cost.need.fixed + max(1, fitting) * cost.need.per_worker
        stages.append(
            {
                "stage": state.stage.name,
                "state": state.kind,
                "units": cost.units,
                "disk_bytes": cost.disk,
                "memory_bytes": held,
                "workers": fitting,
                "flops": cost.flops,
            }
        )
    left = [row for row in stages if row["state"] != "sealed"]
    sizes = {key: value for key, value in shape.to_attributes().items() if key != "plan"}
    return {
        "stages": stages,
        "shape": {**sizes, **shape.plan.to_attributes()},
        "disk": {
            "needed": sum(row["disk_bytes"] for row in left),
            "parked": sum(f.stat().st_size for f in (root / ".krepes").glob("parked/**/*") if f.is_file()),
            "free": shutil.disk_usage(_existing(Path(workspace))).free,
        },
        "memory": {"budget": budget.memory, "base": base},
    }


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
