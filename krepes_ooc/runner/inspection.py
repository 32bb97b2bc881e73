"""What a workspace holds: the state of every stage, and whether its bytes are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from krepes_ooc import catalogue
from krepes_ooc.blocks import format_bytes
from krepes_ooc.errors import UsageError
from krepes_ooc.recipes import Recipe
from krepes_ooc.runner.audit import Audit
from krepes_ooc.stages.base import Stage
from krepes_ooc.stages.registry import BY_NAME, STAGES
from krepes_ooc.stages.tickets import StageState
from krepes_ooc.storage.verify import Verification, verify
from krepes_ooc.storage.workspace import Workspace


def read_status(
    name: str | None, workspace: Path, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """State of every stage, as plain values; takes no lock.

    Args:
        name: recipe to compare with; None: the shipped one that wrote the workspace, if it is one.
        workspace: the folder.
        overrides: as ``--set``.
    """
    space = Workspace(workspace)
    owner = space.recipe()
    chosen = name or owner or ""
    if name is None and chosen not in catalogue.names("pipelines"):
        stages = [_record_row(space, stage) for stage in STAGES]
        return {"workspace": str(space.root), "recipe": owner, "stages": stages}
    states = Audit(Recipe.load(chosen, overrides), space).states()
    return {
        "workspace": str(space.root),
        "recipe": owner,
        "stages": [_state_row(space, state) for state in states],
    }


def verify_workspace(workspace: Path, only: str | None = None) -> Verification:
    """Recompute every checksum of a workspace.

    Args:
        workspace: the folder.
        only: one stage.

    Raises:
        UsageError: no such stage.
    """
    space = Workspace(workspace)
    if only is not None and only not in BY_NAME:
        raise UsageError(f"no stage {only!r}", where="--store", expected="one of " + ", ".join(BY_NAME))
    chosen = [stage for stage in STAGES if only in (None, stage.name)]
    return verify(space.record(stage.name, stage.store) for stage in chosen)


def _state_row(space: Workspace, state: StageState) -> dict[str, Any]:
    row = _record_row(space, state.stage)
    if state.kind == "stale":
        row |= {"state": "stale", "detail": "; ".join(state.why)}
    return row


def _record_row(space: Workspace, stage: Stage) -> dict[str, Any]:
    record = space.record(stage.name, stage.store)
    begun, seal = record.begun(), record.seal()
    if seal is not None:
        size, seconds = format_bytes(seal.get("bytes", 0)), seal.get("seconds", 0.0)
        return {"stage": stage.name, "state": "sealed", "detail": f"{size}, {seconds:.1f} s"}
    if begun is None:
        return {"stage": stage.name, "state": "missing", "detail": ""}
    total = int(begun.get("units", 0))
    detail = f"{len(record.done())} of {total} units on disk"
    return {"stage": stage.name, "state": "begun", "detail": detail}
