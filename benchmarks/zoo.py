"""Kernel and cost of feature rows on architectures of torchvision, timm and transformers.

    python -m benchmarks.zoo --only torchvision
    python -m benchmarks.zoo --only timm
    python -m benchmarks.zoo --only transformers
    python -m benchmarks.zoo --table

Needs these libraries; nothing is downloaded: weights are random, and moved a little, because a
weight that starts at zero would hide a gradient that is missed. Each network has four random
samples and one probe, and its rows are sketched in 4,096 columns. Three figures: the way to the
gradients; the error of the kernel relative to its Frobenius norm, against plain autograd with the
same probe, beside the largest that the sketch is expected to make; the cost of a row over a plain
forward and backward pass. The stored rows are checked parameter by parameter too, as every run
does. What is measured goes to ``benchmarks/results/zoo.json`` after each network.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.zoo_networks import NETWORKS, declare_operators, moved
from krepes_ooc.errors import KrepesError
from krepes_ooc.jacobian.feature_map import FeatureMap, FeatureSettings, open_features
from krepes_ooc.jacobian.row_cost import measure_rows
from krepes_ooc.jacobian.stored_row_check import STORED_TOLERANCE, stored_row_errors

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks/results/zoo.json"
COLUMNS = 4096
SAMPLES = 4
# A sketch of two rows errs by at most sqrt(2 / columns) of the product of their norms in the mean
# square; the kernel of four samples has few independent entries, so three times that is expected.
EXPECTED_ERROR = 3 * (2 / COLUMNS) ** 0.5
SECONDS = 120
SETTINGS = FeatureSettings(kind="sketch", probes=1, deflated_probes=0, sketch=COLUMNS)


class OutOfTime(BaseException):
    """The time of one network is over; no Exception, because trials of ways catch those."""


def main() -> None:
    """Measure the networks that are asked for, write after each, print the table."""
    asked = _parser().parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    declare_operators()
    for name, build in {} if asked.table else NETWORKS.items():
        if (asked.only and not name.startswith(asked.only)) or (name in found and not asked.again):
            continue
        found[name] = measure(name, build)
        print(name, json.dumps(found[name]), flush=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table({name: found[name] for name in NETWORKS if name in found}))


def measure(name: str, build: Callable[[Any], Any]) -> dict[str, Any]:
    """Figures of one network, or why there are none."""
    library = name.partition(":")[0]
    begun = time.process_time()
    try:
        imported = importlib.import_module(library)
        torch.manual_seed(0)
        module, inputs = build(imported)
    except Exception as error:
        return {"state": "not built", "why": f"{type(error).__name__}: {error}"[:300]}
    module = moved(module)
    with time_limit(SECONDS):
        try:
            figures = _figures(module, inputs)
        except KrepesError as error:
            return {"state": "refused", "why": str(error)[:400]}
        except Exception as error:
            return {"state": "failed", "why": f"{type(error).__name__}: {error}"[:400]}
        except OutOfTime:
            return {"state": "not measured", "why": f"took more than {SECONDS} s of processor time"}
    figures["load"] = round(os.getloadavg()[0], 1)
    figures["cpu_seconds"] = round(time.process_time() - begun, 1)
    return figures


def _figures(module: torch.nn.Module, inputs: np.ndarray) -> dict[str, Any]:
    """Way, errors and cost of one network."""
    opened = open_features(module, SETTINGS, inputs)
    stored = stored_row_errors(opened.network, opened, inputs[:2])
    error = kernel_error(opened, inputs)
    cost = measure_rows(opened, inputs)
    right = error <= EXPECTED_ERROR and max(stored.values()) <= STORED_TOLERANCE
    return {
        "state": "right" if right else "wrong",
        "parameters": sum(opened.network.inner.get_parameter(n).numel() for n in opened.parameters),
        "ways": ways(opened),
        "error": error,
        "stored_error": max(stored.values()),
        "worst": max(stored, key=lambda key: stored[key]),
        "row_cost": cost.row / cost.plain,
    }


def kernel_error(opened: FeatureMap, inputs: np.ndarray) -> float:
    """Frobenius error of the sketched kernel, relative to that of plain autograd."""
    rows = opened.rows(inputs)[0].astype(np.float64)
    network = opened.network.differentiable_copy(opened.parameters)
    parameters = [network.inner.get_parameter(name) for name in opened.parameters]
    probe = torch.tensor(opened.describe()["probes"][0], dtype=torch.float32)
    gradients = []
    for sample in range(len(inputs)):
        value = network(torch.tensor(inputs[sample : sample + 1]))[0] @ probe
        parts = torch.autograd.grad(value, parameters, materialize_grads=True)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    exact = torch.stack(gradients)
    kernel = (exact @ exact.T).double().numpy()
    return float(np.linalg.norm(rows @ rows.T - kernel) / np.linalg.norm(kernel))


def ways(opened: FeatureMap) -> dict[str, int]:
    """Number of parameter arrays by way."""
    counts: dict[str, int] = {}
    for rule in opened.describe()["plan"]:
        counts[rule["method"]] = counts.get(rule["method"], 0) + len(rule["parameters"])
    return counts


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """OutOfTime after so many seconds of processor time."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Figures as a Markdown table, and their summary."""
    lines = [
        "| network | million parameters | ways | kernel error | stored rows | row over plain |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        if "error" not in one:
            lines.append(f"| {name} | | {one['state']}: {one['why'][:120]} | | | |")
            continue
        listed = ", ".join(f"{way} {count}" for way, count in one["ways"].items())
        state = "" if one["state"] == "right" else f" **{one['state']}**"
        lines.append(
            f"| {name} | {one['parameters'] / 1e6:.2f} | {listed} | {one['error']:.3f}{state} "
            f"| {one['stored_error']:.1e} | {one['row_cost']:.2f} |"
        )
    states = [one["state"] for one in found.values()]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    return "\n".join([*lines, "", f"{len(found)} networks: {counts}; an error of up to "
                      f"{EXPECTED_ERROR:.3f} is expected"])  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="networks whose names begin so: timm")
    parser.add_argument("--again", action="store_true", help="also those that are measured")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the figures that lie there")
    return parser


if __name__ == "__main__":
    main()
