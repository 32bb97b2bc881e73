"""Order the stages of a recipe, skip what is sealed, run what is missing, refuse what is stale."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import Budget, base_bytes, bound_allocator, default_budget, release
from krepes_ooc.engine.device import Device, device_scope
from krepes_ooc.engine.run_control import Progress, Silent, StopFlag, stop_on_signals
from krepes_ooc.runner import preflight
from krepes_ooc.runner.audit import Audit, Options, default_workspace, record_recipe
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.repair import repair, repair_records
from krepes_ooc.runner.run_history import Summary, recorded_run
from krepes_ooc.runner.shards import journal_owner, lock_workspace, refuse_shard, start_stage_lock
from krepes_ooc.runner.staleness import SIZES_KEY, StageState
from krepes_ooc.runner.workers import OpenWorkers, open_device, open_workers
from krepes_ooc.sources.cache import remove_stale_files as sweep_cache
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import ShardDone, StageContext
from krepes_ooc.stages.registry import BY_NAME
from krepes_ooc.storage.workspace import Workspace


def run(
    recipe: Recipe,
    workspace: Path | str | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    stop: StopFlag | None = None,
) -> Summary:
    """Run a recipe to its sealed end, or on from where it stopped.

    Args:
        recipe: what is run.
        workspace: folder; default ``krepes-workspace/<recipe>``.
        options: memory, workers, choice of stages and stopping.
        progress: told what happens.
        stop: asked between units; default one that signals and ``max_seconds`` set.

    Raises:
        UsageError: an option or the recipe cannot be, or the workspace cannot be written.
        WorkspaceError: the workspace is locked, of another recipe or format, or has stale stages.
        DamageError: a record of the workspace or of a stage is damaged.
        PlanRefused: memory or disk cannot hold the plan.
        StageFailed: a stage cannot give a result.
        Stopped: stopped early on request; nothing is lost.
    """
    options, progress = options or Options(), progress or Silent()
    begun = time.monotonic()
    refuse_shard(preflight.chosen_stages(recipe.stages, options), options)
    device = open_device(options.device, progress.note)
    bound_allocator()
    root = Path(workspace if workspace is not None else default_workspace(recipe)).resolve()
    preflight.refuse_no_folder(root)
    space = Workspace(root, direct_above=machine.available_bytes() // 2)
    summary = Summary(space.root)
    flag = stop or StopFlag(options.max_seconds)
    lost = "another host took the workspace over while this process seemed dead"
    with (
        lock_workspace(space, recipe.name, options, lambda: flag.request(lost)),
        stop_on_signals(flag),
        machine.one_blas_thread(),
    ):
        if options.repair:
            repair_records(space, recipe, progress.note)
        if options.shard is None:
            space.create(recipe.name)
            space.remove_stale_files()
            sweep_cache(space.private / "cache")
        with recorded_run(space, options, summary):
            _Run(Audit(recipe, space), options, progress, flag, summary, device).run()
    summary.seconds = time.monotonic() - begun
    summary.peak_bytes = machine.peak_bytes()
    return summary


@dataclass(frozen=True)
class RunResources:
    """What all stages of one run are given.

    Args:
        shape: sizes of the audit.
        budget: memory and workers.
        base: anonymous memory before the first stage, in bytes.
        workers: of a cluster.
        device: where blocks are computed.
    """

    shape: AuditSizes
    budget: Budget
    base: int
    workers: OpenWorkers
    device: Device


@dataclass(frozen=True)
class _Run:
    audit: Audit
    options: Options
    progress: Progress
    stop: StopFlag
    summary: Summary
    device: Device

    def run(self) -> None:
        recipe, space = self.audit.recipe, self.audit.workspace
        chosen = preflight.chosen_stages(recipe.stages, self.options)
        if self.options.repair:
            for damage in repair(space, chosen):
                self.progress.note(f"repair: {damage}")
        states = self.audit.states()
        picked = [states[stage.name] for stage in chosen]
        self._refuse(picked, states)
        record_recipe(space, recipe)
        todo = [state for state in picked if state.kind != "sealed"]
        if todo:
            self._run_stages(picked, todo, {name: state.digest for name, state in states.items()})
        else:
            self.summary.skipped += [state.stage.name for state in picked]
        states = self.audit.states()
        self.summary.left = [name for name, state in states.items() if state.kind != "sealed"]
        if not self.summary.left:
            space.consolidate()
        if "newton" in states and states["newton"].kind == "sealed":
            self.summary.trusted = bool(space.reader("newton").attributes["trusted"])

    def _refuse(self, picked: list[StageState], states: dict[str, StageState]) -> None:
        preflight.refuse_damaged(picked)
        if self.options.only is not None:
            stage = picked[0].stage
            preflight.refuse_without_upstream(stage, self.audit.staleness.upstream(stage), states)
        if not self.options.restart_stale:
            preflight.refuse_stale(self.audit, picked)

    def _run_stages(
        self, picked: list[StageState], todo: list[StageState], digests: dict[str, str]
    ) -> None:
        budget = default_budget(self.options.memory, self.options.workers)
        anew = any(s.stage.name == "features" and s.kind in ("missing", "stale") for s in todo)
        base = base_bytes()  # the network, which the sizes may need, is in the plan of its stages
        shape = self.audit.sizes(anew=anew)
        preflight.refuse_unfit(self.audit, todo, shape, budget, base, self.device)
        asked = (self.audit, self.options, todo, shape, budget, base, self.device)
        with open_workers(*asked) as workers:
            given = RunResources(shape, budget, base, workers, self.device)
            for stage in (state.stage for state in picked):
                with start_stage_lock(self.audit.workspace, self.options):
                    state = self.audit.staleness.state(stage, digests)
                    # Stages that read it need its digest, also where it was unknown before.
                    digests[stage.name] = state.digest
                    if state.kind == "sealed":
                        self.summary.skipped.append(stage.name)
                        continue
                    self.stop.check()
                    if not self.options.restart_stale:
                        preflight.refuse_stale(self.audit, [state])
                    context = self._context(state, digests, given)
                    self._begin(state, context)
                self._stage(context)
                digests[stage.name] = context.digest

    def _stage(self, context: StageContext) -> None:
        """Run one stage to its seal, or a share of it."""
        from krepes_ooc.network.torch_device import one_torch_thread

        name, shared = context.stage.name, False
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(context.record.journal))
            stack.enter_context(context.meter)
            stack.enter_context(one_torch_thread())
            stack.enter_context(device_scope(context.device))
            try:
                context.stage.run(context.inputs, context)
            except ShardDone:
                shared = True
        release(context.base)
        if shared and context.shard is not None:
            self.summary.shard = f"shard {context.shard[0]}/{context.shard[1]} of {name}"
            return
        self.summary.ran.append(name)
        self.progress.end(name, context.meter.facts()["seconds"])

    def _begin(self, state: StageState, context: StageContext) -> None:
        """Write the record of a stage before its first block."""
        self.audit.workspace.consolidate()
        if state.kind == "stale":
            self.progress.note(f"{state.stage.name} is computed again: {state.reason_text}")
            context.record.archive_previous()
        if state.kind == "begun":
            preflight.refuse_mixed_numerics(context.record, self.options, context.numerics)
        else:
            known = {"digest": context.digest, "units": context.cost.units}
            context.record.begin({**context.fingerprint, **known, "numerics": context.numerics})

    def _context(
        self, state: StageState, digests: dict[str, str], given: RunResources
    ) -> StageContext:
        recipe, stage = self.audit.recipe, state.stage
        ticket = self.audit.staleness.fingerprint(stage, digests)
        unknown = [name for name, value in ticket["inputs"].items() if not value]
        assert not unknown, f"{stage.name} would begin without the digests of {unknown}"
        if stage.name == "features":
            ticket[SIZES_KEY] = given.shape.of_features()
        return StageContext(
            stage,
            recipe.settings[stage.name],
            self.audit.workspace.limited_to(
                stage.name, {*stage.inputs.stores(), stage.store or ""}
            ),
            self.audit.inputs,
            ticket,
            given.shape,
            given.budget,
            self.stop,
            self.progress,
            recipe_text=recipe.text,
            base=given.base,
            pool=given.workers.pool,
            transfer=given.workers.transfer,
            owner=journal_owner(self.options),
            shard=self.options.shard,
            stages_before=tuple(BY_NAME[name] for name in self.summary.ran),
            device=given.device,
        )
