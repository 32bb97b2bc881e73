"""Speed, error and memory of feature rows beside plain training passes and other libraries.

    python benchmarks/features.py --networks vit
    python benchmarks/features.py --networks mlp --peers
    python benchmarks/features.py --table

Speeds are samples per CPU-second on one thread, relative to the standard forward and backward pass
of the same network in the same process. Every way runs in turn with the plain pass, again and
again, and the fastest turn of each counts, so a busy machine matters little. Errors are of the
kernel, relative to the Frobenius norm, against gradients of plain autograd with the same probe
(``8 probes``: against the trace kernel over all outputs), after the best common factor. Memory is
the growth of a fresh process over its size before the first pass.
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
from benchmarks.features_peers import peers, traker_projector  # noqa: E402
from krepes_ooc.jacobian.feature_map import FeatureMap, FeatureSettings, open_features  # noqa: E402
from krepes_ooc.stages.features import inner_products  # noqa: E402

COLUMNS = 4096
NEIGHBOURS = 10
TURN_SECONDS, ALL_SECONDS, MOST_TURNS = 0.06, 10.0, 60
PLAIN = "forward and backward"
MOST_DENSE, MOST_JACREV = 1_000_000, 4_000_000
# Goals: speed at least, error at most, overlap at least, memory over that of the plain pass.
PAIR = {"error": 0.04, "overlap": 0.95, "memory": 2.0}
GOALS = {
    ("mlp", "factors"): {"speed": 1.4, "error": 1e-4, "memory_mib": 64},
    ("mlp", "sketch"): {"error": 0.06, "overlap": 0.95, "memory_mib": 64},
    ("vit", "sketch"): {"speed": 0.75, **PAIR},
    ("resnet", "sketch"): {"speed": 0.65, **PAIR},
    ("cnn", "sketch"): PAIR,
    ("cnn", "8 probes"): {"error": 0.08, "memory": 2.0},
}
AT_MOST = ("error", "memory", "memory_mib")


def main() -> None:
    """Measure each network in a process of its own; print a table and write JSON."""
    asked = _parser().parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.peers)))
        return
    if asked.memory:
        print(json.dumps(peak_memory(*asked.memory)))
        return
    for name in [] if asked.table else asked.networks:
        rows = child("--one", name, *["--peers"] * asked.peers)
        for way in (PLAIN, *settings(name)):
            rows[way]["memory_mib"] = child("--memory", name, way)
            rows[way]["memory"] = rows[way]["memory_mib"] / rows[PLAIN]["memory_mib"]
        asked.out.mkdir(parents=True, exist_ok=True)
        _file(asked.out, name).write_text(json.dumps({name: rows}, indent=1) + "\n")
    files = [path for name in asked.networks if (path := _file(asked.out, name)).is_file()]
    print(table({k: v for path in files for k, v in json.loads(path.read_text()).items()}))


def _file(folder: Path, name: str) -> Path:
    return folder / f"features-{name}.json"


def settings(name: str) -> dict[str, FeatureSettings]:
    """The ways that are measured on a network."""
    sketch = FeatureSettings(kind="sketch", probes=1, deflated_probes=0, sketch=COLUMNS)
    if name == "mlp":
        return {
            "factors": FeatureSettings(kind="factors", probes=1, deflated_probes=0),
            "sketch": sketch,
        }
    if name == "cnn":
        eight = FeatureSettings(kind="sketch", probes=4, deflated_probes=4, sketch=COLUMNS)
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
    works: dict[str, Callable[[], Any]] = {PLAIN: plain}
    rows: dict[str, dict[str, Any]] = {PLAIN: {}}
    exact = exact_kernel(module, inputs, probe[None])
    batch = inputs[: case.batch].numpy()
    for way, found in maps.items():
        own, reference = own_kernel(found, case, inputs), exact
        if way == "8 probes":
            reference = exact_kernel(module, inputs, torch.eye(len(probe)))
        rows[way] = compare(own, reference)
        works[way] = lambda f=found: f.rows(batch)
    if with_peers:
        rows |= peer_rows(works, module, case, inputs, probe, exact)
    for way, found in in_turns(works, case.batch).items():
        rows[way] |= found
    for row in rows.values():
        if "per_second" in row:
            row.setdefault("speed", row["per_second"] / rows[PLAIN]["per_second"])
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


def in_turns(works: dict[str, Callable[[], Any]], batch: int) -> dict[str, dict[str, float]]:
    """Speed of every way from its fastest turn, and from the median ratio to the plain turn.

    A turn is as many passes as the plain one runs in TURN_SECONDS, the same number for all.
    """
    single = {way: _turn(work, 1) for way, work in works.items()}
    single = {way: min(single[way], _turn(work, 1)) for way, work in works.items()}
    passes = max(1, round(TURN_SECONDS / single[PLAIN]))
    turns = int(ALL_SECONDS / (passes * sum(single.values())))
    turns = min(MOST_TURNS, max(8, turns))
    seconds = {way: np.empty(turns) for way in works}
    for turn in range(turns):
        for way, work in works.items():
            seconds[way][turn] = _turn(work, passes)
    return {
        way: {
            "per_second": batch / float(found.min()),
            "median_speed": float(np.median(seconds[PLAIN] / found)),
            "turns": turns,
            "passes": passes,
        }
        for way, found in seconds.items()
    }


def _turn(work: Callable[[], Any], passes: int) -> float:
    """CPU-seconds of one pass."""
    begun = time.process_time()
    for _ in range(passes):
        work()
    return (time.process_time() - begun) / passes


def exact_kernel(module: torch.nn.Module, inputs: torch.Tensor, probes: torch.Tensor) -> np.ndarray:
    """sum over probes of <v J(x), v J(x')>: each sample alone, one backward pass for each probe."""
    parameters = list(module.parameters())
    size = sum(p.numel() for p in parameters)
    rows = torch.empty(len(inputs), len(probes), size)
    for place, sample in enumerate(inputs):
        output = module(sample[None])[0]
        for index, probe in enumerate(probes):
            found = torch.autograd.grad(output @ probe, parameters, retain_graph=True)
            rows[place, index] = torch.cat([gradient.reshape(-1) for gradient in found])
    total = np.zeros((len(inputs), len(inputs)))
    for part in rows.flatten(1).split(2**20, dim=1):
        wide = part.double()
        total += (wide @ wide.T).numpy()
    return total


def own_kernel(found: FeatureMap, case: Case, inputs: torch.Tensor) -> np.ndarray:
    """Kernel of the rows of all samples, batch by batch."""
    rows = np.concatenate([found.rows(part.numpy())[0] for part in inputs.split(case.batch)])
    return np.asarray(
        inner_products.gram(rows.astype(np.float64), rows.astype(np.float64), found.layout)
    )


def compare(own: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Relative error after the best factor, and the share of nearest neighbours that agree."""
    own = own * (own * exact).sum() / (own * own).sum()
    top = [
        np.argsort(-k + np.diag([np.inf] * len(k)), axis=1)[:, :NEIGHBOURS] for k in (own, exact)
    ]
    shared = [len(set(a) & set(b)) for a, b in zip(*(t.tolist() for t in top), strict=True)]
    error = np.linalg.norm(own - exact) / np.linalg.norm(exact)
    return {"error": float(error), "overlap": float(np.mean(shared)) / NEIGHBOURS}


def peer_rows(
    works: dict[str, Callable[[], Any]],
    module: torch.nn.Module,
    case: Case,
    inputs: torch.Tensor,
    probe: torch.Tensor,
    exact: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """Every peer that is installed; dense projectors whole on small networks only; plain jacrev.

    Args:
        works: what is timed in turns; LoGra is added, the others are too slow for it.
        module: the network.
        case: its sizes.
        inputs: samples [sample, ...].
        probe: the output direction.
        exact: kernel of plain autograd with this probe.
    """
    size = sum(p.numel() for p in module.parameters())
    rows: dict[str, dict[str, Any]] = {}
    for name, make in peers(module, probe, COLUMNS).items():
        try:
            run = make()
            if size > MOST_DENSE and "LoGra" not in name:
                rows[name] = extrapolated(name, module, probe, inputs)
                continue
            begun, parts = time.process_time(), inputs.split(case.batch)
            found = torch.cat([run(part).detach() for part in parts]).double().numpy()
            seconds = time.process_time() - begun
        except ImportError as error:
            rows[name] = {"skipped": str(error)}
            continue
        rows[name] = compare(found @ found.T, exact)
        if "LoGra" in name:
            works[name] = lambda r=run: r(inputs[: case.batch])
        else:
            rows[name]["per_second"] = len(inputs) / seconds
    few = inputs[:2]
    rows["torch.func.jacrev"] = {"skipped": "one sample's Jacobian takes gigabytes"}
    if size <= MOST_JACREV:
        seconds = _turn(lambda: jacobians(module, few), 1)
        rows["torch.func.jacrev"] = {"per_second": len(few) / seconds}
    return rows


def extrapolated(
    name: str, module: torch.nn.Module, probe: torch.Tensor, inputs: torch.Tensor
) -> dict[str, Any]:
    """A dense projector timed on the first parameters, its time scaled to all of them."""
    if "traker" not in name:
        return {"skipped": "the same cost as traker's, which is extrapolated"}
    size = sum(p.numel() for p in module.parameters())
    few = torch.randn(len(inputs), MOST_DENSE // 5)
    project = traker_projector(few.shape[1], COLUMNS)
    seconds = _turn(lambda: project(few), 1) * size / few.shape[1]
    return {"per_second": len(inputs) / seconds, "extrapolated": True}


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
    head = ("samples/s", "speed", "median", "error", "top 10", "MiB", "ratio")
    form = "{:8} {:24} {:>10} {:>9} {:>9} {:>8} {:>7} {:>7} {:>6}"
    lines = [form.format("network", "way", *head)]
    for name, rows in found.items():
        for way, row in rows.items():
            if "skipped" in row:
                lines.append(f"{name:8} {way:24} not run: {row['skipped']}")
                continue
            keys = ("per_second", "speed", "median_speed", "error", "overlap")
            cells = [_cell(row, key) for key in keys]
            memory = [_cell(row, key) for key in ("memory_mib", "memory")]
            missed = verdict(name, way, row)
            if row.get("extrapolated"):
                missed = "projection only, timed on a part of the parameters and scaled"
            line = form.format(name, way, *cells, *memory)
            lines.append(f"{line}  {missed}" if missed else line)
        lines += beside_peers(name, rows)
    return "\n".join(lines)


def beside_peers(name: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    """The sketch over each peer: speed, and the peer's error over its own."""
    own, lines = rows["sketch"], []
    for peer, row in rows.items():
        if peer in (PLAIN, *settings(name)) or "per_second" not in row:
            continue
        faster = own["per_second"] / row["per_second"]
        words = f"sketch: {faster:.3g} times as fast as {peer}"
        if "error" in row:
            words += f", whose error is {row['error'] / own['error']:.3g} times as large"
        lines.append(f"{name:8} {words}")
    return lines


def verdict(name: str, way: str, row: dict[str, Any]) -> str:
    """Every goal of a way, and whether it is met."""
    words = []
    for key, goal in GOALS.get((name, way), {}).items():
        met = row[key] <= goal if key in AT_MOST else row[key] >= goal
        sign = "at most" if key in AT_MOST else "at least"
        words.append(f"{key} {sign} {goal:g} {'met' if met else 'NOT MET'}")
    return ", ".join(words)


def _cell(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3g}" if key in row else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure feature rows.")
    parser.add_argument("--networks", nargs="+", default=list(cases()), choices=list(cases()))
    parser.add_argument("--peers", action="store_true", help="other libraries too, if installed")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="a folder")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
