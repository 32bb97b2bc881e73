"""Settings with which a run that does not fit its memory would fit, found by the plan itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from krepes_ooc.core.blocks import LEAST_FIXED_ROWS
from krepes_ooc.engine.device import HOST, Device, tasks_that_fit
from krepes_ooc.errors import UsageError
from krepes_ooc.runner.audit import Audit
from krepes_ooc.runner.sizing import SizingLimits, resized
from krepes_ooc.runner.staleness import StageState
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.landmarks.landmark_settings import LandmarksSettings

BATCH = "stages.features.forward_batch"
BLOCK = "stages.features.block_rows"
LANDMARKS = "stages.landmarks.count"
# Fewer landmarks than these are no audit.
LEAST_LANDMARKS = 32
NOTHING_ELSE = "smaller forward batches, smaller blocks and fewer landmarks do not suffice"
NO_LANDMARKS = "fewer landmarks do not suffice, and features that are begun keep their batches"
# Whether all stages that are left fit at these costs.
Fits = Callable[[Mapping[str, Cost]], bool]


def fits_memory(states: Sequence[StageState], limits: SizingLimits, device: Device = HOST) -> Fits:
    """Whether one worker of every stage that is left fits the memory of a run and its device."""
    left = [state.stage.name for state in states if state.kind != "sealed"]

    def fits(costs: Mapping[str, Cost]) -> bool:
        budget = limits.budget
        return budget is None or all(
            budget.workers_that_fit(costs[name].need, limits.base)
            and tasks_that_fit(device, costs[name].device, 1)
            for name in left
        )

    return fits


def memory_advice(
    audit: Audit,
    states: Sequence[StageState],
    sizes: AuditSizes,
    limits: SizingLimits,
    fits: Fits | None = None,
) -> str:
    """Advice beside that to raise the memory: settings with which all that is left would fit.

    One setting is tried before two: the largest forward batch that fits, the largest block, the
    largest number of landmarks. Features that are begun keep their batch and block.

    Args:
        audit: recipe and workspace.
        states: stages in their order.
        sizes: sizes of the audit that does not fit.
        limits: memory of the run.
        fits: whether costs fit; by default the memory of ``limits`` alone.
    """
    trial = _Trial(audit, tuple(states), sizes, limits, fits or fits_memory(states, limits))
    chosen = trial.choose()
    if not chosen:
        return f", because {NO_LANDMARKS if trial.begun['features'] else NOTHING_ELSE}"
    words = " and ".join(f"{key} to {value}" for key, value in chosen.items())
    return f", or set {words}{trial.restart(chosen)}"


@dataclass(frozen=True)
class _Trial:
    """An audit whose sizes are changed until it fits; arguments as of ``memory_advice``."""

    audit: Audit
    states: tuple[StageState, ...]
    sizes: AuditSizes
    limits: SizingLimits
    fits: Fits

    @cached_property
    def begun(self) -> Mapping[str, bool]:
        """Whether a stage is sealed or started, by its name."""
        return {
            name: state.kind in ("sealed", "started") for name, state in self.audit.states().items()
        }

    @property
    def n_landmarks(self) -> int:
        """Landmarks of the audit, however many rows each has."""
        landmarks: LandmarksSettings = self.audit.settings["landmarks"]
        rows = landmarks.row_views(self.sizes.n_views)
        return self.sizes.n_landmarks // len(rows)

    def choose(self) -> dict[str, int]:
        """The first choice of settings that fits, in the order of ``memory_advice``; else empty."""
        for chosen in self._candidates():
            if self.fitting(chosen):
                return chosen
        return {}

    def _candidates(self) -> Iterator[dict[str, int]]:
        plan = self.sizes.plan
        batches, blocks = [], []
        # What the features were begun with stays.
        if not self.begun["features"]:
            batches = _halved(plan.forward_batch, 1)
            blocks = _halved(plan.block_rows, LEAST_FIXED_ROWS)
        counts = _halved(self.n_landmarks, LEAST_LANDMARKS)
        for batch in batches:
            yield {BATCH: batch}
        for block in blocks:
            if block >= plan.forward_batch:
                yield {BLOCK: block}
        if counts and self.fitting({LANDMARKS: counts[-1]}):
            yield {LANDMARKS: self._most_landmarks(counts[-1])}
        for block, batch in product(blocks, batches):
            if batch <= block:
                yield {BATCH: batch, BLOCK: block}
        for count, batch in product(counts, batches):
            yield {BATCH: batch, LANDMARKS: count}

    def _most_landmarks(self, least: int) -> int:
        """Largest number of landmarks that fits, by bisection above one that is known to fit."""
        most = self.n_landmarks
        while most - least > max(1, least // 50):
            middle = (least + most) // 2
            if self.fitting({LANDMARKS: middle}):
                least = middle
            else:
                most = middle
        # Two digits leave some room; memory is not quite monotone, as products are cut in parts.
        unit: int = 10 ** max(0, len(str(least)) - 2)
        rounded = least // unit * unit
        return rounded if self.fitting({LANDMARKS: rounded}) else least

    def fitting(self, chosen: Mapping[str, int]) -> bool:
        """Whether all stages that are left fit with these settings."""
        given = dict(self.audit.settings)
        for key, value in chosen.items():
            stage, name = key.removeprefix("stages.").split(".")
            given[stage] = replace(given[stage], **{name: value})
        # Sizes that the recipe does not allow are no advice.
        with contextlib.suppress(UsageError):
            return all(self.fits(self._costs(sizes, given)) for sizes in self._resized(given))
        return False

    def _resized(self, given: Mapping[str, Any]) -> list[AuditSizes]:
        plan = self.sizes.plan if self.begun["features"] else None
        return resized(self.sizes, self.audit.inputs, given, self.limits, plan)

    def _costs(self, sizes: AuditSizes, given: Mapping[str, Any]) -> dict[str, Cost]:
        return self.audit.costs(self.states, sizes, given)

    def restart(self, chosen: Mapping[str, int]) -> str:
        """The option that begun stages need if these settings change."""
        stages = {key.split(".")[1] for key in chosen}
        return " with --restart-stale" if any(self.begun[name] for name in stages) else ""


def _halved(value: int, least: int) -> list[int]:
    """Half of a number, a quarter of it and so on, down to the least."""
    values = []
    while value // 2 >= least:
        value //= 2
        values.append(value)
    return values
