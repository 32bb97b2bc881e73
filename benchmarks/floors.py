"""What the stages of a benchmarked audit cannot go below, at rates measured on the machine.

The floor of a stage is what its arithmetic and its bytes cost: forward and backward pass of the
plain network for the rows, matrix products at the sgemm (dgemm where the stage works in float64)
rate, stored bytes at the rates of memory and of this disk.
"""

from __future__ import annotations

from typing import Any

from krepes_ooc.engine.calibration import Rates

BATCH = 256
DOUBLE = (
    *("spectrum", "newton", "influence", "fidelity", "alignment", "concepts", "report"),
    *("distilled", "examples", "minimiser", "group_influence"),
)
# Stages that minimise, and the array of their evaluations
EVALUATIONS = {"minimiser": "evaluations", "group_influence": "iterations"}


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
    elif name == "discovery":
        read = float(size) * n * views * m
    elif name == "group_moments":
        # Every partition of the samples takes what the moments take.
        flops, read = 4.0 * n * m * m * max(1, shape["n_partitions"]), float(size) * n * views * m
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


def minimised_floor(evaluations: int, rates: Rates, shape: dict[str, int]) -> float:
    """CPU-seconds of the products of the evaluations that a minimiser took.

    The plan counts as many as it may take. Each is one product with the moments of every pair of
    views, of m x m by m x h numbers.
    """
    m, views = shape["n_landmarks"], shape["n_views"]
    pairs = views * (views + 1) // 2
    return 2.0 * m * m * shape["n_components"] * pairs * evaluations / rates.double


def network_seconds(hidden: tuple[int, ...]) -> float:
    """CPU-seconds of one forward and backward pass of the plain network, for one row."""
    import torch

    from krepes_ooc.engine.calibration import fastest
    from krepes_ooc.network.zoo import mlp

    torch.set_num_threads(1)
    network = mlp(inputs=107, hidden=list(hidden), outputs=64)
    rows = torch.randn(BATCH, 107)
    return fastest(lambda: network(rows).sum().backward(), 20) / BATCH


def table_of(found: dict[str, Any]) -> str:
    """What a whole run found, for people."""
    lines = [
        f"n = {found['samples']:,}, m = {found['landmarks']:,}, {found['objective']}, "
        f"{found['features']}, --memory {found['memory']}, {found['workers']} workers; "
        f"sgemm {found['rates']['single'] / 1e9:.0f} GFLOP a CPU-second",
        f"{'stage':<16}{'wall s':>9}{'CPU s':>9}{'floor s':>9}{'ratio':>7}"
        f"{'anon MiB':>10}{'plan MiB':>10}{'GB':>8}{'plan GB':>9}",
    ]
    lines += [
        f"{row['stage']:<16}{row['wall']:>9.1f}{row['cpu_seconds']:>9.1f}{row['floor']:>9.1f}"
        f"{row['ratio'] or 0:>7.2f}{row['anonymous_peak'] / 2**20:>10.0f}"
        f"{row['planned_peak'] / 2**20:>10.0f}{row['bytes'] / 1e9:>8.2f}"
        f"{row['planned_bytes'] / 1e9:>9.2f}"
        for row in found["stages"]
    ]
    total = found["whole"]
    lines.append(
        f"{'whole':<16}{found['wall']:>9.1f}{total['cpu_seconds']:>9.1f}{total['floor']:>9.1f}"
        f"{total['ratio']:>7.2f}{found['peak_anonymous'] / 2**20:>10.0f}{'':>10}"
        f"{total['bytes'] / 1e9:>8.2f}"
    )
    error = found["planned_wall"] / found["wall"] - 1
    lines.append(
        f"wall: {found['wall']:.0f} s, planned {found['planned_wall']:.0f} s ({error:+.0%}); "
        f"{found['processes']} processes, load at start {found['load_at_start']:.1f}"
    )
    return "\n".join(lines)
