"""Cost of the moments of groups relative to the moment pass, and of a re-solve.

    python benchmarks/group_moments.py [--samples 20000] [--landmarks 1000] [--groups 50]
                                       [--memory 2GiB] [--workers 2] [--workspace DIR]

A synthetic table through an untrained encoder; one partition by a categorical column. Every stage
is run alone in a process of its own, so that its seal records its time, CPU time and memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

COLUMNS = 24
STAGES = ("moments", "group_moments", "group_influence")


def write_recipe(folder: Path, samples: int, landmarks: int, groups: int) -> Path:
    """A table of correlated numbers, and a level for every row."""
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(COLUMNS, COLUMNS))
    names = [f"c{i}" for i in range(COLUMNS)]
    with (folder / "rows.csv").open("w", encoding="utf-8") as file:
        file.write(",".join([*names, "level"]) + "\n")
        for _ in range(0, samples, 10_000):
            rows = draw.normal(size=(min(10_000, samples), COLUMNS)) @ mixing
            level = draw.integers(groups, size=len(rows))
            for row, code in zip(rows, level, strict=True):
                file.write(",".join(f"{value:.4f}" for value in row) + f",g{code}\n")
    recipe = {
        "recipe": "group-moments",
        "source": {
            "kind": "table",
            "path": "rows.csv",
            "audit_only": ["level"],
            "categorical": ["level"],
            "limit": samples,
        },
        "views": {"count": 2, "corruption": 0.3},
        "network": {
            "factory": "krepes_ooc.network.zoo:mlp",
            "arguments": {"inputs": COLUMNS, "hidden": [64, 64], "outputs": 32},
            "weights": "factory",
        },
        "stages": {
            "landmarks": {"count": landmarks, "sampler": "uniform"},
            "groups": {"clusters": 0, "columns": {"level": []}},
        },
    }
    path = folder / "group-moments.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def run(path: Path, workspace: Path, given: argparse.Namespace, *more: str) -> None:
    """One ``krepes run`` in a process of its own."""
    sizes = ("--memory", given.memory, "--workers", str(given.workers))
    command = [sys.executable, "-m", "krepes_ooc", "run", str(path), "-w", str(workspace)]
    subprocess.run([*command, *sizes, "--quiet", *more], check=True)


def facts(workspace: Path, stage: str) -> dict[str, float]:
    """What the seal of a stage records of its cost."""
    text = (workspace / ".krepes" / "stages" / stage / "seal.json").read_text()
    body = json.loads(text)["body"]
    keys = ("seconds", "cpu_seconds", "anonymous_peak", "bytes")
    return {key: body[key] for key in keys if key in body}


def main() -> None:
    """Run the stages before, then each measured stage alone; print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--landmarks", type=int, default=1000)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--workspace", type=Path)
    given = parser.parse_args()
    folder = given.workspace or Path(tempfile.mkdtemp(prefix="krepes-groups-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = write_recipe(folder, given.samples, given.landmarks, given.groups)
    workspace = folder / "w"
    run(path, workspace, given, "--until", "kernel")
    for stage in ("moments", "groups", "group_moments"):
        run(path, workspace, given, "--only", stage)
    run(path, workspace, given, "--until", "newton")
    for stage in ("audited", "minimiser", "group_influence"):
        run(path, workspace, given, "--only", stage)
    found = {stage: facts(workspace, stage) for stage in STAGES}
    cpu = {stage: values.get("cpu_seconds", 0.0) for stage, values in found.items()}
    summary = {
        "samples": given.samples,
        "landmarks": given.landmarks,
        "groups": given.groups,
        "stages": found,
        "group_moments_over_moments": cpu["group_moments"] / max(cpu["moments"], 1e-9),
        "cpu_seconds_a_group": cpu["group_influence"] / (given.groups + 1),
    }
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
