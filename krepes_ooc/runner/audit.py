"""One recipe in one workspace, and how it is run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from krepes_ooc.core.files import checksummed_json, read_checksummed_file, write_atomic
from krepes_ooc.engine.cluster.connect import ClusterSpec
from krepes_ooc.engine.device import Device
from krepes_ooc.errors import DamageError, UsageError, WorkspaceError
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.sizing import audit_sizes, measure_sizes
from krepes_ooc.runner.staleness import StageState, StalenessChecker
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, stage_cost
from krepes_ooc.storage.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a recipe is run; nothing here is in any digest.

    Args:
        memory: anonymous memory of the run in bytes; default three quarters of what is free.
        workers: threads; default all cores.
        until: last stage to run.
        only: the one stage to run.
        restart_stale: compute stale stages again.
        repair: find damaged files and compute them again.
        max_seconds: stop, resumable, after this time.
        mixed_numerics: resume a stage that another backend or processor began.
        cluster: workers beyond this process.
        shard: number of the part that is computed, from 1, and of how many; with ``only``.
        device: where blocks are computed: cpu, cuda, auto, or a device of one's own.
    """

    memory: int | None = None
    workers: int | None = None
    until: str | None = None
    only: str | None = None
    restart_stale: bool = False
    repair: bool = False
    max_seconds: float | None = None
    mixed_numerics: bool = False
    cluster: ClusterSpec | None = None
    shard: tuple[int, int] | None = None
    device: str | Device = "cpu"


@dataclass(frozen=True)
class Audit:
    """One recipe in one workspace.

    Args:
        recipe: what is run.
        workspace: where.
    """

    recipe: Recipe
    workspace: Workspace

    @cached_property
    def inputs(self) -> AuditInputs:
        """Source, network and views, opened on first use."""
        recipe, private = self.recipe, self.workspace.private
        return AuditInputs(
            recipe.source, recipe.network, recipe.views, recipe.seed, recipe.base, private
        )

    @cached_property
    def staleness(self) -> StalenessChecker:
        """The tickets of the recipe."""
        return StalenessChecker(self.workspace, self.inputs, self.recipe.settings)

    def states(self) -> dict[str, StageState]:
        """State of every stage by name, upstream first."""
        return {state.stage.name: state for state in self.staleness.states(self.recipe.stages)}

    def sizes(self, *, anew: bool = False) -> AuditSizes:
        """Sizes of the audit, as its features were begun or measured anew.

        Raises:
            UsageError: the recipe asks for sizes that cannot be.
        """
        if anew:
            return measure_sizes(self.inputs, self.recipe.settings)
        return audit_sizes(self.workspace, self.inputs, self.recipe.settings)

    def costs(self, states: Sequence[StageState], shape: AuditSizes) -> dict[str, Cost]:
        """What every stage is expected to cost by its name, run in this order in one process."""
        costs: dict[str, Cost] = {}
        before: list[Stage] = []
        for state in states:
            stage = state.stage
            settings = self.recipe.settings[stage.name]
            costs[stage.name] = stage_cost(stage, shape, settings, self.inputs, before)
            if state.kind != "sealed":
                before.append(stage)
        return costs


def default_workspace(recipe: Recipe) -> Path:
    """``krepes-workspace/<recipe>`` under the current folder."""
    return Path("krepes-workspace") / recipe.name


def remember_recipe(workspace: Workspace, recipe: Recipe) -> None:
    """Keep the text of the recipe, so that the workspace can be looked at without it."""
    record = checksummed_json({"text": recipe.text, "base": str(recipe.base.resolve())})
    path = _remembered(workspace)
    with contextlib.suppress(OSError):  # what cannot be read is written anew
        if path.read_bytes() == record:
            return
    write_atomic(path, record, workspace.private / "temp", sync=True)


def remembered_recipe(workspace: Workspace, overrides: tuple[str, ...] = ()) -> Recipe | None:
    """The recipe that was last run here, overrides included, or None.

    Raises:
        RecipeError: this version of krepes does not know one of its keys.
    """
    with contextlib.suppress(DamageError):
        if known := read_checksummed_file(_remembered(workspace)):
            where = f"recipe of {workspace.root}"
            return Recipe.parse(str(known["text"]), Path(str(known["base"])), where, overrides)
    return None


def recorded_recipe(root: Path | str, overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe that was last run in a workspace.

    Raises:
        WorkspaceError: none is recorded there.
        RecipeError: this version of krepes does not know one of its keys.
    """
    recipe = remembered_recipe(Workspace(root), overrides)
    if recipe is None:
        raise WorkspaceError(
            "the recipe is not recorded",
            where=str(root),
            expected="a workspace that krepes run has made",
        )
    return recipe


def _remembered(workspace: Workspace) -> Path:
    return workspace.private / "recipe-text.json"


def trusted_recipe(
    root: Path | str, overrides: tuple[str, ...] = (), named: Recipe | str | None = None
) -> Recipe:
    """The recipe that was last run in a workspace, if the user vouches for the code that it names.

    Somebody may have sent the workspace: code runs only if a recipe that the user named names it.

    Args:
        root: the workspace.
        overrides: as ``--set``.
        named: recipe that the user named: itself, its name or its file.

    Raises:
        UsageError: it names other code.
        WorkspaceError: none is recorded there.
        RecipeError: this version of krepes does not know one of its keys.
    """
    recipe = recorded_recipe(root, overrides)
    known = Recipe.load(named) if isinstance(named, str) else named
    strange = recipe.code - (known.code if known is not None else frozenset())
    if strange:
        raise UsageError(
            f"the recipe that is recorded there names code, {min(strange)}",
            where=str(root),
            expected="code that you vouch for",
            advice="if you trust it, name the recipe beside --workspace",
        )
    return recipe
