"""The expected cost of a stage, in named terms.

A quantity (bytes or operations) is a sum of terms, or the largest of several phases that follow one
another, each a sum of terms. ``krepes plan --json`` prints them, so every number can be traced to
the array or operation that it counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from krepes_ooc.engine.budget import MemoryNeed, allocator_bytes

# Constants of a process in bytes, measured in a fresh one per stage.
SLACK_BYTES = 32 * 2**20  # readers of the source, journals, thread stacks
LEFT_BYTES = 24 * 2**20  # left in the process by earlier stages, measured up to a million rows
NETWORK_BYTES = 80 * 2**20  # autograd of torch, which loads with a network
SKLEARN_BYTES = 40 * 2**20  # scikit-learn with its own libraries
OPTIMIZE_BYTES = 22 * 2**20  # scipy.optimize

# Label of the operations of feature rows, whose time is measured apart.
ROW_PASSES = "forward and backward passes"


def f64(*sizes: int) -> int:
    """Bytes of a float64 or int64 array with these sizes."""
    return 8 * math.prod(sizes)


def f32(*sizes: int) -> int:
    """Bytes of a float32 array with these sizes."""
    return 4 * math.prod(sizes)


def f16(*sizes: int) -> int:
    """Bytes of a float16 array with these sizes."""
    return 2 * math.prod(sizes)


@dataclass(frozen=True)
class Term:
    """One part of a quantity.

    Args:
        label: the array or operation, in words.
        size: bytes or operations of one.
        times: how many exist at once; negative: counted elsewhere, and not needed in this phase.
    """

    label: str
    size: float
    times: float = 1

    @property
    def total(self) -> float:
        """``times`` times ``size``, an integer where both are."""
        return self.size * self.times


@dataclass(frozen=True)
class Quantity:
    """Bytes or operations as named terms: the largest of its phases, at least 0.

    Args:
        phases: terms of each phase by its name.
    """

    phases: Mapping[str, tuple[Term, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, *terms: Term) -> Self:
        """The sum of terms."""
        return cls({"": terms})

    @property
    def total(self) -> Any:
        """The largest sum over all phases."""
        return max((sum(term.total for term in terms) for terms in self.phases.values()), default=0)

    @property
    def bytes(self) -> int:
        """The total as whole bytes, at least 0."""
        return max(0, int(self.total))

    def plus(self, *terms: Term) -> Quantity:
        """The quantity with more terms in every phase."""
        phases = self.phases or {"": ()}
        return Quantity({name: (*before, *terms) for name, before in phases.items()})

    def to_json(self) -> dict[str, Any]:
        """The total and the terms of every phase."""
        phases = {
            name: [vars(term) | {"total": term.total} for term in terms]
            for name, terms in self.phases.items()
        }
        return {"total": self.total, "phases": phases}


@dataclass(frozen=True)
class Cost:
    """Expected cost of a stage.

    Args:
        units: blocks, shards, rounds or epochs.
        disk: bytes of its store.
        memory: anonymous bytes of the process, whatever the number of workers.
        worker_memory: anonymous bytes of every worker at the same time.
        parallel_tasks: largest number of tasks at the same time; None: any number.
        flops: floating-point operations.
        scratch: bytes of partial results, removed when the stage is sealed.
        bytes_read: bytes streamed from memory, for operations that are bound by bandwidth.
        float64: whether the operations are in float64.
        network: whether it runs the network, for a stage that does so only with some settings.
        freed_early: bytes of the process and one worker that are freed before the network loads.
        skipped: whether these settings leave it nothing to do, so that it loads neither the network
            nor scikit-learn.
        device_memory: bytes on a device that computes the blocks, for any number of tasks.
        device_task_memory: further bytes on the device for every task.
    """

    units: int = 1
    disk: Quantity = field(default_factory=Quantity)
    memory: Quantity = field(default_factory=Quantity)
    worker_memory: Quantity = field(default_factory=Quantity)
    parallel_tasks: int | None = None
    flops: Quantity = field(default_factory=Quantity)
    scratch: Quantity = field(default_factory=Quantity)
    bytes_read: Quantity = field(default_factory=Quantity)
    float64: bool = False
    network: bool = False
    freed_early: Quantity = field(default_factory=Quantity)
    skipped: bool = False
    device_memory: Quantity = field(default_factory=Quantity)
    device_task_memory: Quantity = field(default_factory=Quantity)

    @property
    def need(self) -> MemoryNeed:
        """Anonymous host memory, for the budget."""
        return MemoryNeed(self.memory.bytes, self.worker_memory.bytes, self.parallel_tasks)

    @property
    def device(self) -> MemoryNeed:
        """Device memory, for the number of tasks on it."""
        return MemoryNeed(self.device_memory.bytes, self.device_task_memory.bytes)

    def in_process(
        self,
        *,
        source: int,
        network: int | None,
        network_loaded: bool,
        sklearn: bool,
        follows: bool,
        batch: int = 0,
    ) -> Cost:
        """The cost with the memory of source, network and libraries in its process.

        Args:
            source: resident bytes of the source; 0: it is not read.
            network: bytes of parameters and gradients; None: the network is not loaded.
            network_loaded: whether an earlier stage has loaded it.
            sklearn: whether scikit-learn is loaded.
            follows: whether another stage ran before in this process.
            batch: bytes of a batch of the network; 0: the stage does not run it.
        """
        terms = [Term("source", source), Term("readers, journals, thread stacks", SLACK_BYTES)]
        if follows:
            terms.append(Term("left by the stages before", LEFT_BYTES))
        if self.worker_memory.bytes or batch:
            terms.append(Term("kept by the allocator", allocator_bytes(batch)))
        if sklearn:
            terms.append(Term("scikit-learn", SKLEARN_BYTES))
        if network is not None:
            # The peak is the larger of two phases: before the network loads, and after it.
            freed = 0 if network_loaded else self.freed_early.bytes
            terms.append(Term("network and torch", max(0, NETWORK_BYTES + network - freed)))
        # The empty phase: a negative sum must not offset the terms that are added.
        memory = Quantity({**self.memory.phases, "before": ()})
        return replace(self, memory=memory.plus(*terms))

    def to_json(self) -> dict[str, Any]:
        """Every quantity with its named terms."""
        host = ("memory", "worker_memory", "disk", "scratch", "flops", "bytes_read")
        device = ("device_memory", "device_task_memory")
        return {name: getattr(self, name).to_json() for name in (*host, *device)}
