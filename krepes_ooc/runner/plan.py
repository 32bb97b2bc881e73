"""Plan of a run: expected cost of every stage, before anything is computed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from krepes_ooc.engine.budget import Budget, base_bytes, default_budget
from krepes_ooc.engine.calibration import Rates, calibrate
from krepes_ooc.runner import preflight
from krepes_ooc.runner.audit import Audit, Options, default_workspace
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.sizing import feature_map
from krepes_ooc.runner.staleness import StageState
from krepes_ooc.runner.training_time import RETRAINING, training_time
from krepes_ooc.sources.describe import describe_source
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.features.row_cost_record import describe_rows, load_row_description
from krepes_ooc.storage.workspace import Workspace

# Whole audits took 1.6 times the CPU-seconds of their arithmetic and bytes.
EFFICIENCY = 0.6


def make_plan(
    recipe: Recipe,
    workspace: Path | str | None = None,
    options: Options | None = None,
    *,
    timed: bool = False,
) -> dict[str, Any]:
    """Expected cost of every stage, as plain values; opens source and network, computes nothing.

    Args:
        recipe: what would be run.
        workspace: where, by default ``krepes-workspace/<recipe>``; need not exist, and stays so.
        options: memory and workers.
        timed: measure this machine for two seconds and estimate the time of every stage.

    Raises:
        UsageError: a setting is not allowed for this source and network.
        WorkspaceError: the workspace is of another recipe or format.
    """
    options = options or Options()
    root = Path(workspace if workspace is not None else default_workspace(recipe)).resolve()
    preflight.refuse_no_folder(root)
    with trial_folder(root) as folder:
        audit = Audit(recipe, Workspace(folder))
        preflight.refuse_other_recipe(audit.workspace, recipe.name)
        states = audit.states()
        # Memory, then sizes: those of the features that exist, else of those that would be made.
        budget = default_budget(options.memory, options.workers)
        base = base_bytes()  # the network, which the sizes may need, is in the plan of its stages
        sizes = audit.sizes(anew=states["features"].kind in ("missing", "stale"))
        costs = audit.costs(list(states.values()), sizes)
        # Time needs the rates of this machine and the cost of a feature row.
        rates = calibrate(folder) if timed else None
        source = describe_source(
            audit.inputs.source, audit.inputs.source_spec, audit.inputs.source_warnings
        )
        description = _row_description(audit, states["features"]) if timed else {}
        rows = [
            _row(audit, state, costs[name], budget, base)
            | {"seconds": _seconds(costs[name], budget, rates)}
            for name, state in states.items()
        ]
        trainings = training_time(
            audit, states, costs.get(RETRAINING, Cost()), timed=rates is not None
        )
    # Trainings run one after another, at a rate that no count of operations tells.
    for row in rows:
        if row["stage"] == RETRAINING and trainings["seconds_of_one"] is not None:
            row["seconds"] = trainings["left"] * trainings["seconds_of_one"]
    # Partial results are removed with every seal: only the largest counts.
    scratch = max((row["scratch_bytes"] for row in rows if row["state"] != "sealed"), default=0)
    facts = {key: value for key, value in sizes.to_attributes().items() if key != "plan"}
    return {
        "stages": rows,
        "source": source,
        "rows": description,
        "trainings": trainings,
        "shape": {**facts, **sizes.plan.to_attributes()},
        "disk": {
            "needed": sum(row["remaining_bytes"] for row in rows) + scratch,
            "parked": _size(root / ".krepes" / "parked"),
            "free": shutil.disk_usage(_existing(root)).free,
        },
        "memory": {"budget": budget.memory, "base": base},
    }


def refuse_unfit_plan(planned: Mapping[str, Any], workspace: Path | str) -> None:
    """Refuse what ``krepes run`` would refuse, so that scripts see it in the exit code.

    Args:
        planned: what ``make_plan`` gave.
        workspace: its folder, for the message.

    Raises:
        PlanRefused: a stage that is left does not fit the memory, or all of them the disk.
    """
    # The first stage that has not even one worker.
    for row in planned["stages"]:
        if row["state"] != "sealed" and not row["workers"]:
            budget = Budget(planned["memory"]["budget"], 1)
            raise budget.refusal_error(row["stage"], row["memory_bytes"])
    disk = planned["disk"]
    if disk["needed"] > disk["free"]:
        raise preflight.disk_refusal(Path(workspace), disk["needed"], disk["free"])


def _row_description(audit: Audit, features: StageState) -> dict[str, str]:
    """Form and cost of the feature rows, in words.

    As the features were started with; else as they would be, measured on calibration samples.
    """
    known = None
    if features.kind in ("sealed", "started"):
        known = load_row_description(audit.workspace)
    if known is not None and known[1] is not None:
        words = known[0]
        cost = known[1]
    else:
        settings = audit.recipe.settings["features"]
        shared = feature_map(audit.inputs, settings)
        words, cost = describe_rows(shared, settings, audit.inputs.calibration())
    inputs = audit.inputs
    n_rows = inputs.source.n_samples * inputs.view_spec.count
    total = f"; all {n_rows:,} rows: {cost.row * n_rows:,.0f} s of processor time"
    return words | {"cost": words["cost"] + total}


def _row(audit: Audit, state: StageState, cost: Cost, budget: Budget, base: int) -> dict[str, Any]:
    fitting = budget.workers_that_fit(cost.need, base)
    return {
        "stage": state.stage.name,
        "state": state.kind,
        "units": cost.units,
        "disk_bytes": cost.disk.bytes,
        "scratch_bytes": cost.scratch.bytes,
        "remaining_bytes": preflight.remaining_bytes(
            audit.staleness.record(state.stage), state, cost
        ),
        "memory_bytes": base + cost.need.fixed + max(1, fitting) * cost.need.per_worker,
        "workers": fitting,
        "flops": cost.flops.total,
        "cost": cost.to_json(),
    }


def _seconds(cost: Cost, budget: Budget, rates: Rates | None) -> float | None:
    """Wall time in seconds at the measured rates; one unit keeps one worker busy.

    The larger of processor time over the workers and of bytes over the rate of the disk.
    """
    if rates is None:
        return None
    busy = max(1, min(budget.workers, cost.units))
    written = cost.disk.bytes + cost.scratch.bytes
    cpu = (
        rates.cpu_seconds(cost.flops.total, written, double=cost.float64)
        + cost.bytes_read.total / rates.read
    )
    cpu /= EFFICIENCY
    return float(max(cpu / busy, written / rates.disk))


@contextlib.contextmanager
def trial_folder(root: Path) -> Iterator[Path]:
    """The workspace if there is one, else a folder for caches that is removed again."""
    if (root / ".krepes").is_dir():
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="krepes-plan-") as folder:
        yield Path(folder)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
