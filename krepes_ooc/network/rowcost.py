"""Measure what a feature row costs beside a plain forward and backward pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch

from krepes_ooc.network.account import RowCost
from krepes_ooc.network.features import FeatureMap

SAMPLES = 16


def measure_rows(feature_map: FeatureMap, inputs: npt.NDArray[Any]) -> RowCost:
    """CPU-seconds of rows and of plain passes of the same network on the same few samples.

    Args:
        feature_map: the map.
        inputs: calibration inputs [sample, ...]; the first few are used.
    """
    few = inputs[:SAMPLES]
    network = feature_map.network.copied()
    parameters = [network.inner.get_parameter(name) for name in feature_map.parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)

    def plain() -> None:
        total = network(torch.tensor(few)).sum()
        torch.autograd.grad(total, parameters, allow_unused=True)

    row, one = (_cpu_seconds(work) for work in (lambda: feature_map.rows(few), plain))
    return RowCost(row / len(few), one / len(few), len(few))


def _cpu_seconds(work: Callable[[], object]) -> float:
    """The second of two calls: the first one warms up."""
    work()
    begin = time.process_time()
    work()
    return max(time.process_time() - begin, 1e-6)
