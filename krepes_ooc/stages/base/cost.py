"""What a stage is expected to cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from krepes_ooc.engine.budget import ALLOCATOR_BYTES, MemoryNeed

# Constants of a process, measured in a fresh one per stage.
SLACK_BYTES = 32 * 2**20  # readers of the source, journals, thread stacks
LEFT_BYTES = 24 * 2**20  # what the stages before leave in the process, measured up to a million
NETWORK_BYTES = 80 * 2**20  # the part of torch that differentiates: it loads with a network
LEARNING_BYTES = 40 * 2**20  # scikit-learn


@dataclass(frozen=True)
class Cost:
    """Expected cost of a stage.

    Args:
        units: blocks, shards, rounds or epochs.
        disk: bytes that the stage leaves on the disk.
        need: anonymous memory.
        flops: floating-point operations.
        scratch: bytes of partial results, removed when the stage is sealed.
        bytes_read: bytes that are read from memory again and again, beyond what the operations wait for.
        float64: whether the operations are in float64.
        network: whether it runs the network, for a stage that does so only sometimes.
        freed_early: bytes of one worker and the fixed part that are gone when the network is loaded.
        skipped: whether these settings leave it nothing to do, so that it loads neither the network
            nor scikit-learn.
        device: memory of a device that computes the blocks, at least.
    """

    units: int = 1
    disk: int = 0
    need: MemoryNeed = field(default_factory=MemoryNeed)
    flops: float = 0.0
    scratch: int = 0
    bytes_read: float = 0.0
    float64: bool = False
    network: bool = False
    freed_early: int = 0
    skipped: bool = False
    device: MemoryNeed = field(default_factory=MemoryNeed)

    def in_process(
        self, *, source: int, network: int | None, loaded: bool, learns: bool, later: bool
    ) -> Cost:
        """The same with what its process holds besides.

        Args:
            source: bytes that the source keeps; 0: it is not read.
            network: bytes of its parameters and their gradients; None: it is not loaded.
            loaded: whether an earlier stage has loaded it.
            learns: whether scikit-learn is loaded.
            later: whether another stage ran before.
        """
        held = self.need.fixed + source + SLACK_BYTES + (LEFT_BYTES if later else 0)
        held += ALLOCATOR_BYTES if self.need.per_worker else 0
        held += LEARNING_BYTES if learns else 0
        if network is not None:
            held += max(0, NETWORK_BYTES + network - (0 if loaded else self.freed_early))
        return replace(self, need=replace(self.need, fixed=held))
