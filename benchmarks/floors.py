"""What the stages of a benchmarked audit cannot go below, at rates measured on the machine.

The floor of a stage is what its arithmetic and its bytes cost: forward and backward pass of the
plain network for the rows, matrix products at the sgemm (dgemm where the stage works in float64)
rate, stored bytes at the rates of memory and of this disk.
"""

from __future__ import annotations

from typing import Any

from krepes_ooc.engine.calibration import Rates

BATCH = 256
DOUBLE = ("spectrum", "newton", "influence", "fidelity", "alignment", "concepts", "report")


def floor_of(
    stage: dict[str, Any], hidden: tuple[int, ...], rates: Rates, shape: dict[str, int]
) -> float:
    """CPU-seconds that the stage cannot go below at the measured rates."""
    name, n, views = stage["stage"], shape["n_samples"], shape["n_views"]
    m, width, size = shape["n_landmarks"], shape["n_features"], shape["kernel_itemsize"]
    flops, read = stage["flops"], 0.0
    network = 0.0
    if name == "features":
        flops = 2.0 * n * views * shape["n_moments"]
        network = n * views * network_seconds(hidden)
    elif name == "audited":
        flops, network = 0.0, shape["n_audited"] * network_seconds(hidden)
    elif name == "landmarks":
        read = 6.0 * 2 * n * width
    elif name == "kernel":
        read = 2.0 * n * views * width
    elif name == "moments":
        flops, read = 4.0 * n * m * m, float(size) * n * views * m
    rate = rates.double if name in DOUBLE else rates.single
    return flops / rate + network + read / rates.read + stage["disk_bytes"] / rates.write


def streamed_floor(newton: dict[str, Any], rates: Rates, shape: dict[str, int]) -> float | None:
    """CPU-seconds of the products that a streamed objective needed; None if it needed no pass.

    The plan counts as many as the solver may take; the floor those that it took, at 8 n m h each
    for two views, and one read of the kernel for each pass.
    """
    if not newton["passes"]:
        return None
    n, m, views = shape["n_samples"], shape["n_landmarks"], shape["n_views"]
    flops = 4.0 * views * n * m * shape["n_components"] * newton["products"]
    read = float(newton["passes"]) * shape["kernel_itemsize"] * n * m * views
    return flops / rates.single + read / rates.read


def network_seconds(hidden: tuple[int, ...]) -> float:
    """CPU-seconds of one forward and backward pass of the plain network, for one row."""
    import torch

    from krepes_ooc.engine.calibration import fastest
    from krepes_ooc.network.zoo import mlp

    torch.set_num_threads(1)
    network = mlp(inputs=107, hidden=list(hidden), outputs=64)
    rows = torch.randn(BATCH, 107)
    return fastest(lambda: network(rows).sum().backward(), 20) / BATCH
