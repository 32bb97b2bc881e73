"""Memory and operations of feature rows, measured on small batches of calibration samples.

The memory of a batch is linear in its samples: a fixed part (tables, buffers, gradients of the
weights) and the activations of every sample. Both follow from batches of one and of a few samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from krepes_ooc.jacobian.feature_map import FeatureMap
from krepes_ooc.jacobian.opening import SampleSize
from krepes_ooc.network.frozen import FrozenNetwork

Rows = npt.NDArray[Any]
# Growth of memory at the peak of a call, in bytes.
PeakGrowth = Callable[[Callable[[], object]], int]
# Samples of the larger batch, and where samples are large.
MAX_SAMPLES = 8
FEW_SAMPLES = 3
# Above the measured growth: what a sampled peak misses, and rounding of the allocator.
MARGIN = 1.15
# Bytes of the self-check for every weight: two copies in float64, one gradient, one on its way.
CHECK_BYTES = 28
# Samples of the self-check, in float64.
CHECK_SAMPLES = 2


@dataclass(frozen=True)
class RowSize:
    """Memory and operations of the rows of a batch.

    Args:
        fixed_bytes: anonymous bytes of a batch of any size.
        sample_bytes: further bytes of every sample.
        opening_bytes: bytes at the peak of opening and self-check.
        flops: floating-point operations of one row, by torch's counter.
    """

    fixed_bytes: int
    sample_bytes: int
    opening_bytes: int
    flops: float


def measure_row_size(
    feature_map: FeatureMap, inputs: Rows, size: SampleSize, free: int, growth: PeakGrowth
) -> RowSize:
    """Measure the rows of one sample, then of as many as fit ``free`` bytes, at most a few.

    Args:
        feature_map: the map.
        inputs: calibration inputs [sample, ...].
        size: numbers in the results of one sample.
        free: bytes that a batch may take.
        growth: measures the peak of a call.
    """
    n_weights = sum(p.numel() for p in feature_map.network.parameters())
    # The first call loads libraries and counts operations.
    flops = _count_flops(lambda: feature_map.rows(inputs[:1]))

    def work(n_samples: int) -> int:
        return growth(lambda: feature_map.rows(inputs[:n_samples]))

    return _linear(work, len(inputs), size, n_weights, free, flops)


def measure_pass_size(
    network: FrozenNetwork,
    parameters: Sequence[str],
    inputs: Rows,
    size: SampleSize,
    free: int,
    growth: PeakGrowth,
) -> RowSize:
    """As ``measure_row_size``, from plain forward and backward passes, without a feature map."""
    copied = network.differentiable_copy(parameters)
    tensors = [copied.inner.get_parameter(name) for name in parameters]

    def plain(n_samples: int) -> None:
        outputs = copied(torch.tensor(inputs[:n_samples]))
        torch.autograd.grad(outputs.sum(), tensors, allow_unused=True)

    n_weights = sum(p.numel() for p in network.parameters())
    flops = _count_flops(lambda: plain(1))
    work = _linear(lambda n: growth(lambda: plain(n)), len(inputs), size, n_weights, free, flops)
    # Rows hold the gradients at all layers at once; a plain pass frees them one by one.
    gradients = int(MARGIN * 4 * size.numbers)
    return replace(work, sample_bytes=work.sample_bytes + gradients)


def _linear(
    bytes_of: Callable[[int], int],
    n_inputs: int,
    size: SampleSize,
    n_weights: int,
    free: int,
    flops: float,
) -> RowSize:
    """Fixed part and slope of ``bytes_of(n_samples)``."""
    one = bytes_of(1)
    count = min(max(FEW_SAMPLES, min(MAX_SAMPLES, size.batch)), n_inputs)
    # Halved until it fits, by the first measurement.
    while count > 1 and one * count > free:
        count //= 2
    several = bytes_of(count) if count > 1 else one
    slope = (several - one) / (count - 1) if count > 1 else float(one)
    # Small growth hides in what the allocator has: at least the results of a pass count.
    sample = int(MARGIN * max(slope, 4.0 * size.numbers))
    fixed = int(MARGIN * max(0.0, one - max(slope, 0.0)))
    passes = max(size.batch, 2 * CHECK_SAMPLES * 2)
    opening = fixed + sample * min(passes, max(n_inputs, 1)) + CHECK_BYTES * n_weights
    return RowSize(fixed, sample, opening, flops)


def _count_flops(work: Callable[[], object]) -> float:
    """Operations of the matrix products and convolutions of a call; 0 where they are hidden."""
    # An operation that the counter cannot handle costs the count, never the run.
    with contextlib.suppress(Exception):
        counter = FlopCounterMode(display=False)
        with counter:
            work()
        return float(counter.get_total_flops())
    work()
    return 0.0
