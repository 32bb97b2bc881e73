"""Run of a recipe: stages in order; sealed ones are skipped, stale ones refused."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krepes_ooc.core.verdict import Verdict
from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import Budget, base_bytes, bound_allocator, default_budget, release
from krepes_ooc.engine.device import Device, device_scope
from krepes_ooc.engine.machine import ResourceMeter
from krepes_ooc.engine.memory_limit import MemoryLimit, PlannedMemory, memory_note, memory_words
from krepes_ooc.engine.run_control import Progress, Silent, StopFlag, stop_on_signals
from krepes_ooc.runner import preflight
from krepes_ooc.runner.audit import Audit, Options, record_recipe, workspace_folder
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.repair import repair, repair_records
from krepes_ooc.runner.run_history import Summary, recorded_run
from krepes_ooc.runner.shards import journal_owner, lock_workspace, refuse_shard, start_stage_lock
from krepes_ooc.runner.sizing import SizingLimits
from krepes_ooc.runner.staleness import SIZES_KEY, StageState
from krepes_ooc.runner.workers import OpenWorkers, open_device, open_workers
from krepes_ooc.sources.cache import remove_stale_files as sweep_cache
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import (
    BINDS_PARTIALS,
    ShardDone,
    Stage,
    StageContext,
    stage_cost,
)
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
        progress: receives stages, units and notes.
        stop: checked between units; default one that signals and ``max_seconds`` set.

    Raises:
        UsageError: an option or a setting is not allowed, or the workspace cannot be written.
        WorkspaceError: the workspace is locked, of another recipe or format, or has stale stages.
        DamageError: a record of the workspace or of a stage is damaged.
        PlanRefused: memory or disk cannot hold the plan.
        StageFailed: a stage cannot give a result.
        Stopped: stopped early on request; nothing is lost.
    """
    options = options or Options()
    progress = progress or Silent()
    started = time.monotonic()
    # Everything that can be refused without the workspace, before a lock is taken.
    refuse_shard(preflight.chosen_stages(recipe.stages, options), options)
    preflight.refuse_no_queue(options.cluster)
    device = open_device(options.device, progress.note)
    bound_allocator()
    root = workspace_folder(recipe, workspace)
    preflight.refuse_no_folder(root)
    # Stores above half of the free memory are read past the page cache, which they would empty.
    space = Workspace(root, direct_above=machine.available_bytes() // 2)
    summary = Summary(space.root)
    flag = stop or StopFlag(options.max_seconds)
    lost = "another host took the workspace over while this process seemed dead"
    with (
        lock_workspace(space, recipe.name, options, lambda: flag.request(lost)),
        stop_on_signals(flag),
        machine.one_blas_thread(),
    ):
        # Damaged records first: opening the workspace reads them.
        if options.repair:
            repair_records(space, recipe, progress.note)
        # Shards share the workspace: only a plain run may remove what looks left over.
        if options.shard is None:
            space.create(recipe.name)
            space.remove_stale_files()
            sweep_cache(space.private / "cache")
        with recorded_run(space, options, summary):
            audit = Audit(recipe, space, flag.check, progress.note)
            _Run(audit, options, progress, flag, summary, device).run()
    summary.seconds = time.monotonic() - started
    summary.peak_bytes = machine.peak_bytes()
    return summary


@dataclass(frozen=True)
class RunResources:
    """Sizes, memory, workers and device that all stages of one run share.

    Args:
        sizes: sizes of the audit.
        budget: memory and workers.
        base: anonymous memory before the first stage, in bytes.
        workers: of a cluster.
        device: where blocks are computed.
    """

    sizes: AuditSizes
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
        recipe = self.audit.recipe
        space = self.audit.workspace
        # Damaged stages are opened again, so that their states are those of unfinished ones.
        chosen = preflight.chosen_stages(recipe.stages, self.options)
        if self.options.repair:
            for damage in repair(space, chosen):
                self.progress.note(f"repair: {damage}")
        # Refuse before anything is written; from the recipe's record on, the run has begun.
        states = self.audit.states()
        picked = [states[stage.name] for stage in chosen]
        self._refuse(picked, states)
        record_recipe(space, recipe)
        if self.options.again:
            # The sealed result stays in the archive until the new one is sealed.
            for state in (state for state in picked if state.kind == "sealed"):
                space.record(state.stage.name, state.stage.store).archive_previous()
            states = self.audit.states()
            picked = [states[stage.name] for stage in chosen]
        unsealed = [state for state in picked if state.kind != "sealed"]
        if unsealed:
            # What was left out or brought together is seen before the first block.
            for warning in self.audit.inputs.source_warnings:
                self.progress.note(f"source: {warning}")
            digests = {name: state.digest for name, state in states.items()}
            self._run_stages(picked, unsealed, digests)
        else:
            self.summary.skipped += [state.stage.name for state in picked]
        # States anew: stages that were not chosen may have become stale.
        states = self.audit.states()
        self.summary.left = [name for name, state in states.items() if state.kind != "sealed"]
        if not self.summary.left:
            space.consolidate()
        if "newton" in states and states["newton"].kind == "sealed":
            self.summary.trusted = bool(space.reader("newton").attributes["trusted"])
        if "verdict" in states and states["verdict"].kind == "sealed":
            verdict = Verdict.from_json(space.reader("verdict").attributes["verdict"])
            self.summary.verdict = verdict.status
            self.summary.verdict_sentence = verdict.sentence

    def _refuse(self, picked: list[StageState], states: dict[str, StageState]) -> None:
        preflight.refuse_damaged(picked)
        if self.options.only is not None:
            stage = picked[0].stage
            preflight.refuse_without_upstream(stage, self.audit.staleness.upstream(stage), states)
        if not self.options.restart_stale:
            preflight.refuse_stale(self.audit, picked)

    def _run_stages(
        self, picked: list[StageState], unsealed: list[StageState], digests: dict[str, str]
    ) -> None:
        """Run the chosen stages that are not sealed, in order.

        Args:
            picked: chosen stages.
            unsealed: those of them that are left.
            digests: digest of every stage by name; those of finished stages are put in.
        """
        # Sizes and cost of all stages that are left: what cannot fit is refused as a whole.
        budget = default_budget(self.options.memory, self.options.workers)
        base = base_bytes()  # the network, which the sizes may need, is in the plan of its stages
        anew = any(s.stage.name == "features" and s.kind in ("missing", "stale") for s in unsealed)
        sizes = self.audit.sizes(anew=anew, limits=SizingLimits(budget, base))
        for note in (*self.audit.inputs.network_notes, *self.audit.recipe.notes):
            self.progress.note(f"network: {note}")
        preflight.refuse_unfit(self.audit, unsealed, sizes, budget, base, self.device)
        with open_workers(
            self.audit, self.options, unsealed, sizes, budget, base, self.device
        ) as workers:
            resources = RunResources(sizes, budget, base, workers, self.device)
            for stage in (state.stage for state in picked):
                # Its state anew: stages before it have given it their digests by now.
                with start_stage_lock(self.audit.workspace, self.options):
                    state = self.audit.staleness.state(stage, digests)
                    # Stages that read it need its digest, also where it was unknown before.
                    digests[stage.name] = state.digest
                    if state.kind == "sealed":
                        self.summary.skipped.append(stage.name)
                        continue
                    self.stop.check()
                    # It may have become unreadable since the run began: nothing of it is dropped.
                    preflight.refuse_damaged([state])
                    if not self.options.restart_stale:
                        preflight.refuse_stale(self.audit, [state])
                    context = self._context(state, digests, resources)
                    self._start_stage(state, context)
                self._run_stage(context)
                digests[stage.name] = context.digest

    def _run_stage(self, context: StageContext) -> None:
        """Run one stage to its seal, or one shard of it."""
        from krepes_ooc.network.torch_device import one_torch_thread

        name = context.stage.name
        is_shard = False
        # However the stage ends, its journal is closed and the memory of the device is freed.
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(context.record.journal))
            stack.enter_context(context.meter)
            stack.enter_context(one_torch_thread())
            stack.enter_context(device_scope(context.device))
            context.bound_allocator()
            stack.callback(bound_allocator)
            try:
                context.stage.run(context.inputs, context)
            except ShardDone:
                is_shard = True
        # The next stage is planned from the memory of an empty process.
        release(context.base)
        facts = context.meter.facts()
        peak, planned = int(facts["anonymous_peak"]), context.planned_memory
        if note := memory_note(name, peak, PlannedMemory(planned, context.budget.memory)):
            self.progress.note(note)
        if is_shard and context.shard is not None:
            number, count = context.shard
            self.summary.shard = f"shard {number}/{count} of {name}"
            return
        self.summary.ran.append(name)
        self.progress.end(name, facts["seconds"], memory_words(peak, planned))

    def _start_stage(self, state: StageState, context: StageContext) -> None:
        """Write the record of a stage before its first block."""
        self.audit.workspace.consolidate()
        # A stale result stays in the archive until the new one is sealed.
        if state.kind == "stale":
            self.progress.note(f"{state.stage.name} is computed again: {state.reason_text}")
            context.record.archive_previous()
        if state.kind == "started":
            preflight.refuse_mixed_numerics(context.record, self.options, context.numerics)
            return
        record = {"digest": context.digest, "units": context.cost.units, BINDS_PARTIALS: True}
        context.record.begin({**context.fingerprint, **record, "numerics": context.numerics})

    def _context(
        self, state: StageState, digests: dict[str, str], resources: RunResources
    ) -> StageContext:
        recipe = self.audit.recipe
        stage = state.stage
        fingerprint = self.audit.staleness.fingerprint(stage, digests)
        unknown = [name for name, value in fingerprint["inputs"].items() if not value]
        assert not unknown, f"{stage.name} would begin without the digests of {unknown}"
        # The block plan is chosen with the features, and part of their digest from then on.
        if stage.name == "features":
            fingerprint[SIZES_KEY] = resources.sizes.of_features()
        settings = self.audit.settings[stage.name]
        before = tuple(BY_NAME[name] for name in self.summary.ran)
        limit = self._limit(stage, settings, before, resources)
        return StageContext(
            stage,
            settings,
            self.audit.workspace.limited_to(
                stage.name, {*stage.inputs.stores(), stage.store or ""}
            ),
            self.audit.inputs,
            fingerprint,
            resources.sizes,
            resources.budget,
            limit,
            self.progress,
            meter=ResourceMeter(limit.observe),
            recipe_text=recipe.text,
            base=resources.base,
            pool=resources.workers.pool,
            transfer=resources.workers.transfer,
            owner=journal_owner(self.options),
            shard=self.options.shard,
            stages_before=before,
            device=resources.device,
            planned_memory=limit.planned,
            limit=limit,
        )

    def _limit(
        self, stage: Stage, settings: Any, before: tuple[Stage, ...], resources: RunResources
    ) -> MemoryLimit:
        """The limit that the stage's measured memory is compared with while it runs."""
        cost = stage_cost(stage, resources.sizes, settings, self.audit.inputs, before)
        budget = resources.budget
        # Blocks on a cluster are computed elsewhere.
        elsewhere = resources.workers.pool is not None and stage.parallel != "no"
        threads = 1 if elsewhere else budget.workers
        planned = Budget(budget.memory, threads).planned_bytes(cost.need, resources.base)
        allowed = PlannedMemory(planned, budget.memory, resources.workers.memory)
        return MemoryLimit(stage.name, allowed, threads, self.stop, self.progress.note)
