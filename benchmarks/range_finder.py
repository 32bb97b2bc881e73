"""Calibrated probes of networks with many outputs: range finder against the exact Gram matrix.

    python -m benchmarks.range_finder
    python -m benchmarks.range_finder --table

For each network four directions in output space are found twice: by the randomised range finder
(a few passes a sample) and as eigenvectors of the output Gram matrix of the same samples (a
backward pass an output and sample, from sketched gradients). What directions carry is
sum_x |J_x^T v|^2, taken exactly by plain autograd on these samples and on others, relative to the
trace of the Gram matrix. Random weights, generated pictures; needs timm. Figures go to
``benchmarks/results/range-finder.json``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.backbones import generated_picture
from benchmarks.zoo_networks import declare_operators
from krepes_ooc.jacobian.output_range import OutputRange
from krepes_ooc.jacobian.sketched_features import SketchPlan, plan_sketch
from krepes_ooc.network.frozen import freeze

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks/results/range-finder.json"
N_DIRECTIONS, COLUMNS, SEED = 4, 4096, 0
# Name in timm, arguments, side of the pictures, and samples of the Gram matrix.
NETWORKS: dict[str, tuple[dict[str, Any], int, int]] = {
    "vit_small_patch16_224": ({"img_size": 96}, 96, 2),
    "resnet18": ({}, 96, 2),
}


def main() -> None:
    """Compare on all networks, write after each, print the table."""
    asked = _parser().parse_args()
    torch.set_num_threads(1)
    found = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    for name in () if asked.table else NETWORKS:
        found[name] = compare(name)
        print(name, json.dumps(found[name]), flush=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def compare(name: str) -> dict[str, Any]:
    """Shares that both sets of directions carry, on the samples that chose them and on others."""
    arguments, size, n_samples = NETWORKS[name]
    declare_operators()
    torch.manual_seed(0)
    network = freeze(importlib.import_module("timm").create_model(name, num_classes=0, **arguments))
    inputs = pictures(2 * n_samples, size)
    chosen, others = inputs[:n_samples], inputs[n_samples:]
    n_outputs = network(torch.tensor(inputs[:1])).shape[1]
    plan = plan_sketch(
        network, network.trainable, tuple(range(n_outputs)), chosen, COLUMNS, n_samples
    )
    begun = time.process_time()
    ranged = finder(plan).leading(N_DIRECTIONS)
    range_seconds = time.process_time() - begun
    gram = plan.output_gram(SEED, n_samples)
    gram_seconds = time.process_time() - begun - range_seconds
    exact = np.ascontiguousarray(np.linalg.eigh(gram)[1][:, -N_DIRECTIONS:].T)
    trace = float(np.trace(gram))
    carried = {
        "range finder": carried_by(plan, ranged, chosen) / trace,
        "exact": carried_by(plan, exact, chosen) / trace,
    }
    elsewhere = {
        "range finder": carried_by(plan, ranged, others),
        "exact": carried_by(plan, exact, others),
    }
    return {
        "outputs": n_outputs,
        "samples": n_samples,
        "carried": carried,
        "carried_ratio": carried["range finder"] / carried["exact"],
        "ratio_on_other_samples": elsewhere["range finder"] / elsewhere["exact"],
        "range_cpu_seconds": range_seconds,
        "gram_cpu_seconds": gram_seconds,
    }


def pictures(count: int, size: int) -> np.ndarray:
    """Generated pictures [sample, channel, y, x], scaled to about unit variance."""
    scaled = [generated_picture(number)[:size, :size] / 64.0 - 2.0 for number in range(count)]
    return np.stack(scaled).transpose(0, 3, 1, 2).astype(np.float32)


def finder(plan: SketchPlan) -> OutputRange:
    """The range finder on all samples of the plan."""
    inputs = torch.tensor(plan.calibration)
    return OutputRange(plan.network, plan.parameters, plan.outputs, inputs, SEED)


def carried_by(plan: SketchPlan, directions: np.ndarray, inputs: np.ndarray) -> float:
    """sum over samples and directions of |J_x^T v|^2, by plain autograd."""
    network = plan.network.differentiable_copy(plan.parameters)
    parameters = [network.inner.get_parameter(name) for name in plan.parameters]
    total = 0.0
    for sample in torch.tensor(inputs):
        outputs = network(sample[None])[0]
        for direction in torch.tensor(directions, dtype=torch.float32):
            gradients = torch.autograd.grad(outputs @ direction, parameters, retain_graph=True)
            total += sum(float(gradient.square().sum()) for gradient in gradients)
    return total


def table(found: dict[str, dict[str, Any]]) -> str:
    """Figures as a Markdown table."""
    lines = [
        "| network | outputs | carried, exact | range finder | ratio | on other samples | CPU-s |",
        "|" + "---|" * 7,
    ]
    for name, one in found.items():
        carried = one["carried"]
        cells = [name, one["outputs"], f"{carried['exact']:.3f}", f"{carried['range finder']:.3f}"]
        cells += [f"{one['carried_ratio']:.3f}", f"{one['ratio_on_other_samples']:.3f}"]
        cells += [f"{one['range_cpu_seconds']:.1f} against {one['gram_cpu_seconds']:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the figures that lie there")
    return parser


if __name__ == "__main__":
    main()
