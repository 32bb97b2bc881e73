"""Repair: damaged files are removed, so that a run computes exactly these again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from krepes_ooc.errors import DamageError
from krepes_ooc.runner.audit import recorded_recipe
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.sources.cache import damaged_files
from krepes_ooc.stages.base.stage import Stage
from krepes_ooc.storage.learned_files import LEARNED
from krepes_ooc.storage.sealed_list import unlist_sealed
from krepes_ooc.storage.stage_record import StageRecord, discard, remove
from krepes_ooc.storage.verify import STRANGER, WORKSPACE, Damage, verify, workspace_damage
from krepes_ooc.storage.workspace import Workspace
from krepes_ooc.storage.zarr_metadata import DOCUMENT


def repair_records(workspace: Workspace, recipe: Recipe, note: Callable[[str], None]) -> None:
    """Restore damaged records of the workspace itself, and remove damaged caches.

    The owner is the recipe whose text is recorded, if that is whole, else the recipe given: its
    stages still refuse what was made with other inputs. Root document and text are written anew by
    every run.
    """
    for damage in [*workspace_damage(workspace.private), *cache_damage(workspace.private)]:
        note(f"repair: {damage}")
        file = Path(damage.file)
        if file.name in LEARNED or workspace.private / "cache" in file.parents:
            remove(file)  # learned anew where it is needed
    try:
        workspace.recipe()
    except DamageError:
        workspace.claim((recorded_recipe(workspace) or recipe).name)


def cache_damage(private: Path) -> list[Damage]:
    """Damaged files among the caches of scans and hashes."""
    return [Damage(WORKSPACE, str(path), what) for path, what in damaged_files(private / "cache")]


def repair(workspace: Workspace, stages: Sequence[Stage]) -> list[Damage]:
    """Unseal every damaged stage; its whole blocks stay, and so do the stages that read it.

    A stage computes the same bits again, so its digest and what was made of it stay valid. Only
    under the lock.

    Returns:
        The damage, for the user.
    """
    total: list[Damage] = []
    for stage in stages:
        record = workspace.record(stage.name, stage.store)
        damage = [
            d for d in verify([record]).damage if d.stage == stage.name and d.problem != STRANGER
        ]
        if damage:
            _open_again(record, damage)
            workspace.drop_reader(stage.store or "")
        total += damage
    return total


def _open_again(record: StageRecord, damage: Sequence[Damage]) -> None:
    if record.restore() is None:
        # Without a record nothing says what the blocks are: the stage starts anew. The record goes
        # last: as long as it exists, the next repair finds it damaged again.
        if record.store is not None:
            discard(record.store, record.temp)
        unlist_sealed(record.private, record.name)
        discard(record.folder, record.temp)
        return
    files = [Path(item.file) for item in damage]
    if any(file.name == DOCUMENT for file in files):
        record.reset()
    for file in files:
        # Paths of records are absolute: those are mended when the stage is unsealed. A file goes
        # before that: a kill in between leaves damage that is found again.
        if not file.is_absolute():
            remove(record.base / file)
    record.unseal()
