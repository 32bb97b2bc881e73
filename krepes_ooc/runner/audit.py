"""One recipe in one workspace, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from krepes_ooc.recipes import Recipe
from krepes_ooc.stages.inputs import AuditInputs
from krepes_ooc.stages.tickets import StageState, TicketOffice
from krepes_ooc.storage.workspace import Workspace


@dataclass(frozen=True)
class Options:
    """How a recipe is run; nothing here is in any digest.

    Args:
        memory: anonymous memory of the run in bytes; default three quarters of what is free.
        workers: threads; default all cores.
        until: last stage to run.
        only: the one stage to run.
        restart_stale: compute stale stages again.
        max_seconds: stop, resumable, after this time.
        mixed_numerics: resume a stage that another backend or processor began.
    """

    memory: int | None = None
    workers: int | None = None
    until: str | None = None
    only: str | None = None
    restart_stale: bool = False
    max_seconds: float | None = None
    mixed_numerics: bool = False


@dataclass(frozen=True)
class Audit:
    """One recipe in one workspace.

    Args:
        recipe: what is run.
        workspace: where.
    """

    recipe: Recipe
    workspace: Workspace

    @property
    def inputs(self) -> AuditInputs:
        """Source, network and views, opened on first use."""
        recipe = self.recipe
        return AuditInputs(
            recipe.source, recipe.network, recipe.views, recipe.seed, recipe.base, self.workspace.private
        )

    def office(self, inputs: AuditInputs | None = None) -> TicketOffice:
        """The tickets of the recipe."""
        return TicketOffice(self.workspace, inputs or self.inputs, self.recipe.settings)

    def states(self) -> list[StageState]:
        """State of every stage."""
        return self.office().states(self.recipe.stages)


def default_workspace(recipe: Recipe) -> Path:
    """``krepes-workspace/<recipe>`` under the current folder."""
    return Path("krepes-workspace") / recipe.name
