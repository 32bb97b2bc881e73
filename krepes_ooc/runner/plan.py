"""Plan of a run: expected cost of every stage, before anything is computed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krepes_ooc.engine.budget import Budget, base_bytes, default_budget
from krepes_ooc.engine.calibration import Rates, calibrate
from krepes_ooc.runner import preflight
from krepes_ooc.runner.audit import Audit, Options, workspace_folder
from krepes_ooc.runner.memory_advice import memory_advice
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.sizing import SizingLimits, feature_map, opening_limit
from krepes_ooc.runner.staleness import StageState
from krepes_ooc.runner.training_time import RETRAINING, training_time
from krepes_ooc.sources.describe import describe_source
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost
from krepes_ooc.stages.base.sizes import MEASURED, AuditSizes
from krepes_ooc.stages.features.row_cost_record import describe_rows, load_row_description
from krepes_ooc.stages.groups.declared import columns_left_out
from krepes_ooc.storage.workspace import Workspace

if TYPE_CHECKING:
    from krepes_ooc.jacobian.opening import OpeningDeferred
    from krepes_ooc.jacobian.row_cost import RowCost
    from krepes_ooc.network.frozen import FrozenNetwork

# Whole audits took 1.6 times the CPU-seconds of their arithmetic and bytes.
EFFICIENCY = 0.6
# Error of the times of all work but feature rows: from the arithmetic alone to half as much again.
LEAST, MOST = EFFICIENCY, 1.5
# Processor seconds that a plan opens a network for; a longer opening is left to the run.
OPENING_SECONDS = 10.0


def make_plan(
    recipe: Recipe,
    workspace: Path | str | None = None,
    options: Options | None = None,
    *,
    timed: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Expected cost of every stage, as plain values; opens source and network, computes nothing.

    A network whose opening would take more than ``OPENING_SECONDS`` is not opened: its sizes follow
    from shapes and plain passes, and the plan says what it did not measure.

    Args:
        recipe: what would be run.
        workspace: where, by default ``krepes-workspace/<recipe>``; need not exist, and stays so.
        options: memory and workers.
        timed: measure this machine for two seconds and estimate the time of every stage.
        note: receives one line about what takes time.

    Raises:
        UsageError: a setting is not allowed for this source and network.
        WorkspaceError: the workspace is of another recipe or format.
    """
    options = options or Options()
    root = workspace_folder(recipe, workspace)
    preflight.refuse_no_folder(root)
    with trial_folder(root) as folder:
        audit = Audit(recipe, Workspace(folder), note=note)
        preflight.refuse_other_recipe(audit.workspace, recipe.name)
        states = audit.states()
        # Memory, then sizes: those of the features that exist, else of those that would be made.
        budget = default_budget(options.memory, options.workers)
        base = base_bytes()  # the network, which the sizes may need, is in the plan of its stages
        anew = states["features"].kind in ("missing", "stale")
        limits = SizingLimits(budget, base, OPENING_SECONDS)
        sizes = audit.sizes(anew=anew, limits=limits)
        costs = audit.costs(list(states.values()), sizes)
        source = describe_source(
            audit.inputs.source, audit.inputs.source_spec, audit.inputs.source_warnings
        )
        timing = Timing(None, None, sizes.row_operations)
        description: dict[str, Any] = {}
        if timed:
            timing, description = _timing(audit, states["features"], limits, sizes, folder)
        trainings = training_time(audit, states, costs.get(RETRAINING, Cost()), timed=timed)
        rows = [
            (row := _row(audit, state, costs[name], budget, base))
            | timing.of(costs[name], row["workers"])
            | _seconds_of_trainings(name, trainings)
            for name, state in states.items()
        ]
        unfit = any(row["state"] != "sealed" and not row["workers"] for row in rows)
        advice = memory_advice(audit, list(states.values()), sizes, limits) if unfit else ""
    return {
        "stages": rows,
        "source": source,
        "rows": description,
        "trainings": trainings,
        "groups": _groups(audit, sizes),
        "shape": _shape(sizes),
        "disk": _disk(rows, root),
        "memory": {"budget": budget.memory, "base": base, "advice": advice},
    }


def _timing(
    audit: Audit, features: StageState, limits: SizingLimits, sizes: AuditSizes, folder: Path
) -> tuple[Timing, dict[str, Any]]:
    """Time by the rates of this machine and the cost of a feature row; what these rows are."""
    rates = calibrate(folder)
    description, row_cost = _row_description(audit, features, limits)
    return Timing(rates, row_cost, sizes.row_operations), description


def _groups(audit: Audit, sizes: AuditSizes) -> dict[str, Any]:
    """Number of groups that are left out one by one, and columns that have none."""
    left_out = columns_left_out(audit.settings["groups"], audit.inputs.source)
    return {"count": sizes.n_groups, "left_out": left_out}


def _shape(sizes: AuditSizes) -> dict[str, Any]:
    """Sizes of the audit and of its blocks."""
    hidden = {"plan", *MEASURED}
    facts = {key: value for key, value in sizes.to_attributes().items() if key not in hidden}
    return {**facts, **sizes.plan.to_attributes()}


def _disk(rows: Sequence[Mapping[str, Any]], root: Path) -> dict[str, int]:
    """Bytes that are still written, that parked stages hold, and that are free."""
    # Partial results are removed with every seal: only the largest counts.
    scratch = max((row["scratch_bytes"] for row in rows if row["state"] != "sealed"), default=0)
    return {
        "needed": sum(row["remaining_bytes"] for row in rows) + scratch,
        "parked": _size(root / ".krepes" / "parked"),
        "free": shutil.disk_usage(_existing(root)).free,
    }


def _seconds_of_trainings(stage: str, trainings: Mapping[str, Any]) -> dict[str, Any]:
    """Time of the stage retraining; nothing for other stages.

    Trainings run one after another, at a rate that no count of operations tells.
    """
    if stage != RETRAINING or trainings["seconds_of_one"] is None:
        return {}
    seconds = trainings["left"] * trainings["seconds_of_one"]
    return {"seconds": seconds, "seconds_range": [seconds, seconds]}


def refuse_unfit_plan(planned: Mapping[str, Any], workspace: Path | str) -> None:
    """Refuse what ``krepes run`` would refuse, so that scripts see it in the exit code.

    Args:
        planned: what ``make_plan`` gave.
        workspace: its folder, for the message.

    Raises:
        PlanRefused: a stage that is left does not fit the memory, or all of them the disk.
    """
    # Stages that have not even one worker; the largest need is the one to meet.
    unfit = {
        row["stage"]: row["memory_bytes"]
        for row in planned["stages"]
        if row["state"] != "sealed" and not row["workers"]
    }
    if unfit:
        budget = Budget(planned["memory"]["budget"], 1)
        stage = max(unfit, key=lambda name: unfit[name])
        beside = [name for name in unfit if name != stage]
        advice = planned["memory"]["advice"]
        raise budget.refusal_error(stage, unfit[stage], advice, beside)
    disk = planned["disk"]
    if disk["needed"] > disk["free"]:
        raise preflight.disk_refusal(Path(workspace), disk["needed"], disk["free"])


def _row_description(
    audit: Audit, features: StageState, limits: SizingLimits
) -> tuple[dict[str, str], RowCost]:
    """Form and cost of the feature rows, in words, and the cost, estimated where not measured.

    As the features were started with; else as they would be, measured on calibration samples.
    """
    from krepes_ooc.jacobian.opening import OpeningDeferred

    known = None
    if features.kind in ("sealed", "started"):
        known = load_row_description(audit.workspace)
    if known is not None and known[1] is not None:
        words, cost = known[0], known[1]
    else:
        settings = audit.recipe.settings["features"]
        try:
            shared = feature_map(audit.inputs, settings, opening_limit(audit.inputs, limits))
            words, cost = describe_rows(shared, settings, audit.inputs.calibration())
            words |= _ways(shared.network.inner, shared.describe()["plan"])
        except OpeningDeferred as deferred:
            words, cost = _unmeasured_words(deferred, audit.inputs.network)
    inputs = audit.inputs
    n_rows = inputs.source.n_samples * inputs.view_spec.count
    _, least, most = cost.seconds(n_rows)
    total = f"; all {n_rows:,} rows: {format_range(least, most)} s of processor time"
    return words | {"cost": words["cost"] + total}, cost


def _ways(network: Any, rules: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Ways to the gradients by class of layer, in words."""
    from krepes_ooc.jacobian.row_cost import ways_by_class

    return {"ways by class": ways_by_class(network, rules)}


def _unmeasured_words(
    deferred: OpeningDeferred, network: FrozenNetwork
) -> tuple[dict[str, str], RowCost]:
    """Description of rows that a plan does not measure, with the reason, and an estimated cost."""
    from krepes_ooc.jacobian.gradient_plan import expected_rules
    from krepes_ooc.jacobian.row_cost import count_passes, estimated_cost

    reason = (
        f"opening the network takes about {deferred.seconds:.0f} s of processor time, a plan at "
        f"most {OPENING_SECONDS:.0f} s; the run opens it once and records what it finds"
    )
    if deferred.seconds <= OPENING_SECONDS:
        reason = "the network does not fit the memory"
    rules = [rule.to_attributes() for rule in expected_rules(network, deferred.parameters)]
    cost = estimated_cost(deferred.pass_seconds, deferred.n_probes, 2)
    words = {
        "parameters": f"{len(deferred.parameters)} arrays",
        "outputs": f"{deferred.n_outputs}",
        "probes": f"{deferred.n_probes} directions in output space",
        "opening": f"{deferred.n_passes:.0f} forward and backward passes of one sample",
        "ways by class, not proven yet": _ways(network.inner, rules)["ways by class"],
        "not measured": "the ways to the gradients, the calibrated probes and the cost of a row: "
        + reason,
        "cost": f"{1e3 * deferred.pass_seconds:.3g} ms of processor time a plain forward and "
        f"backward pass of one sample; a row estimated at {count_passes(deferred.n_probes):.1f} "
        "such passes",
    }
    return words, cost


def format_range(least: float, most: float) -> str:
    """Two numbers of seconds as ``3 to 5``; below ten with one decimal."""
    if most < 0.1:
        return "less than 0.1"
    return f"{least:.1f} to {most:.1f}" if most < 10 else f"{least:,.0f} to {most:,.0f}"


@dataclass(frozen=True)
class Timing:
    """Times of stages at the measured rates.

    Args:
        rates: of this machine; None: no times.
        row: measured cost of a feature row; None: from its operations at the rate of products.
        row_operations: operations of a feature row.
    """

    rates: Rates | None
    row: RowCost | None
    row_operations: float

    def of(self, cost: Cost, workers: int) -> dict[str, Any]:
        """Wall seconds of a stage, and least and most; one unit keeps one worker busy.

        The larger of processor time over the workers and of bytes over the rate of the disk.

        Args:
            cost: of the stage.
            workers: that fit the memory.
        """
        rates = self.rates
        if rates is None:
            return {"seconds": None, "seconds_range": None}
        busy = max(1, min(workers, cost.units))
        written = cost.disk.bytes + cost.scratch.bytes
        terms = [term for part in cost.flops.phases.values() for term in part]
        n_rows = sum(term.total for term in terms if term.label == ROW_PASSES)
        n_rows /= max(1.0, self.row_operations)
        # Rows by their measured cost, all else by operations and bytes.
        in_rows = n_rows * self.row_operations if self.row is not None else 0.0
        cpu = (
            rates.cpu_seconds(cost.flops.total - in_rows, written, double=cost.float64)
            + cost.bytes_read.total / rates.read
        ) / EFFICIENCY
        rows = (0.0, 0.0, 0.0) if self.row is None else self.row.seconds(round(n_rows))
        expected, least, most = (
            max((factor * cpu + part) / busy, written / rates.disk)
            for factor, part in zip((1.0, LEAST, MOST), rows, strict=True)
        )
        return {"seconds": float(expected), "seconds_range": [float(least), float(most)]}


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
        "memory_bytes": budget.planned_bytes(cost.need, base),
        "workers": fitting,
        "flops": cost.flops.total,
        "cost": cost.to_json(),
    }


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
