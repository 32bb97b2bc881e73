"""State of every stage of a workspace, and verification of its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.core.verdict import Verdict
from krepes_ooc.engine.memory_limit import memory_words
from krepes_ooc.errors import DamageError, KrepesError, UsageError
from krepes_ooc.runner import preflight
from krepes_ooc.runner.audit import Audit, files_elsewhere, recorded_recipe
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.repair import cache_damage
from krepes_ooc.runner.run_history import read_last
from krepes_ooc.runner.staleness import StageState, units_on_disk
from krepes_ooc.stages.base.stage import Stage
from krepes_ooc.stages.registry import STAGES
from krepes_ooc.storage.verify import Verification, verify
from krepes_ooc.storage.workspace import Workspace


def read_verdict(workspace: Path | str) -> Verdict:
    """The verdict of a finished audit; takes no lock.

    Args:
        workspace: the folder.

    Raises:
        UsageError: the stage verdict is not sealed.
        DamageError: its store is damaged.
    """
    space = Workspace(workspace)
    if not space.record("verdict", "verdict").is_sealed():
        raise UsageError(
            "there is no verdict yet",
            where=str(space.root),
            expected="a sealed stage verdict",
            advice="krepes run goes on from where it stopped",
        )
    return Verdict.from_json(space.reader("verdict").attributes["verdict"])


def read_status(
    name: Recipe | str | None, workspace: Path | str, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """State of every stage, as plain values; takes no lock.

    Args:
        name: recipe to compare with, its name or itself; None: the one that was last run there.
        workspace: the folder.
        overrides: as ``--set``.

    Raises:
        UsageError: no such recipe, or overrides without one.
        WorkspaceError: the workspace is of another recipe or format.
    """
    space = Workspace(workspace)
    note = ""
    if isinstance(name, str):
        name = Recipe.load(name, overrides)
    recipe = name if name is not None else recorded_recipe(space, overrides)
    rows = []
    listed = STAGES if recipe is None else recipe.stages
    # Somebody may have sent the workspace: looking at it runs no code and opens no file of its.
    if recipe is not None and name is None and (unnamed := _unnamed(recipe, space)):
        note = f"shown without comparison: its recipe, which you have not named, names {unnamed}"
        recipe = None
    # Compared with the recipe where that is possible, else as the records have it.
    if recipe is not None:
        preflight.refuse_other_recipe(space, recipe.name)
        try:
            rows = [_state_row(space, state) for state in Audit(recipe, space).states().values()]
        except KrepesError as error:
            note = f"shown without comparison with the recipe: {error}"
    if not rows:
        rows = [_record_row(space, stage) for stage in listed]
    return {
        "workspace": str(space.root),
        "recipe": space.recipe(),
        "stages": rows,
        "note": note,
        "last_run": read_last(space),
    }


def _unnamed(recipe: Recipe, space: Workspace) -> str:
    """Code or a file that comparing with a recorded recipe would run or open; empty: none."""
    if recipe.code_of_data:
        return f"code, {min(recipe.code_of_data)}"
    files = files_elsewhere(recipe, space)
    return f"a file, {min(files)}" if files else ""


def verify_workspace(workspace: Path | str, only: str | None = None) -> Verification:
    """Recompute every checksum of a workspace.

    Args:
        workspace: the folder.
        only: one stage or store.

    Raises:
        UsageError: no such stage or store.
    """
    space = Workspace(workspace)
    chosen = [stage for stage in STAGES if only in (None, stage.name, stage.store)]
    if not chosen:
        known = ", ".join(stage.name for stage in STAGES)
        raise UsageError(f"no store {only!r}", where="--store", expected=f"one of {known}")
    result = verify(space.record(stage.name, stage.store) for stage in chosen)
    if only is not None:
        return result
    # The caches belong to no stage: they are verified with the whole workspace.
    return replace(result, damage=(*result.damage, *cache_damage(space.private)))


def _state_row(space: Workspace, state: StageState) -> dict[str, Any]:
    if state.kind in ("stale", "damaged"):
        return {"stage": state.stage.name, "state": state.kind, "detail": state.reason_text}
    return _record_row(space, state.stage)


def _memory_of(seal: Mapping[str, Any]) -> str:
    """Peak of a stage's memory beside its plan, in words; empty where the seal has none."""
    peak, planned = seal.get("anonymous_peak"), seal.get("planned_memory")
    return f", {memory_words(peak, planned)}" if peak and planned else ""


def _record_row(space: Workspace, stage: Stage) -> dict[str, Any]:
    """State of a stage by its record alone."""
    record = space.record(stage.name, stage.store)
    try:
        fingerprint = record.begun()
        seal = record.seal()
    except DamageError as error:
        return {"stage": stage.name, "state": "damaged", "detail": f"{error.where}: {error.what}"}
    if seal is not None:
        size = seal.get("bytes") or 0
        seconds = seal.get("seconds") or 0.0
        return {
            "stage": stage.name,
            "state": "sealed",
            "detail": f"{format_bytes(size)}, {seconds:.1f} s{_memory_of(seal)}",
            "bytes": size,
            "seconds": seconds,
            "peak_bytes": seal.get("peak_bytes"),
            "anonymous_peak": seal.get("anonymous_peak"),
            "planned_memory": seal.get("planned_memory"),
        }
    if fingerprint is None:
        return {"stage": stage.name, "state": "missing", "detail": ""}
    # Without a journal partial results are counted, which may be more than the units.
    total = int(fingerprint.get("units") or 0)
    done = min(units_on_disk(record), total)
    return {
        "stage": stage.name,
        "state": "started",
        "detail": f"{done} of {total} units on disk",
        "done": done,
        "total": total,
    }
