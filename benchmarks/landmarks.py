"""Compare the landmark samplers on one network: what they miss of its kernel, and what they cost.

    python benchmarks/landmarks.py digits --counts 64 128 256
    python benchmarks/landmarks.py adult --workspace /tmp/samplers

The recipe's features are computed once in a workspace of their own; every sampler then chooses its
landmarks over the same store. Two errors are given, both 0 if nothing is missed:

    trace_error      mean of k(x, x) - k_x K_mm^+ k_x over the mean of k(x, x), samples and views
    frobenius_error  |K - K_nm K_mm^+ K_mn|_F / |K|_F among samples of the first block, view 0

The first counts every direction alike, the second the large ones more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.features.inner_products import centre_self, unscale
from krepes_ooc.stages.kernel.kernel_map import landmark_kernel
from krepes_ooc.stages.kernel.normalisation import Normalisation
from krepes_ooc.stages.spectrum.nystrom import eigenpairs
from krepes_ooc.storage.workspace import Workspace

SAMPLERS = ("kmeans-parallel", "kmeans++", "leverage", "uniform")
COLUMNS = (
    "sampler",
    "landmarks",
    "seconds",
    "trace_error",
    "frobenius_error",
    "usable_rank",
    "dimension",
    "classes",
)
ROWS = 1024


def measure(workspace: Path, recipe: str, sampler: str, count: int) -> dict[str, Any]:
    """Choose landmarks, then kernel, moments and spectrum; figures of this choice."""
    overrides = (
        f"stages.landmarks.sampler={sampler}",
        f"stages.landmarks.count={count}",
        "stages.spectrum.components=auto",
    )
    run(Recipe.load(recipe, overrides), workspace, Options(until="spectrum", restart_stale=True))
    space = Workspace(workspace)
    seal = space.record("landmarks", "landmarks").seal() or {}
    facts, landmarks = space.reader("spectrum").attributes, space.reader("landmarks")
    label = landmarks.array("label")
    return {
        "sampler": sampler,
        "landmarks": count,
        "seconds": float(seal.get("seconds", float("nan"))),
        "trace_error": float(facts["nystrom_error"]),
        "frobenius_error": frobenius_error(space, int(facts["usable_rank"])),
        "usable_rank": int(facts["usable_rank"]),
        "dimension": float(facts["effective_dimension"]),
        "classes": len(np.unique(label[label >= 0])),
    }


def frobenius_error(space: Workspace, rank: int) -> float:
    """The error among the first samples of the store, whose rows are in shuffled order."""
    features, kernel = space.reader("features"), space.reader("kernel")
    block = BlockPlan.from_attributes(features.attributes["block_plan"]).block(0)
    layout = FeatureLayout.from_attributes(features.attributes["layout"])
    centre = features.array("centre")
    stored = features.block("values", block)[:ROWS].astype(np.float64)
    facts = kernel.attributes
    normalisation = Normalisation(facts["normalise"], centre_self(centre), float(facts["scale"]))
    K = np.asarray(landmark_kernel(unscale(stored, layout), layout, centre, normalisation))
    values, U = eigenpairs(kernel.array("landmark_kernel"))
    rows = kernel.block("values", block)[:ROWS].astype(np.float64) @ U[:, :rank]
    return float(np.linalg.norm(K - rows / values[:rank] @ rows.T) / np.linalg.norm(K))


def measurements(
    workspace: Path, recipe: str, samplers: list[str], counts: list[int]
) -> Iterator[dict[str, Any]]:
    """Every sampler at every count."""
    for count in counts:
        for sampler in samplers:
            yield measure(workspace, recipe, sampler, count)


def as_line(row: dict[str, Any]) -> str:
    """One row of the table."""
    cells = [f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS]
    return " ".join(f"{cell:>15}" for cell in cells)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, print a table or JSON lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", help="a shipped recipe or a .yaml file")
    parser.add_argument("--workspace", type=Path, help="kept; default: a folder that is removed")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--counts", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="krepes-landmarks-") as folder:
        workspace = given.workspace or Path(folder) / "w"
        if not given.json:
            print(" ".join(f"{name:>15}" for name in COLUMNS), flush=True)
        for row in measurements(workspace, given.recipe, given.samplers, given.counts):
            print(json.dumps(row) if given.json else as_line(row), flush=True)


if __name__ == "__main__":
    main()
