"""A whole audit at any number of samples, and what every stage of it costs beside its floor.

    python benchmarks/scale.py --samples 1000000 --landmarks 1000 --memory 2GiB

The rows are Adult, bootstrapped with jitter: rows drawn with replacement, every number moved by a
twentieth of its standard deviation. They keep Adult's columns and dependencies and hold no new
people, so this is a benchmark of the engine and no result about Adult.

Every stage stands beside its floor (benchmarks/floors.py) at rates measured before and after the
run. Ratios are of CPU-seconds, which a busy machine does not stretch. A run can be made in several
processes: ``--until landmarks``, then again with ``--resume``.
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

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bootstrap import bootstrap  # noqa: E402
from benchmarks.floors import (  # noqa: E402
    BATCH,
    EVALUATIONS,
    floor_of,
    minimised_floor,
    streamed_floor,
    table_of,
)
from krepes_ooc.engine.calibration import Rates, calibrate  # noqa: E402


def main() -> None:
    asked = _parser().parse_args()
    asked.folder = asked.folder.resolve()
    name = f"scale-{asked.samples}-{asked.landmarks}-{asked.objective}-{asked.features}.json"
    asked.out = asked.out or ROOT / "benchmarks/results" / name
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not asked.adult.is_file():
        raise SystemExit(
            f"{asked.adult}: no such file; fetch it: python benchmarks/fetch.py adult --to "
            ".cache/data, or name it with --adult"
        )
    table = bootstrap(asked.adult, asked.folder / f"adult-{asked.samples}.parquet", asked.samples)
    recipe, workspace = write_recipe(asked, table, pretrained(asked))
    notes = workspace.with_suffix(".parts.json")
    parts = json.loads(notes.read_text()) if asked.resume and notes.exists() else []
    parts.append(run_part(recipe, workspace, asked))
    notes.write_text(json.dumps(parts))
    if not all(seal(workspace, stage["stage"]).exists() for stage in parts[-1]["plan"]["stages"]):
        print(f"left at {asked.until}; go on with --resume and without --until")
        return
    found = report(parts, workspace, asked)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table_of(found))
    print(f"written: {asked.out}")
    if not asked.keep:
        shutil.rmtree(workspace)
        notes.unlink()
        table.unlink()


def run_part(recipe: Path, workspace: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Plan and run, to the end or to a stage: what one process took, and what was foretold."""
    before = calibrate(asked.folder)
    plan = krepes("plan", recipe, workspace, asked, "--json")
    begun, load = time.monotonic(), float(Path("/proc/loadavg").read_text().split()[0])
    until = ["--until", asked.until] if asked.until else []
    peak = follow(command("run", recipe, workspace, asked, "--quiet", *until))
    wall = time.monotonic() - begun
    return {
        "wall": wall,
        "peak_anonymous": peak,
        "load_at_start": load,
        "rates": [vars(before), vars(calibrate(asked.folder))],
        "plan": plan,
    }


def report(
    parts: list[dict[str, Any]], workspace: Path, asked: argparse.Namespace
) -> dict[str, Any]:
    """Every stage beside its floor and the plan of the process that ran it."""
    rates = mean([each for part in parts for each in part["rates"]])
    shape, newton = parts[-1]["plan"]["shape"], newton_facts(workspace)
    rows = []
    for stages in zip(*(part["plan"]["stages"] for part in parts), strict=True):
        planned = next(stage for stage in reversed(stages) if stage["state"] != "sealed")
        rows.append(measured(planned, workspace, asked, rates, shape, newton))
    return {
        "samples": asked.samples,
        "landmarks": asked.landmarks,
        "objective": asked.objective,
        "features": asked.features,
        "memory": asked.memory,
        "workers": asked.workers,
        "processes": len(parts),
        "load_at_start": max(part["load_at_start"] for part in parts),
        "wall": sum(part["wall"] for part in parts),
        "planned_wall": sum(row["planned_wall"] for row in rows),
        "peak_anonymous": max(part["peak_anonymous"] for part in parts),
        "rates": vars(rates),
        "newton": newton,
        "stages": rows,
        "whole": whole(rows),
    }


def seal(workspace: Path, stage: str) -> Path:
    """The file that says what a finished stage took."""
    return workspace / ".krepes/stages" / stage / "seal.json"


def mean(rates: list[dict[str, float]]) -> Rates:
    """Mean of several calibrations, before and after every process."""
    return Rates(**{key: sum(each[key] for each in rates) / len(rates) for key in rates[0]})


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
    stage: dict[str, Any],
    workspace: Path,
    asked: argparse.Namespace,
    rates: Rates,
    shape: dict[str, int],
    newton: dict[str, Any],
) -> dict[str, Any]:
    """One row: what the seal says beside the floor and the plan."""
    name = stage["stage"]
    sealed = json.loads(seal(workspace, name).read_bytes())["body"]
    floor = floor_of(stage, asked.hidden, rates, shape)
    if name == "newton":
        floor = streamed_floor(newton, rates, shape) or floor
    if name in EVALUATIONS:
        floor = minimised_floor(evaluations(workspace, name), rates, shape)
    cpu = sealed["cpu_seconds"]
    return {
        "stage": name,
        "wall": sealed["seconds"],
        "planned_wall": stage["seconds"],
        "cpu_seconds": cpu,
        "floor": floor,
        "ratio": cpu / floor if floor else None,
        "anonymous_peak": sealed["anonymous_peak"],
        "planned_peak": stage["memory_bytes"],
        "bytes": sealed["bytes"],
        "planned_bytes": stage["disk_bytes"],
    }


def evaluations(workspace: Path, stage: str) -> int:
    """Evaluations of loss and gradient that a stage took; none where it had nothing to minimise."""
    from krepes_ooc.storage.workspace import Workspace

    reader = Workspace(workspace).reader(stage)
    return int(reader.array(EVALUATIONS[stage]).sum()) if reader.has(EVALUATIONS[stage]) else 0


def newton_facts(workspace: Path) -> dict[str, Any]:
    from krepes_ooc.storage.workspace import Workspace

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
    parser.add_argument("--until", help="stop after this stage; go on with --resume")
    return parser


if __name__ == "__main__":
    main()
