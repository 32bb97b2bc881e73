"""Order the stages of a recipe, skip what is sealed, run what is missing, refuse what is stale."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from krepes_ooc.blocks import format_bytes
from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import default_budget
from krepes_ooc.engine.progress import Progress, Silent
from krepes_ooc.engine.stopping import StopFlag, stop_on_signals
from krepes_ooc.errors import PlanRefused, UsageError, WorkspaceError
from krepes_ooc.network.threads import one_torch_thread
from krepes_ooc.recipes import Recipe
from krepes_ooc.runner.audit import Audit, Options, default_workspace
from krepes_ooc.stages.base import Stage, StageContext
from krepes_ooc.stages.inputs import AuditInputs
from krepes_ooc.stages.sizing import measure_shape, shape_of
from krepes_ooc.stages.tickets import StageState, TicketOffice
from krepes_ooc.storage.workspace import Workspace


@dataclass
class Summary:
    """What a run did."""

    workspace: Path
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0


def run(
    recipe: Recipe,
    workspace: Path | str | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Run a recipe to its sealed end, or on from where it stopped.

    Args:
        recipe: what is run.
        workspace: folder; default ``krepes-workspace/<recipe>``.
        options: memory, workers and stopping.
        progress: told what happens.

    Raises:
        WorkspaceError: the workspace is locked, of another recipe or format, or has stale stages.
        PlanRefused: memory or disk cannot hold the plan.
        Stopped: stopped early on request; nothing is lost.
    """
    options, progress = options or Options(), progress or Silent()
    begun = time.monotonic()
    space = Workspace(workspace if workspace is not None else default_workspace(recipe))
    space.create(recipe.name)
    summary = Summary(space.root)
    stop = StopFlag(options.max_seconds)
    with space.lock(), stop_on_signals(stop), machine.one_blas_thread():
        space.sweep()
        _Run(Audit(recipe, space), options, progress, stop, summary).run()
    summary.seconds = time.monotonic() - begun
    summary.peak_bytes = machine.peak_bytes()
    return summary


@dataclass(frozen=True)
class _Run:
    audit: Audit
    options: Options
    progress: Progress
    stop: StopFlag
    summary: Summary

    def run(self) -> None:
        inputs = self.audit.inputs
        office = self.audit.office(inputs)
        chosen = _chosen(self.audit.recipe.stages, self.options)
        states = {state.stage.name: state for state in office.states(self.audit.recipe.stages)}
        self._refuse_stale([states[stage.name] for stage in chosen])
        digests = {name: state.digest for name, state in states.items()}
        for stage in chosen:
            state = office.state(stage, digests)
            if state.kind == "sealed":
                self.summary.skipped.append(stage.name)
                continue
            self.stop.check()
            digests[stage.name] = self._stage(office, inputs, state, digests)
        if all(office.state(s, digests).kind == "sealed" for s in self.audit.recipe.stages):
            self.audit.workspace.consolidate()

    def _stage(
        self, office: TicketOffice, inputs: AuditInputs, state: StageState, digests: dict[str, str]
    ) -> str:
        """Run one stage to its seal and return its digest."""
        stage = state.stage
        _require_upstream(stage, digests, self.audit.recipe)
        self.audit.workspace.unconsolidate()
        context = self._context(office, inputs, state, digests)
        if state.kind == "stale":
            self.progress.note(f"{stage.name} is computed again: {'; '.join(state.why)}")
            context.record.park()
        if state.kind == "begun":
            self._check_numerics(context)
        else:
            units = {"digest": context.digest, "units": context.cost.units}
            context.record.begin({**context.ticket, **units})
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(context.record.journal))
            if {"network", "factory"} & set(stage.reads):
                stack.enter_context(one_torch_thread())
            stage.run(context)
        self.summary.ran.append(stage.name)
        self.progress.end(stage.name, time.monotonic() - context.started)
        return context.digest

    def _context(
        self, office: TicketOffice, inputs: AuditInputs, state: StageState, digests: dict[str, str]
    ) -> StageContext:
        recipe, workspace = self.audit.recipe, self.audit.workspace
        ticket = office.ticket(state.stage, digests)
        begun = state.kind == "begun" or state.stage.name not in ("pretrain", "features")
        shape = (
            shape_of(workspace, inputs, recipe.settings)
            if begun
            else measure_shape(inputs, recipe.settings)
        )
        if state.stage.name == "features":
            ticket["shape"] = shape.to_attributes()
        context = StageContext(
            state.stage,
            recipe.settings[state.stage.name],
            workspace,
            inputs,
            ticket,
            shape,
            default_budget(self.options.memory, self.options.workers),
            self.stop,
            self.progress,
            recipe_text=recipe.text,
        )
        check_disk(context)
        return context

    def _refuse_stale(self, states: list[StageState]) -> None:
        stale = [state for state in states if state.kind == "stale"]
        if stale and not self.options.restart_stale:
            reasons = "; ".join(f"{s.stage.name} ({', '.join(s.why)})" for s in stale)
            raise WorkspaceError(
                f"stale: {reasons}",
                where=str(self.audit.workspace.root),
                expected="results of the same settings, network, source and version",
                advice="--restart-stale computes exactly these stages again",
            )

    def _check_numerics(self, context: StageContext) -> None:
        here = machine.numerics()
        others = {unit.numerics for unit in context.record.units()[0].values()} - {here}
        if others and not self.options.mixed_numerics:
            raise WorkspaceError(
                f"blocks on disk were computed with {min(others)!r}",
                where=f"stage {context.stage.name}",
                expected=f"{here!r}",
                advice="resume on such a machine, or accept other bits with --allow-mixed-numerics",
            )


def _chosen(stages: tuple[Stage, ...], options: Options) -> tuple[Stage, ...]:
    """The stages that the options ask for.

    Raises:
        UsageError: no such stage in the recipe.
    """
    names = [stage.name for stage in stages]
    for option, name in (("--until", options.until), ("--only", options.only)):
        if name is not None and name not in names:
            raise UsageError(f"no stage {name!r}", where=option, expected="one of " + ", ".join(names))
    if options.only is not None:
        return (stages[names.index(options.only)],)
    return stages if options.until is None else stages[: names.index(options.until) + 1]


def _require_upstream(stage: Stage, digests: dict[str, str], recipe: Recipe) -> None:
    names = {other.name for other in recipe.stages}
    for name in stage.reads:
        if name in names and not digests.get(name):
            raise UsageError(
                f"stage {stage.name} reads {name}, which is not sealed",
                where="--only",
                expected="all stages before it",
                advice=f"run `krepes run {recipe.name} --until {name}` first",
            )


def check_disk(context: StageContext) -> None:
    """Refuse a stage whose results do not fit the disk.

    Raises:
        PlanRefused: with the bytes needed and free.
    """
    needed, free = context.cost.disk, shutil.disk_usage(context.workspace.root).free
    if needed > free:
        raise PlanRefused(
            f"{format_bytes(needed)} of disk needed, {format_bytes(free)} free",
            where=f"stage {context.stage.name}",
            expected="enough free disk",
            advice="free some space, choose another --workspace, or fewer landmarks or features",
        )
