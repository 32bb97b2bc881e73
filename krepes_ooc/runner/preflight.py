"""What is refused before the first task of a run, each in one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.engine.budget import Budget
from krepes_ooc.engine.device import HOST, Device, workers_on
from krepes_ooc.errors import DamageError, PlanRefused, UsageError, WorkspaceError
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.staleness import StageState
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.workspace import Workspace

States = Mapping[str, StageState]


def chosen_stages(stages: tuple[Stage, ...], options: Options) -> tuple[Stage, ...]:
    """The stages that the options ask for.

    Raises:
        UsageError: no such stage in the recipe, or two options that exclude each other.
    """
    names = [stage.name for stage in stages]
    for option, name in (("--until", options.until), ("--only", options.only)):
        if name is not None and name not in names:
            raise UsageError(
                f"no stage {name!r} in this recipe",
                where=option,
                expected="one of " + ", ".join(names),
            )
    if options.only is not None and options.until is not None:
        raise UsageError("--only and --until exclude each other", expected="one of them")
    if options.only is not None:
        return (stages[names.index(options.only)],)
    return stages if options.until is None else stages[: names.index(options.until) + 1]


def refuse_no_folder(root: Path) -> None:
    """Refuse a workspace that cannot be a folder.

    Raises:
        UsageError: the path, or one on the way to it, is a file.
    """
    there = next((path for path in (root, *root.parents) if path.exists()), root)
    if there.exists() and not there.is_dir():
        raise UsageError(
            "is a file" if there == root else f"{there} is a file",
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
    """Refuse to build on a stage whose record is not what was written.

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
    """Refuse to compute again what was made with other inputs, unless told.

    A stage that only waits for another is judged when that one is there.

    Raises:
        WorkspaceError: naming the stages, then every change with the stages that read it.
    """
    stale = [
        state
        for state in states
        if state.kind == "stale" and (state.reasons or state.changed_upstream)
    ]
    if not stale:
        return
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
    open_ = [name for name in reads if name in states and states[name].kind != "sealed"]
    if open_:
        raise UsageError(
            f"stage {stage.name} reads {', '.join(f'{n} ({states[n].kind})' for n in open_)}",
            where="--only",
            expected="sealed stages before it",
            advice=f"run with --until {stage.name}",
        )


def refuse_unfit(
    audit: Audit,
    states: Sequence[StageState],
    shape: AuditSizes,
    budget: Budget,
    base: int,
    device: Device = HOST,
) -> None:
    """Refuse a run whose stages do not fit the memory, the device or the disk.

    Raises:
        PlanRefused: with the bytes needed and allowed, before anything is computed.
    """
    needed = scratch = 0
    costs = audit.costs(states, shape)
    for state in states:
        cost = costs[state.stage.name]
        budget.workers_for(state.stage.name, cost.need, base)
        workers_on(device, state.stage.name, cost.device, 1)
        needed += remaining_bytes(audit.staleness.record(state.stage), state, cost)
        scratch = max(scratch, 0 if state.kind == "begun" else cost.scratch.bytes)
    needed += scratch
    free = shutil.disk_usage(audit.workspace.root).free
    if needed > free:
        raise disk_refusal(audit.workspace.root, needed, free)


def disk_refusal(root: Path, needed: int, free: int) -> PlanRefused:
    """The error for stages that write more bytes than are free."""
    return PlanRefused(
        f"{format_bytes(needed)} of disk needed, {format_bytes(free)} free",
        where=str(root),
        expected="enough free disk for all stages that are left",
        advice="free some space, choose another --workspace, or fewer landmarks or features",
    )


def remaining_bytes(record: StageRecord, state: StageState, cost: Cost) -> int:
    """Bytes that a stage still writes: its cost, less the blocks that are on disk."""
    if state.kind == "sealed":
        return 0
    if state.kind != "begun":
        return cost.disk.bytes
    written = sum(size for unit in record.done().values() for size, _ in unit.files.values())
    return max(0, cost.disk.bytes - written)


def refuse_mixed_numerics(record: StageRecord, options: Options, here: str) -> None:
    """Refuse to resume a stage that another kind of machine began.

    Args:
        record: of the stage.
        options: may allow it.
        here: the numerics of this process and its device.

    Raises:
        WorkspaceError: naming both kinds.
    """
    begun = str((record.begun() or {}).get("numerics", here))
    others = {begun, *(unit.numerics for unit in record.units()[0].values())} - {here}
    if others and not options.mixed_numerics:
        raise WorkspaceError(
            f"what is on disk was computed with {min(others)!r}",
            where=f"stage {record.name}",
            expected=f"{here!r}",
            advice="resume on such a machine and --device, or accept other bits with "
            "--allow-mixed-numerics",
        )
