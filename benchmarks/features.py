"""Speed, error and memory of feature rows beside plain training passes and other libraries.

    python benchmarks/features.py
    python benchmarks/features.py --networks mlp --peers

Speeds are samples per CPU-second on one thread, relative to the standard forward and backward pass
of the same network in the same process, so a busy machine does not matter. Errors are of the
kernel, relative to the Frobenius norm, against gradients of plain autograd with the same probe
(``cnn``: against the trace kernel over all outputs), after the best common factor. Memory is the
growth of a fresh process over its size before the first pass.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.features_networks import Case, cases, trained  # noqa: E402
from benchmarks.features_peers import peers  # noqa: E402
from krepes_ooc.algebra import kernel  # noqa: E402
from krepes_ooc.network.features import FeatureMap, FeatureSettings, open_features  # noqa: E402

COLUMNS = 4096
NEIGHBOURS = 10
REPEATS = 3
PLAIN = "forward and backward"
# Goals: speed at least, error at most, overlap at least, memory over that of the plain pass.
GOALS = {
    ("mlp", "factors"): {"speed": 1.4, "error": 1e-4},
    ("mlp", "sketch"): {"error": 0.06, "overlap": 0.95},
    ("vit", "sketch"): {"speed": 0.75, "error": 0.04, "overlap": 0.95, "memory": 2.0},
    ("resnet", "sketch"): {"speed": 0.65, "error": 0.04, "overlap": 0.95, "memory": 2.0},
    ("cnn", "8 probes"): {"error": 0.08},
}


def main() -> None:
    """Measure each network in a process of its own; print a table and write JSON."""
    asked = _parser().parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.peers)))
        return
    if asked.memory:
        print(json.dumps(peak_memory(*asked.memory)))
        return
    found = {name: child("--one", name, *["--peers"] * asked.peers) for name in asked.networks}
    for name, rows in found.items():
        ways = [PLAIN, *(way for way in settings(name))]
        for way in ways:
            rows[way]["memory_mib"] = child("--memory", name, way)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    print(f"written: {asked.out}")


def settings(name: str) -> dict[str, FeatureSettings]:
    """The ways that are measured on a network."""
    sketch = FeatureSettings(kind="sketch", probes=1, deflated=0, sketch=COLUMNS)
    if name == "mlp":
        return {"factors": FeatureSettings(kind="factors", probes=1, deflated=0), "sketch": sketch}
    if name == "cnn":
        eight = FeatureSettings(kind="sketch", probes=4, deflated=4, sketch=COLUMNS)
        return {"sketch": sketch, "8 probes": eight}
    return {"sketch": sketch}


def measure(name: str, with_peers: bool) -> dict[str, dict[str, Any]]:
    """Speed and error of every way on one network."""
    torch.set_num_threads(1)
    case = cases()[name]
    module, inputs = trained(case), case.inputs(case.samples)
    maps = {way: opened(module, case, given) for way, given in settings(name).items()}
    probe = torch.tensor(maps["sketch"].describe()["probes"][0])
    plain = plain_pass(module, probe, inputs[: case.batch])
    rows = {PLAIN: {"per_second": case.batch / fastest(plain)}}
    exact = exact_kernel(module, inputs, probe[None])
    for way, found in maps.items():
        batch = inputs[: case.batch].numpy()
        own, reference = own_kernel(found, case, inputs), exact
        if way == "8 probes":
            reference = exact_kernel(module, inputs, torch.eye(len(probe)))
        rows[way] = {"per_second": case.batch / fastest(lambda f=found, b=batch: f.rows(b))}
        rows[way] |= compare(own, reference)
    rows[PLAIN]["per_second"] = max(rows[PLAIN]["per_second"], case.batch / fastest(plain))
    if with_peers:
        add_peers(rows, module, case, inputs, probe, exact)
    for row in rows.values():
        if "per_second" in row:
            row["speed"] = row["per_second"] / rows[PLAIN]["per_second"]
    return rows


def opened(module: torch.nn.Module, case: Case, given: FeatureSettings) -> FeatureMap:
    """The feature map of a network."""
    return open_features(module, given, case.inputs(16).numpy())


def plain_pass(
    module: torch.nn.Module, probe: torch.Tensor, batch: torch.Tensor
) -> Callable[[], None]:
    """The standard training pass: one gradient for the whole batch."""

    def run() -> None:
        module.zero_grad(set_to_none=True)
        (module(batch) @ probe).sum().backward()

    return run


def fastest(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Least CPU-seconds of a few runs, after one that is not counted."""
    seconds = []
    for turn in range(repeats + (repeats > 1)):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun if turn or repeats == 1 else np.inf)
    return min(seconds)


def exact_kernel(module: torch.nn.Module, inputs: torch.Tensor, probes: torch.Tensor) -> np.ndarray:
    """sum over probes of <v J(x), v J(x')>, one backward pass for each sample and probe."""
    parameters = list(module.parameters())
    size = sum(p.numel() for p in parameters)
    total = np.zeros((len(inputs), len(inputs)))
    for probe in probes:
        rows = torch.empty(len(inputs), size)
        for place, sample in enumerate(inputs):
            found = torch.autograd.grad(module(sample[None])[0] @ probe, parameters)
            rows[place] = torch.cat([gradient.reshape(-1) for gradient in found])
        for part in rows.split(2**20, dim=1):
            wide = part.double()
            total += (wide @ wide.T).numpy()
    return total


def own_kernel(found: FeatureMap, case: Case, inputs: torch.Tensor) -> np.ndarray:
    """Kernel of the rows of all samples, batch by batch."""
    rows = np.concatenate([found.rows(part.numpy())[0] for part in inputs.split(case.batch)])
    return np.asarray(kernel.gram(rows.astype(np.float64), rows.astype(np.float64), found.layout))


def compare(own: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Relative error after the best factor, and the share of nearest neighbours that agree."""
    own = own * (own * exact).sum() / (own * own).sum()
    top = [
        np.argsort(-k + np.diag([np.inf] * len(k)), axis=1)[:, :NEIGHBOURS] for k in (own, exact)
    ]
    shared = [len(set(a) & set(b)) for a, b in zip(*(t.tolist() for t in top), strict=True)]
    error = np.linalg.norm(own - exact) / np.linalg.norm(exact)
    return {"error": float(error), "overlap": float(np.mean(shared)) / NEIGHBOURS}


def add_peers(
    rows: dict[str, dict[str, Any]],
    module: torch.nn.Module,
    case: Case,
    inputs: torch.Tensor,
    probe: torch.Tensor,
    exact: np.ndarray,
) -> None:
    """Every peer that is installed; dense projectors on small networks only; plain jacrev."""
    size = sum(p.numel() for p in module.parameters())
    for name, make in peers(module, probe, COLUMNS).items():
        if size > 1_000_000 and "LoGra" not in name:
            rows[name] = {"skipped": f"its matrix would have {COLUMNS} x {size:,} entries"}
            continue
        try:
            run = make()
            once, parts = time.process_time(), inputs.split(case.batch)
            found = torch.cat([run(part).detach() for part in parts]).double().numpy()
            seconds = time.process_time() - once
            if "LoGra" in name:
                seconds = fastest(lambda r=run: r(inputs[: case.batch])) * len(inputs) / case.batch
        except ImportError as error:
            rows[name] = {"skipped": str(error)}
            continue
        rows[name] = {"per_second": len(inputs) / seconds} | compare(found @ found.T, exact)
    if size > 4_000_000:
        rows["torch.func.jacrev"] = {"skipped": "one sample's Jacobian takes gigabytes"}
        return
    few = inputs[:2]
    rows["torch.func.jacrev"] = {
        "per_second": len(few) / fastest(lambda: jacobians(module, few), 1)
    }


def jacobians(module: torch.nn.Module, inputs: torch.Tensor) -> None:
    """The whole Jacobian of each sample, as a plain script takes it."""
    state = {name: value.detach() for name, value in module.named_parameters()}
    for sample in inputs:
        torch.func.jacrev(lambda p, x=sample: torch.func.functional_call(module, p, (x[None],)))(
            state
        )


def peak_memory(name: str, way: str) -> float:
    """MiB that the first pass of a fresh process adds to its size."""
    torch.set_num_threads(1)
    case = cases()[name]
    module, batch = case.build().eval(), case.inputs(case.batch)
    work: Callable[[], Any]
    if way == PLAIN:
        work = plain_pass(module, torch.ones(module(batch[:1]).shape[1]), batch)
    else:
        found = open_features(module, settings(name)[way], batch[:2].numpy())
        rows = batch.numpy()

        def work() -> Any:
            return found.rows(rows)

    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    base = _status("VmRSS")
    work()
    return (_status("VmHWM") - base) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key + ":")))


def child(*arguments: str) -> Any:
    """Run this file in a process of its own and read the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Everything in lines; a value that misses its goal is marked."""
    head = ("network", "way", "samples/s", "speed", "error", "top 10", "MiB")
    lines = ["{:8} {:24} {:>10} {:>9} {:>8} {:>7} {:>7}".format(*head)]
    for name, rows in found.items():
        for way, row in rows.items():
            if "skipped" in row:
                lines.append(f"{name:8} {way:24} not run: {row['skipped']}")
                continue
            cells = [_cell(row, key) for key in ("per_second", "speed", "error", "overlap")]
            memory = _cell(row, "memory_mib")
            missed = ", ".join(misses(name, way, rows))
            line = "{:8} {:24} {:>10} {:>9} {:>8} {:>7} {:>7}".format(name, way, *cells, memory)
            lines.append(f"{line}  below goal: {missed}" if missed else line)
    return "\n".join(lines)


def misses(name: str, way: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    """The goals that a way does not reach."""
    goals, row, found = GOALS.get((name, way), {}), rows[way], []
    for key, goal in goals.items():
        at_most = key in ("error", "memory")
        value = row["memory_mib"] / rows[PLAIN]["memory_mib"] if key == "memory" else row[key]
        if value > goal if at_most else value < goal:
            found.append(f"{key} {value:.3g} ({'at most' if at_most else 'at least'} {goal:g})")
    return found


def _cell(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3g}" if key in row else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure feature rows.")
    parser.add_argument("--networks", nargs="+", default=list(cases()), choices=list(cases()))
    parser.add_argument("--peers", action="store_true", help="other libraries too, if installed")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/features.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
