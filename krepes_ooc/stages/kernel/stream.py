"""The stored kernel as a stream of blocks, with checkpoints of computations that pass over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.engine.device import Device, Speed, is_host, to_device
from krepes_ooc.errors import Stopped
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.writing import read_partial, write_partial
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel, read_landmark_kernel
from krepes_ooc.storage.store_reader import StoreReader

BlockFunction = Callable[[tuple[Any, ...], Block], tuple[Any, ...]]
Sums = tuple[Any, ...]
Arrays = Mapping[str, npt.NDArray[Any]]
PASSES = "passes"
KEEP_SECONDS = 30.0


@dataclass
class KernelStream:
    """Kernel blocks of all views, summed in a fixed order: shard by shard, then a balanced tree.

    Args:
        kernel: the store ``kernel``.
        features: the store ``features``, from which a device may recompute kernel rows.
        landmarks: the store ``landmarks``, for the same.
        context: the running stage.
        passes: passes over the kernel so far, in this process or before a resume.
    """

    kernel: StoreReader
    features: StoreReader
    landmarks: StoreReader
    context: StageContext
    passes: int = 0
    _saved_passes: int = field(default=0, init=False, repr=False)
    _saved_at: float = field(default_factory=time.monotonic, init=False, repr=False)

    @property
    def n_samples(self) -> int:
        """Rows of the kernel."""
        return self.context.plan.n_samples

    @property
    def n_views(self) -> int:
        """Number of views."""
        return int(self.kernel.info("values").shape[0])

    @cached_property
    def blocks(self) -> KernelBlocks:
        """Kernel blocks on the device of the stage."""
        return KernelBlocks(self.kernel, self.features, self.landmarks, self.context)

    def reduce(self, function: BlockFunction) -> Sums:
        """Sum ``function(kernel blocks of all views, block)`` over all blocks; one pass.

        The function and the arrays that it holds go to the device with the blocks; the sums of a
        shard return to the host.
        """
        context = self.context
        device = context.device
        kernel = self.blocks

        def shard_sums(shard: int) -> Sums:
            on_device = to_device(device, function)
            total: Sums = ()
            for block in context.plan.shard(shard):
                context.stop.check()
                part = on_device(kernel.views(block), block)
                total = add(total, part) if total else part
            return tuple(device.to_host(value) for value in total)

        # Blocks are added in order, shards by a balanced tree: the same bits with any workers.
        total = context.executor().reduce(shard_sums, range(context.plan.n_shards), add)
        self.passes += 1
        return total

    def cached(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Arrays of ``compute``, from a checkpoint of that name if there is one.

        Args:
            name: of the checkpoint.
            compute: returns the arrays; they are saved if it took a pass or long, or if the run is
                asked to stop.
        """
        saved = self.load_checkpoint(name)
        if saved is not None:
            return saved
        passes_before = self.passes
        started = time.monotonic()
        arrays = compute()
        if self.passes > passes_before or self._is_due(started):
            self.save_checkpoint(name, arrays)
        return arrays

    def checkpoint(self, name: str, arrays: Callable[[], Arrays]) -> None:
        """Save the state of a computation if it is due, and stop here if the run is asked to.

        Args:
            name: of the checkpoint.
            arrays: returns the state.

        Raises:
            Stopped: the run was asked to stop; it resumes from this state.
        """
        try:
            self.context.stop.check()
        except Stopped:
            self.save_checkpoint(name, arrays())
            raise
        if self.passes > self._saved_passes or self._is_due(self._saved_at):
            self.save_checkpoint(name, arrays())

    def load_checkpoint(self, name: str) -> Arrays | None:
        """Arrays of a checkpoint, None if there is none; ``passes`` counts on from its number."""
        saved = read_partial(self.context, self.context.record.partials / f"{name}.npz")
        if saved is not None:
            self.passes = max(self.passes, int(saved.pop(PASSES)))
        return saved

    def save_checkpoint(self, name: str, arrays: Arrays) -> None:
        """Write arrays and the number of passes; removed when the stage is sealed."""
        path = self.context.record.partials / f"{name}.npz"
        write_partial(self.context, path, {**arrays, PASSES: np.array(self.passes)})
        self._saved_passes = self.passes
        self._saved_at = time.monotonic()

    def _is_due(self, since: float) -> bool:
        """Whether a checkpoint is worth its write: the run stops, or much time has passed."""
        return self.context.stop.requested or time.monotonic() - since > KEEP_SECONDS


def add(left: Sums, right: Sums) -> Sums:
    """Two tuples of sums, added entry by entry."""
    return tuple(a + b for a, b in zip(left, right, strict=True))


Placement = Literal["resident", "recomputed", "streamed"]
RESIDENT = 0.5  # largest share of a device's memory for resident kernel rows
STORED_BYTES = 2  # bytes of a stored feature


@dataclass(frozen=True)
class KernelBlocks:
    """The stored kernel, block by block, on the device of its stage.

    Args:
        kernel: the store ``kernel``.
        features: the store ``features``; read only if rows are recomputed.
        landmarks: the store ``landmarks``; read only if rows are recomputed.
        context: the running stage.
    """

    kernel: StoreReader
    features: StoreReader
    landmarks: StoreReader
    context: StageContext

    def views(self, block: Block) -> tuple[Any, ...]:
        """Kernel rows [sample, landmark] of one block, one array for each view, as float32."""
        views = range(self.kernel.info("values").shape[0])
        return tuple(self._rows(block, view) for view in views)

    @cached_property
    def placement(self) -> Placement:
        """Placement of the kernel rows, decided once for a stage."""
        info = self.kernel.info("values")
        n_values = int(np.prod(info.shape))
        m = info.shape[-1]
        assert self.context.sizes is not None
        width = self.context.sizes.n_features if self.context.sizes.keeps_features else 0
        return choose_placement(self.context.device, n_values, m, info.dtype.itemsize, width)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the stores; a worker decides the placement for its own device."""
        return KernelBlocks, (self.kernel, self.features, self.landmarks, self.context)

    def _rows(self, block: Block, view: int) -> Any:
        """Kernel rows [sample, landmark] of one block in one view, as float32 on the device."""
        kernel = self.kernel
        device = self.context.device
        # Streamed: the stored values cross to the device in every pass.
        if is_host(device) or self.placement == "streamed":
            return device.to_float32(kernel.block("values", block, view))
        # Resident: they cross once and stay, in their stored type.
        if self.placement == "resident":
            key = ("kernel", block.index, view)
            rows = device.cached(key, lambda: device.upload(kernel.block("values", block, view)))
            return device.to_float32(rows)
        # Recomputed: the shorter feature rows cross, and the result is rounded as it was stored.
        stored = self.features.block("values", block, view)
        self_kernel_x = self.features.block("self_kernel", block, view)
        rows = self._landmark_kernel.rows_on_device(stored, self_kernel_x)
        return device.round_trip(rows, kernel.info("values").dtype.name)

    @cached_property
    def _landmark_kernel(self) -> LandmarkKernel:
        """The kernel map that the stored kernel was computed with."""
        normalise = self.kernel.attributes["normalise"]
        scale = self.kernel.attributes["scale"]
        sub_rows = self.context.plan.sub_rows
        return read_landmark_kernel(self.landmarks, normalise, scale, sub_rows, self.context.device)


def choose_placement(
    device: Device, values: int, landmarks: int, itemsize: int, width: int
) -> Placement:
    """Placement of kernel rows: resident on the device, recomputed from features, or streamed.

    Args:
        device: where passes run.
        values: kernel values of all views and samples.
        landmarks: values of one row.
        itemsize: bytes of a stored value.
        width: stored features of a row; 0: none are stored.
    """
    if device.memory is None or device.speed is None:
        return "streamed"
    # Resident rows cost one transfer for all passes, so they come first where they fit.
    if itemsize * values <= RESIDENT * device.memory:
        return "resident"
    pays = width > 0 and recompute_pays(width, landmarks, itemsize, device.speed)
    return "recomputed" if pays else "streamed"


def recompute_pays(width: int, landmarks: int, itemsize: int, speed: Speed) -> bool:
    """Whether a kernel value is computed from its feature row faster than read: 2 D / F < s / B.

    D features, F operations and B bytes a second, s bytes of a stored value. The feature row itself
    crosses the same bus, once for the m landmarks: the slower of the two counts.

    Args:
        width: D.
        landmarks: m.
        itemsize: s.
        speed: F and B.
    """
    reading = itemsize / speed.bandwidth
    computing = 2.0 * width / speed.flops
    return max(computing, STORED_BYTES * width / (landmarks * speed.bandwidth)) < reading
