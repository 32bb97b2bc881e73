"""Refusals before the first task of a run, each in one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.engine.budget import Budget
from krepes_ooc.engine.cluster.connect import ClusterSpec
from krepes_ooc.engine.device import HOST, Device, workers_on
from krepes_ooc.errors import DamageError, PlanRefused, UsageError, WorkspaceError
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.memory_advice import fits_memory, memory_advice
from krepes_ooc.runner.sizing import SizingLimits
from krepes_ooc.runner.staleness import StageState
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.workspace import Workspace

# Command that gives a job to the queue.
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "sge": "qsub", "lsf": "bsub"}
States = Mapping[str, StageState]


def chosen_stages(stages: tuple[Stage, ...], options: Options) -> tuple[Stage, ...]:
    """The stages that the options ask for.

    Raises:
        UsageError: no such stage in the recipe, or two options that exclude each other.
    """
    names = [stage.name for stage in stages]
    # Names that the recipe does not have.
    for option, name in (("--until", options.until), ("--only", options.only)):
        if name is not None and name not in names:
            raise UsageError(
                f"no stage {name!r} in this recipe",
                where=option,
                expected="one of " + ", ".join(names),
            )
    # One stage, or all up to one.
    if options.only is not None and options.until is not None:
        raise UsageError("--only and --until exclude each other", expected="one of them")
    if options.only is not None:
        return (stages[names.index(options.only)],)
    return stages if options.until is None else stages[: names.index(options.until) + 1]


def refuse_no_queue(cluster: ClusterSpec | None) -> None:
    """Refuse a site whose queue this machine cannot reach, before anything is computed.

    Raises:
        UsageError: its command is not on PATH.
    """
    scheduler = cluster.site.scheduler if cluster is not None and cluster.site is not None else ""
    command = SUBMIT.get(scheduler, "")
    if command and shutil.which(command) is None:
        raise UsageError(
            f"{command} is not on PATH",
            where="--cluster",
            expected=f"a machine that submits jobs to {scheduler}, such as a login node",
            advice="--cluster local runs here; --print-job prints the job's script",
        )


def refuse_no_folder(root: Path) -> None:
    """Refuse a workspace that cannot be a folder.

    Raises:
        UsageError: the path, or one on the way to it, is a file.
    """
    nearest = next((path for path in (root, *root.parents) if path.exists()), root)
    if nearest.exists() and not nearest.is_dir():
        raise UsageError(
            "is a file" if nearest == root else f"{nearest} is a file",
            where=str(root),
            expected="a folder, or a place where one can be made",
            advice="choose another --workspace",
        )


def refuse_other_recipe(workspace: Workspace, name: str) -> None:
    """Refuse a workspace that another recipe wrote.

    Raises:
        WorkspaceError: naming both recipes.
    """
    owner = workspace.recipe()
    if owner not in (None, name):
        raise WorkspaceError(
            f"the workspace was written by recipe {owner!r}",
            where=str(workspace.root),
            expected=f"a workspace of recipe {name!r}",
            advice="choose another --workspace",
        )


def refuse_damaged(states: Iterable[StageState]) -> None:
    """Raise if a stage record fails its checksum.

    Raises:
        DamageError: naming the stage and the file.
    """
    for state in states:
        if state.kind == "damaged":
            raise DamageError(
                state.reason_text,
                where=f"stage {state.stage.name}",
                expected="the record that was written",
                advice="krepes run --repair computes again what is damaged",
            )


def refuse_stale(audit: Audit, states: Iterable[StageState]) -> None:
    """Raise if a stage was made with other inputs than the recipe has now.

    A stage that only waits for an unfinished one is compared once that one is sealed.

    Raises:
        WorkspaceError: naming the stages, then every change with the stages that read it.
    """
    # Stages that certainly differ.
    stale = [
        state
        for state in states
        if state.kind == "stale" and (state.reasons or state.changed_upstream)
    ]
    if not stale:
        return
    # One mention of every change, with the stages that read it themselves.
    readers: dict[str, list[str]] = {}
    for state in stale:
        for change in state.reasons:
            readers.setdefault(change, []).append(state.stage.name)
    changes = [
        f"; {change}" + (f" ({', '.join(names)})" if len(names) < len(stale) else "")
        for change, names in readers.items()
    ]
    raise WorkspaceError(
        f"stale: {', '.join(state.stage.name for state in stale)}{''.join(changes)}",
        where=str(audit.workspace.root),
        expected="what this recipe would compute now",
        advice="undo the change, or compute exactly these stages again with --restart-stale",
    )


def refuse_without_upstream(stage: Stage, reads: Sequence[str], states: States) -> None:
    """Refuse to run one stage alone before those that it reads are sealed.

    Raises:
        UsageError: naming the stages that are not.
    """
    unsealed = [name for name in reads if name in states and states[name].kind != "sealed"]
    if unsealed:
        raise UsageError(
            f"stage {stage.name} reads {', '.join(f'{n} ({states[n].kind})' for n in unsealed)}",
            where="--only",
            expected="sealed stages before it",
            advice="krepes run --repair computes again what is damaged"
            if any(states[name].kind == "damaged" for name in unsealed)
            else f"run with --until {stage.name}",
        )


def refuse_unfit(
    audit: Audit,
    states: Sequence[StageState],
    sizes: AuditSizes,
    budget: Budget,
    base: int,
    device: Device = HOST,
) -> None:
    """Refuse a run whose stages do not fit the memory, the device or the disk.

    Raises:
        PlanRefused: with the bytes needed and allowed, before anything is computed.
    """
    needed = 0
    scratch = 0
    costs = audit.costs(states, sizes)
    limits = SizingLimits(budget, base)
    # Memory of this process: one worker of every stage must fit.
    unfit = {
        state.stage.name: base + cost.need.fixed + cost.need.per_worker
        for state in states
        if not budget.workers_that_fit((cost := costs[state.stage.name]).need, base)
    }
    if unfit:
        raise _memory_refusal(audit, states, unfit, sizes, limits)
    fits = fits_memory(states, limits, device)
    for state in states:
        cost = costs[state.stage.name]
        advice = partial(memory_advice, audit, states, sizes, limits, fits)
        workers_on(device, state.stage.name, cost.device, 1, advice)
        # Disk: stores add up; partial results go when their stage is sealed.
        needed += remaining_bytes(audit.staleness.record(state.stage), state, cost)
        scratch = max(scratch, 0 if state.kind == "started" else cost.scratch.bytes)
    needed += scratch
    free = shutil.disk_usage(audit.workspace.root).free
    if needed > free:
        raise disk_refusal(audit.workspace.root, needed, free)


def _memory_refusal(
    audit: Audit,
    states: Sequence[StageState],
    unfit: Mapping[str, int],
    sizes: AuditSizes,
    limits: SizingLimits,
) -> PlanRefused:
    """The error for stages without one worker that fits, with settings that would."""
    assert limits.budget is not None
    stage = max(unfit, key=lambda name: unfit[name])
    advice = memory_advice(audit, states, sizes, limits)
    beside = [name for name in unfit if name != stage]
    return limits.budget.refusal_error(stage, unfit[stage], advice, beside)


def disk_refusal(root: Path, needed: int, free: int) -> PlanRefused:
    """The error for stages that write more bytes than are free."""
    return PlanRefused(
        f"{format_bytes(needed)} of disk needed, {format_bytes(free)} free",
        where=str(root),
        expected="enough free disk for all stages that are left",
        advice="free some space, choose another --workspace, or fewer landmarks or features",
    )


def remaining_bytes(record: StageRecord, state: StageState, cost: Cost) -> int:
    """Bytes that a stage still writes: its cost less the blocks that are on disk."""
    if state.kind == "sealed":
        return 0
    if state.kind != "started":
        return cost.disk.bytes
    written = sum(size for unit in record.done().values() for size, _ in unit.files.values())
    return max(0, cost.disk.bytes - written)


def refuse_mixed_numerics(record: StageRecord, options: Options, numerics: str) -> None:
    """Refuse to resume a stage that another kind of machine started.

    Args:
        record: of the stage.
        options: may allow it.
        numerics: libraries, processor and device of this process.

    Raises:
        WorkspaceError: naming both kinds.
    """
    # A stage may already be mixed: the journal says what computed each unit.
    started = str((record.begun() or {}).get("numerics", numerics))
    others = {started, *(unit.numerics for unit in record.units()[0].values())} - {numerics}
    if others and not options.mixed_numerics:
        raise WorkspaceError(
            f"what is on disk was computed with {min(others)!r}",
            where=f"stage {record.name}",
            expected=f"{numerics!r}",
            advice="resume on such a machine and --device, or accept other bits with "
            "--allow-mixed-numerics",
        )
