"""The byte budget: workers follow from it; what cannot fit is refused before the first task."""

from __future__ import annotations

from dataclasses import dataclass

from krepes_ooc.blocks import format_bytes
from krepes_ooc.engine import machine
from krepes_ooc.errors import PlanRefused, UsageError


@dataclass(frozen=True)
class Need:
    """Anonymous memory of one stage, in bytes.

    Args:
        fixed: held once, whatever the number of workers.
        per_worker: held by every worker at the same time.
        tasks: that can run at the same time at most; None: any number.
    """

    fixed: int = 0
    per_worker: int = 0
    tasks: int | None = None

    def of_process(self, base: int) -> Need:
        """The same for workers that are processes: each has a base and a fixed part of its own.

        They stay for all stages, however few tasks one of them has.
        """
        return Need(0, base + self.fixed + self.per_worker)


@dataclass(frozen=True)
class Budget:
    """How much anonymous memory the run may take and how many workers were asked for.

    Args:
        memory: bytes in all, the interpreter included.
        workers: threads at most.
    """

    memory: int
    workers: int

    def workers_for(self, stage: str, need: Need, base: int) -> int:
        """Number of workers that fit beside the fixed part.

        Args:
            stage: name, for the message.
            need: what the stage holds.
            base: anonymous bytes before the stage.

        Raises:
            PlanRefused: not even one worker fits.
        """
        fitting = self.fitting(need, base)
        if not fitting:
            raise self.refusal(stage, base + need.fixed + need.per_worker)
        return fitting

    def refusal(self, stage: str, total: int) -> PlanRefused:
        """The error for a stage that needs ``total`` bytes, the base included."""
        enough = format_bytes(1.1 * total)
        return PlanRefused(
            f"one worker needs {format_bytes(total)} of memory",
            where=f"stage {stage}",
            expected=f"at most --memory {format_bytes(self.memory)}",
            advice=f"raise --memory to {enough}, or lower the number of landmarks",
        )

    def fitting(self, need: Need, base: int) -> int:
        """Number of workers that fit; 0 if not even one does."""
        free = self.memory - base - need.fixed
        if free < need.per_worker:
            return 0
        most = self.workers if need.tasks is None else min(self.workers, need.tasks)
        return min(most, free // need.per_worker) if need.per_worker else most


def default_budget(memory: int | None, workers: int | None) -> Budget:
    """The budget asked for, or three quarters of the available memory and all cores.

    Raises:
        UsageError: less than one worker.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers", where="--workers", expected="at least 1")
    limit = memory if memory is not None else machine.available_bytes() * 3 // 4
    return Budget(limit, workers if workers is not None else machine.cores())
