"""Peak memory of every stage, each in a fresh process, beside the plan made for it just before.

A process is fresh when it has loaded the libraries and computed nothing: it is forked from one that
has only imported them, which saves the seconds of importing them for every stage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

COLUMNS = 24


def write_recipe(folder: Path, samples: int, landmarks: int) -> Path:
    """A table of numbers, a wide untrained encoder, few components: large arrays, little time."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(samples, COLUMNS)) @ draw.normal(size=(COLUMNS, COLUMNS))
    names = ",".join(f"c{i}" for i in range(COLUMNS))
    np.savetxt(folder / "rows.csv", rows, fmt="%.4f", delimiter=",", header=names, comments="")
    recipe = {
        "recipe": "peaks",
        "source": {"kind": "table", "path": "rows.csv"},
        "views": {"count": 2, "corruption": 0.3},
        "network": {
            "factory": "krepes_ooc.network.zoo:mlp",
            "arguments": {"inputs": COLUMNS, "hidden": [512, 512], "outputs": 32},
            "weights": "factory",
        },
        "stages": {
            "landmarks": {"count": landmarks},
            "audited": {"audit": 200, "fit": 3000},
            "spectrum": {"components": 12},
            "newton": {"objective": "barlow-twins"},
        },
    }
    path = folder / "peaks.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def forked(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a child process, as JSON."""
    here, there = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(there, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(there)
    with os.fdopen(here, "rb") as stream:
        text = stream.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit("a stage failed")
    return json.loads(text)


def measure(path: Path, workspace: Path, memory: int, workers: int) -> list[dict[str, Any]]:
    """Plan and peak of every stage, run one after the other."""
    from krepes_ooc.recipes import Recipe
    from krepes_ooc.runner import Options, make_plan, run

    recipe = Recipe.load(str(path))

    def plan() -> Any:
        return make_plan(recipe, workspace, Options(memory=memory, workers=workers))["stages"]

    def sealed(name: str) -> Any:
        options = Options(memory=memory, workers=workers, only=name)
        run(recipe, workspace, options)
        text = (workspace / ".krepes/stages" / name / "seal.json").read_text()
        return json.loads(text)["body"]["anonymous_peak"]

    found = []
    for name in [stage.name for stage in recipe.stages]:
        row = next(row for row in forked(plan) if row["stage"] == name)
        peak = forked(lambda name=name: sealed(name))
        found.append(
            {
                "stage": name,
                "planned": row["memory_bytes"],
                "peak": peak,
                "workers": row["workers"],
            }
        )
    return found


def main() -> None:
    """``peaks.py FOLDER SAMPLES LANDMARKS MEMORY WORKERS``: print the rows as JSON."""
    folder, samples, landmarks, memory, workers = Path(sys.argv[1]), *map(int, sys.argv[2:])
    import dask.threaded
    import torch
    import zarr

    assert dask.threaded
    assert torch
    assert zarr
    path = write_recipe(folder, samples, landmarks)
    print(json.dumps(measure(path, folder / "w", memory, workers)))


if __name__ == "__main__":
    main()
