"""One recipe in one workspace, the options of a run, and the recipe that a workspace records."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

from krepes_ooc.core.blocks import parse_bytes
from krepes_ooc.core.option_values import parse_shard, parse_time
from krepes_ooc.engine.cluster.connect import ClusterSpec, parse_cluster
from krepes_ooc.engine.device import Device
from krepes_ooc.errors import DamageError, UsageError, WorkspaceError
from krepes_ooc.runner.kept_concepts import with_kept
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.sizing import SizingLimits, audit_sizes, measure_sizes
from krepes_ooc.runner.staleness import StageState, StalenessChecker
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, stage_cost
from krepes_ooc.stages.groups.declared import choose_columns
from krepes_ooc.storage.recipe_text import read_recipe_text, write_recipe_text
from krepes_ooc.storage.workspace import Workspace, resolve_folder

# Folder of workspaces that were given none of their own.
WORKSPACES = "krepes-workspace"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a run; none of them is in a digest.

    Texts as the command line takes them are read: ``Options(memory="2GiB", max_seconds="45m")``.

    Args:
        memory: anonymous memory of the run in bytes; default three quarters of what is free.
        workers: threads; default all cores.
        until: last stage to run.
        only: the one stage to run.
        restart_stale: compute stale stages again.
        again: compute the stage of ``only`` again although it is sealed and up to date.
        repair: find damaged files and compute them again.
        max_seconds: stop, resumable, after this time.
        mixed_numerics: resume a stage that another backend or processor began.
        cluster: workers beyond this process.
        shard: number of the part that is computed, from 1, and of how many; with ``only``.
        device: where blocks are computed: cpu, cuda, auto, or a device object.

    Raises:
        UsageError: a text that is no size, time, shard or cluster.
    """

    memory: int | None = None
    workers: int | None = None
    until: str | None = None
    only: str | None = None
    restart_stale: bool = False
    again: bool = False
    repair: bool = False
    max_seconds: float | None = None
    mixed_numerics: bool = False
    cluster: ClusterSpec | None = None
    shard: tuple[int, int] | None = None
    device: str | Device = "auto"

    def __post_init__(self) -> None:
        """Read texts."""
        parsers: dict[str, Callable[[Any], Any]] = {
            "memory": parse_bytes,
            "max_seconds": parse_time,
            "shard": parse_shard,
            "cluster": lambda text: parse_cluster(text, self.memory),
        }
        for name, parse in parsers.items():
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, parse(value))


@dataclass(frozen=True)
class Audit:
    """One recipe in one workspace.

    Args:
        recipe: what is run.
        workspace: where.
        check_stop: raises when the run is to stop, while the source is opened.
        note: receives one line about a long opening of the network.
    """

    recipe: Recipe
    workspace: Workspace
    check_stop: Callable[[], None] = lambda: None
    note: Callable[[str], None] = lambda text: None

    @cached_property
    def inputs(self) -> AuditInputs:
        """Source, network and views, opened on first use."""
        recipe = self.recipe
        return AuditInputs(
            recipe.source,
            recipe.network,
            recipe.views,
            recipe.seed,
            recipe.base,
            self.workspace.private,
            recipe.training_objective,
            self.check_stop,
            recipe.live,
            note=self.note,
        )

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Settings of every stage by name: the recipe's, named concepts, columns of the groups."""
        settings = with_kept(self.recipe.settings, self.workspace)
        groups = settings["groups"]
        if groups.columns != "auto":
            return settings
        return {**settings, "groups": choose_columns(groups, self.inputs.source)}

    @cached_property
    def staleness(self) -> StalenessChecker:
        """Fingerprints and states of the recipe's stages."""
        return StalenessChecker(self.workspace, self.inputs, self.settings)

    def states(self) -> dict[str, StageState]:
        """State of every stage by name, upstream first."""
        return {state.stage.name: state for state in self.staleness.states(self.recipe.stages)}

    def sizes(
        self,
        *,
        anew: bool = False,
        limits: SizingLimits = SizingLimits(),  # noqa: B008  a frozen value
    ) -> AuditSizes:
        """Sizes of the audit, as its features were started with or measured anew.

        Args:
            anew: as if the features were not started.
            limits: memory and time within which sizes are chosen.

        Raises:
            UsageError: the recipe asks for sizes that cannot be.
        """
        if anew:
            return measure_sizes(self.inputs, self.settings, limits)
        return audit_sizes(self.workspace, self.inputs, self.settings, limits)

    def costs(
        self,
        states: Sequence[StageState],
        sizes: AuditSizes,
        settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Cost]:
        """Expected cost of every stage by its name, run in this order in one process.

        Args:
            states: the stages.
            sizes: sizes of the audit.
            settings: of every stage by name; None: those of the audit.
        """
        settings = settings or self.settings
        costs: dict[str, Cost] = {}
        # Source, network and libraries of earlier stages stay in memory: they count for later ones.
        before: list[Stage] = []
        for state in states:
            stage = state.stage
            costs[stage.name] = stage_cost(stage, sizes, settings[stage.name], self.inputs, before)
            # A sealed stage does not run, and loads nothing.
            if state.kind != "sealed":
                before.append(stage)
        return costs


def default_workspace(recipe: Recipe) -> Path:
    """``krepes-workspace/<recipe>`` under the current folder."""
    return Path(WORKSPACES) / recipe.name


def workspace_folder(recipe: Recipe, workspace: Path | str | None) -> Path:
    """Folder of a run, without links: the given one, else that of the recipe.

    Args:
        recipe: what is run.
        workspace: the folder, where it is given; need not exist.

    Raises:
        UsageError: its links lead in a circle.
    """
    return resolve_folder(Path(default_workspace(recipe) if workspace is None else workspace))


def record_recipe(workspace: Workspace, recipe: Recipe) -> None:
    """Write the text of the recipe into the workspace, which can then be read without it."""
    write_recipe_text(workspace.private, recipe.text, recipe.base.resolve())


@overload
def recorded_recipe(
    workspace: Workspace, overrides: tuple[str, ...] = (), *, require: None = None
) -> Recipe | None: ...


@overload
def recorded_recipe(
    workspace: Workspace,
    overrides: tuple[str, ...] = (),
    *,
    require: Literal["trust"],
    named: Recipe | str | None = None,
) -> Recipe: ...


def recorded_recipe(
    workspace: Workspace,
    overrides: tuple[str, ...] = (),
    *,
    require: Literal["trust"] | None = None,
    named: Recipe | str | None = None,
) -> Recipe | None:
    """The recipe that was last run in a workspace, overrides included.

    Args:
        workspace: of the audit.
        overrides: as ``--set``.
        require: ``trust``: there must be one, and the user vouches for the code and the files that
            it names, since somebody may have sent the workspace.
        named: recipe that the user named, itself, its name or its file; its code may run, and its
            files may be read.

    Returns:
        The recipe, or None if there is none and none is required.

    Raises:
        WorkspaceError: none is recorded.
        DamageError: the text is not what was written, or not that of the last run.
        UsageError: it names code or files that ``named`` does not.
        RecipeError: this version of krepes does not know one of its keys.
    """
    if require is None:
        # A text that is not the recorded one is none; ``verify`` and ``--repair`` name it.
        with contextlib.suppress(DamageError):
            return _read_recorded(workspace, overrides)
        return None
    recipe = _read_recorded(workspace, overrides)
    if recipe is None:
        raise WorkspaceError(
            "the recipe is not recorded",
            where=str(workspace.root),
            expected="a workspace that krepes run has made",
        )
    _refuse_unnamed(workspace, recipe, named)
    # A script that names its own recipe holds the objects of it.
    return recipe if named is None or isinstance(named, str) else replace(recipe, live=named.live)


def _read_recorded(workspace: Workspace, overrides: tuple[str, ...]) -> Recipe | None:
    record = read_recipe_text(workspace.private)
    if not record:
        return None
    where = f"recipe of {workspace.root}"
    text, base = (str(record.get(key, "")) for key in ("text", "base"))
    return Recipe.parse(text, Path(base), where, overrides)


def _refuse_unnamed(workspace: Workspace, recipe: Recipe, named: Recipe | str | None) -> None:
    """Raise if a recorded recipe names code or files that the recipe named by the user does not.

    Raises:
        UsageError: naming the code or the file.
    """
    # Code is compared by name and folder: the user has run or read what the named recipe names.
    trusted = Recipe.load(named) if isinstance(named, str) else named
    unknown = recipe.code - (trusted.code if trusted is not None else frozenset())
    if unknown:
        raise UsageError(
            f"the recipe that is recorded there names code, {min(unknown)}",
            where=str(workspace.root),
            expected="code that you vouch for",
            advice="if you trust it, name the recipe beside --workspace",
        )
    # What is read enters the caches of a workspace that may be sent on.
    read = trusted.files if trusted is not None else frozenset()
    if unread := files_elsewhere(recipe, workspace) - read:
        raise UsageError(
            f"the recipe that is recorded there names a file, {min(unread)}",
            where=str(workspace.root),
            expected="files that you have named yourself",
            advice="if it may be read, name the recipe beside --workspace",
        )


def files_elsewhere(recipe: Recipe, workspace: Workspace) -> frozenset[str]:
    """Files that a recipe names outside the workspace; those in it may be read, as it is itself."""
    return frozenset(
        name
        for name in recipe.files
        if not Path(os.path.realpath(name)).is_relative_to(workspace.root)
    )
