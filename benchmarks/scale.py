"""A whole audit at any number of samples, and what every stage of it costs beside its floor.

    python benchmarks/scale.py --samples 1000000 --landmarks 1000 --memory 2GiB

The rows are Adult, bootstrapped with jitter: rows drawn with replacement, every number moved by a
twentieth of its standard deviation. They keep Adult's columns and dependencies and hold no new
people, so this is a benchmark of the engine and no result about Adult.

The floor of a stage is what its arithmetic and its bytes cost at rates measured in this process:
forward and backward pass of the plain network for the rows, matrix products at the sgemm (dgemm
where the stage works in float64) rate, stored bytes at the rates of memory and of this disk. Ratios
are of CPU-seconds, which a busy machine does not stretch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from krepes_ooc.engine.calibration import Rates, calibrate  # noqa: E402

GROUP_ROWS = 2**15
JITTER = 0.05
BATCH = 256
DOUBLE = ("spectrum", "newton", "influence", "fidelity", "alignment", "concepts", "report")


def main() -> None:
    asked = _parser().parse_args()
    asked.folder = asked.folder.resolve()
    name = f"scale-{asked.samples}-{asked.landmarks}-{asked.objective}-{asked.features}.json"
    asked.out = asked.out or ROOT / "benchmarks/results" / name
    asked.folder.mkdir(parents=True, exist_ok=True)
    table = bootstrap(asked.adult, asked.folder / f"adult-{asked.samples}.parquet", asked.samples)
    weights = pretrained(asked)
    recipe, workspace = write_recipe(asked, table, weights)
    before = calibrate(asked.folder)
    plan = krepes("plan", recipe, workspace, asked, "--json")
    begun, load = time.monotonic(), Path("/proc/loadavg").read_text().split()[0]
    peak = follow(command("run", recipe, workspace, asked, "--quiet"))
    wall = time.monotonic() - begun
    rates = slower(before, calibrate(asked.folder))
    rows = [measured(stage, workspace, asked, rates, plan) for stage in plan["stages"]]
    found = {
        "samples": asked.samples,
        "landmarks": asked.landmarks,
        "objective": asked.objective,
        "features": asked.features,
        "memory": asked.memory,
        "workers": asked.workers,
        "load_at_start": float(load),
        "wall": wall,
        "peak_anonymous": peak,
        "rates": vars(rates),
        "newton": newton_facts(workspace),
        "stages": rows,
        "whole": whole(rows),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table_of(found))
    print(f"written: {asked.out}")
    if not asked.keep:
        shutil.rmtree(workspace)
        table.unlink()


def bootstrap(adult: Path, target: Path, samples: int, seed: int = 0) -> Path:
    """Adult bootstrapped with jitter; one row of every category comes first, so none is lost."""
    if target.exists():
        return target
    source = pq.read_table(adult)
    draw = np.random.default_rng(seed)
    covering = [rows_of_each_category(source.column(name)) for name in source.column_names]
    first = np.unique(np.concatenate(covering))[:samples]
    spread = {
        name: float(np.std(source.column(name).to_numpy()))
        for name in source.column_names
        if pa.types.is_integer(source.schema.field(name).type)
        or pa.types.is_floating(source.schema.field(name).type)
    }
    part, writer = target.with_suffix(".part"), None
    for start in range(0, samples, GROUP_ROWS):
        count = min(GROUP_ROWS, samples - start)
        rows = draw.integers(source.num_rows, size=count)
        if start == 0:
            rows[: len(first)] = first
        table = source.take(pa.array(rows))
        for name, size in spread.items():
            moved = table.column(name).to_numpy() + draw.normal(0, JITTER * size, count)
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, pa.array(moved))
        writer = writer or pq.ParquetWriter(part, table.schema)
        writer.write_table(table, row_group_size=GROUP_ROWS)
    assert writer is not None
    writer.close()
    part.rename(target)
    return target


def rows_of_each_category(column: Any) -> np.ndarray:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return np.empty(0, dtype=np.int64)
    values = column.combine_chunks()
    return np.array([pc.index(values, value).as_py() for value in pc.unique(values)])


def pretrained(asked: argparse.Namespace) -> Path:
    """Weights of the encoder, trained for a few epochs on the 48,842 rows of Adult."""
    hidden = "x".join(map(str, asked.hidden))
    target = asked.folder / f"encoder-{hidden}.safetensors"
    if not target.exists():
        workspace = asked.folder / "pretraining"
        sets = [
            f"network.arguments={{inputs: 107, hidden: {list(asked.hidden)}, outputs: 64}}",
            "stages.pretrain.epochs=3",
            f"source.path={asked.adult.resolve()}",
        ]
        overrides = [text for each in sets for text in ("--set", each)]
        subprocess.run(
            [*KREPES, "run", "adult", "-w", str(workspace), "--until", "pretrain", *overrides],
            check=True,
            cwd=ROOT,
        )
        shutil.copyfile(workspace / ".krepes/checkpoints/network.safetensors", target)
        shutil.rmtree(workspace)
    return target


def write_recipe(asked: argparse.Namespace, table: Path, weights: Path) -> tuple[Path, Path]:
    """The recipe of the run and its (fresh) workspace."""
    name = asked.name or f"scale-{asked.samples}-{asked.landmarks}-{asked.features}"
    features: dict[str, Any] = {"kind": asked.features, "forward_batch": BATCH}
    if asked.features == "sketch":
        features["sketch"] = asked.sketch
    recipe = {
        "recipe": name,
        "source": {"kind": "table", "path": table.name, "label": "income", "exclude": ["fnlwgt"]},
        "views": {"count": 2, "corruption": 0.3},
        "network": {
            "factory": "krepes_ooc.network.zoo:mlp",
            "arguments": {"inputs": 107, "hidden": list(asked.hidden), "outputs": 64},
            "weights": weights.name,
        },
        "stages": {
            "features": features,
            "landmarks": {"count": asked.landmarks},
            "spectrum": {"components": 64},
            "newton": {"objective": asked.objective},
        },
    }
    path = asked.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    workspace = asked.folder / name
    if not asked.resume:
        shutil.rmtree(workspace, ignore_errors=True)
    return path, workspace


KREPES = [sys.executable, "-m", "krepes_ooc"]


def command(
    verb: str, recipe: Path, workspace: Path, asked: argparse.Namespace, *more: str
) -> list[str]:
    """One command line of krepes."""
    given = ["-w", str(workspace), "--memory", asked.memory, "--workers", str(asked.workers)]
    again = ["--restart-stale"] if verb == "run" else []
    return [*KREPES, verb, str(recipe), *given, *again, *more]


def krepes(verb: str, recipe: Path, workspace: Path, asked: argparse.Namespace, *more: str) -> Any:
    line = command(verb, recipe, workspace, asked, *more)
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\nexit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def follow(line: list[str]) -> int:
    """Run a command; its largest anonymous memory in bytes, looked at every 50 ms."""
    with subprocess.Popen(line, cwd=ROOT) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(line)}\nexit {process.returncode}")
    return peak


def anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def measured(
    stage: dict[str, Any], workspace: Path, asked: argparse.Namespace, rates: Rates, plan: Any
) -> dict[str, Any]:
    """One row: what the seal says beside the floor and the plan."""
    name = stage["stage"]
    seal = json.loads((workspace / ".krepes/stages" / name / "seal.json").read_bytes())["body"]
    floor = floor_of(stage, asked, rates, plan["shape"])
    if name == "newton":
        floor = streamed_floor(newton_facts(workspace), rates, plan["shape"]) or floor
    cpu = seal["cpu_seconds"]
    return {
        "stage": name,
        "wall": seal["seconds"],
        "cpu_seconds": cpu,
        "floor": floor,
        "ratio": cpu / floor if floor else None,
        "anonymous_peak": seal["anonymous_peak"],
        "planned_peak": stage["memory_bytes"],
        "bytes": seal["bytes"],
        "planned_bytes": stage["disk_bytes"],
    }


def floor_of(
    stage: dict[str, Any], asked: argparse.Namespace, rates: Rates, shape: dict[str, int]
) -> float:
    """CPU-seconds that the stage cannot go below at the measured rates."""
    name, n, views = stage["stage"], shape["n_samples"], shape["n_views"]
    m, width, size = shape["n_landmarks"], shape["n_features"], shape["kernel_itemsize"]
    flops, read = stage["flops"], 0.0
    network = 0.0
    if name == "features":
        flops = 2.0 * n * views * shape["n_moments"]
        network = n * views * network_seconds(asked)
    elif name == "audited":
        flops, network = 0.0, shape["n_audited"] * network_seconds(asked)
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


def network_seconds(asked: argparse.Namespace) -> float:
    """CPU-seconds of one forward and backward pass of the plain network, for one row."""
    import torch

    from krepes_ooc.engine.calibration import fastest
    from krepes_ooc.network.zoo import mlp

    torch.set_num_threads(1)
    network = mlp(inputs=107, hidden=list(asked.hidden), outputs=64)
    rows = torch.randn(BATCH, 107)
    return fastest(lambda: network(rows).sum().backward(), 20) / BATCH


def slower(first: Rates, second: Rates) -> Rates:
    """Mean of two calibrations, before and after the run."""
    both = {key: (value + vars(second)[key]) / 2 for key, value in vars(first).items()}
    return Rates(**both)


def newton_facts(workspace: Path) -> dict[str, Any]:
    from krepes_ooc import Workspace

    attributes = Workspace(workspace).reader("newton").attributes
    keys = ("solver", "damping_relative", "rho", "products", "iterations", "trusted")
    return {key: attributes.get(key) for key in keys} | {
        "passes": attributes.get("diagnostics", {}).get("passes")
    }


def whole(rows: list[dict[str, Any]]) -> dict[str, Any]:
    cpu, floor = (sum(row[key] for row in rows) for key in ("cpu_seconds", "floor"))
    return {
        "cpu_seconds": cpu,
        "floor": floor,
        "ratio": cpu / floor,
        "bytes": sum(row["bytes"] for row in rows),
    }


def table_of(found: dict[str, Any]) -> str:
    lines = [
        f"n = {found['samples']:,}, m = {found['landmarks']:,}, {found['objective']}, "
        f"{found['features']}, --memory {found['memory']}, {found['workers']} workers; "
        f"sgemm {found['rates']['single'] / 1e9:.0f} GFLOP a CPU-second",
        f"{'stage':<12}{'wall s':>9}{'CPU s':>9}{'floor s':>9}{'ratio':>7}"
        f"{'anon MiB':>10}{'plan MiB':>10}{'GB':>8}{'plan GB':>9}",
    ]
    lines += [
        f"{row['stage']:<12}{row['wall']:>9.1f}{row['cpu_seconds']:>9.1f}{row['floor']:>9.1f}"
        f"{row['ratio'] or 0:>7.2f}{row['anonymous_peak'] / 2**20:>10.0f}"
        f"{row['planned_peak'] / 2**20:>10.0f}{row['bytes'] / 1e9:>8.2f}"
        f"{row['planned_bytes'] / 1e9:>9.2f}"
        for row in found["stages"]
    ]
    total = found["whole"]
    lines.append(
        f"{'whole':<12}{found['wall']:>9.1f}{total['cpu_seconds']:>9.1f}{total['floor']:>9.1f}"
        f"{total['ratio']:>7.2f}{found['peak_anonymous'] / 2**20:>10.0f}{'':>10}"
        f"{total['bytes'] / 1e9:>8.2f}"
    )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--landmarks", type=int, default=1000)
    parser.add_argument("--objective", default="barlow-twins")
    parser.add_argument("--features", default="factors", choices=["factors", "sketch"])
    parser.add_argument("--sketch", type=int, default=1024)
    parser.add_argument(
        "--hidden", type=lambda t: tuple(map(int, t.split(","))), default=(512, 512)
    )
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--adult", type=Path, default=ROOT / ".cache/data/adult.parquet")
    parser.add_argument("--folder", type=Path, default=Path("scale-workspace"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--name", help="recipe and workspace; objectives may share one")
    parser.add_argument("--keep", action="store_true", help="keep the workspace")
    parser.add_argument("--resume", action="store_true", help="go on in an existing workspace")
    return parser


if __name__ == "__main__":
    main()
