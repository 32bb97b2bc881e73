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
# How far a plan may lie above the peak, and how often a peak is looked for.
NEAR, TRIES, SAMPLED_SECONDS = 1.25, 3, 0.002
# Further looks at stages that have been measured, the last stage first, since nothing after a stage
# that is computed anew is up to date any more.
AGAIN = (
    ("newton", "stages.newton.objective=byol"),
    ("newton", "stages.newton.objective=simclr", "stages.newton.max_iterations=3"),
    ("newton", "stages.newton.objective=vicreg"),
)


def write_recipe(folder: Path, samples: int, landmarks: int) -> Path:
    """A table of numbers, a wide untrained encoder, few components: large arrays, little time."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(samples, COLUMNS)) @ draw.normal(size=(COLUMNS, COLUMNS))
    kind = (rows[:, :1] > 0).astype(np.int64)
    names = ",".join([*(f"c{i}" for i in range(COLUMNS)), "kind"])
    form = ["%.4f"] * COLUMNS + ["k%d"]
    table = np.concatenate([rows, kind], axis=1)
    np.savetxt(folder / "rows.csv", table, form, delimiter=",", header=names, comments="")
    recipe = {
        "recipe": "peaks",
        "source": {"kind": "table", "path": "rows.csv", "label": "kind"},
        "views": {"count": 2, "corruption": 0.3},
        "network": {
            "factory": "krepes_ooc.network.zoo:mlp",
            "arguments": {"inputs": COLUMNS, "hidden": [512, 512], "outputs": 32},
            "weights": "factory",
        },
        "stages": {
            "landmarks": {"count": landmarks},
            "audited": {"audit": 500, "fit": 3500},
            "spectrum": {"components": 16},
            "newton": {"objective": "barlow-twins"},
            # Repetitions: a few fill the same memory as many.
            "minimiser": {"max_evaluations": 40},
            "group_influence": {"max_evaluations": 25},
            "randomised": {"draws": 3},
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


def measure(
    path: Path, workspace: Path, memory: int, workers: int, name: str, *changes: str
) -> dict[str, Any]:
    """Plan and peak of one stage; what it reads is sealed.

    On a busy machine a sample can come too late to see the peak: one that looks too low is measured
    again, and the highest counts.
    """
    from krepes_ooc.engine import machine
    from krepes_ooc.runner.audit import Options
    from krepes_ooc.runner.plan import make_plan
    from krepes_ooc.runner.recipe import Recipe
    from krepes_ooc.runner.run import run

    recipe = Recipe.load(str(path), changes)

    def plan() -> Any:
        rows = make_plan(recipe, workspace, Options(memory=memory, workers=workers))["stages"]
        return next(row for row in rows if row["stage"] == name)

    def sealed() -> Any:
        machine.INTERVAL_SECONDS = SAMPLED_SECONDS
        options = Options(memory=memory, workers=workers, only=name, restart_stale=True)
        run(recipe, workspace, options)
        text = (workspace / ".krepes/stages" / name / "seal.json").read_text()
        return json.loads(text)["body"]["anonymous_peak"]

    planned, peak = forked(plan), forked(sealed)
    for _ in range(TRIES - 1):
        if planned["memory_bytes"] > NEAR * peak:
            workspace.joinpath(".krepes/stages", name, "seal.json").unlink()
            peak = max(peak, forked(sealed))
    return {
        "stage": " ".join([name, *changes]),
        "planned": planned["memory_bytes"],
        "peak": peak,
        "workers": planned["workers"],
    }


def measure_all(path: Path, workspace: Path, memory: int, workers: int) -> list[dict[str, Any]]:
    """Every stage in its order, then those of ``AGAIN``."""
    from krepes_ooc.errors import Stopped
    from krepes_ooc.runner.audit import Options
    from krepes_ooc.runner.recipe import Recipe
    from krepes_ooc.runner.run import run

    recipe = Recipe.load(str(path))

    def scan() -> None:
        """Look at the source once: the first look reads all of it, later ones what that noted."""
        try:
            run(recipe, workspace, Options(max_seconds=0))
        except Stopped:
            return

    forked(scan)
    given = (path, workspace, memory, workers)
    found = [measure(*given, stage.name) for stage in recipe.stages]
    return found + [measure(*given, *again) for again in AGAIN]


def main() -> None:
    """``peaks.py FOLDER SAMPLES LANDMARKS MEMORY WORKERS``: print the rows as JSON."""
    folder, samples, landmarks, memory, workers = Path(sys.argv[1]), *map(int, sys.argv[2:])
    import dask.threaded
    import torch
    import zarr

    assert dask.threaded
    assert zarr
    torch.manual_seed(0)  # the encoder is drawn anew in every process
    path = write_recipe(folder, samples, landmarks)
    print(json.dumps(measure_all(path, folder / "w", memory, workers)))


if __name__ == "__main__":
    main()
