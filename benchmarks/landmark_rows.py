"""Rows that stand for the landmarks, side by side on one network: clean, views and both.

    python benchmarks/landmark_rows.py WORK [--recipe digits] [--count 256]

Features are computed once under WORK; every choice then solves the same audit over them. Figures go
into ``benchmarks/results/landmark-rows.json``: how the kernel over the views is rebuilt, how the
embedding agrees with the network, and how the rankings agree with labels and with the network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "landmark-rows.json"
ROWS = ("clean", "views", "both")
# Figures of the table in docs/results.md, in its order.
SHOWN = (
    *("rows", "nystrom_error", "ridge_ceiling", "cka", "kendall_tau", "accuracy_gap"),
    *("neighbour_overlap", "precision_at_1", "precision_at_1_kernel", "cpu_seconds"),
)
STAGES = (
    *("pretrain", "features", "landmarks", "audited", "kernel", "moments", "spectrum"),
    *("newton", "minimiser", "influence", "fidelity"),
)


def measure(workspace: Path, recipe: str, count: int, rows: str) -> dict[str, Any]:
    """Figures of the audit with one choice of rows."""
    changes = (f"stages.landmarks.count={count}", f"stages.landmarks.rows={rows}")
    for stage in STAGES:
        options = Options(only=stage, workers=1, restart_stale=True)
        run(Recipe.load(recipe, changes), workspace, options)
    space = Workspace(workspace)
    figures = space.reader("fidelity").attributes["figures"]
    overlap, precision = figures["neighbour_overlap"], figures["precision_at_1"]
    seconds = sum((space.record(s, s).seal() or {})["cpu_seconds"] for s in STAGES[2:])
    return {
        "rows": space.reader("spectrum").info("start").shape[0],
        "nystrom_error": space.reader("spectrum").attributes["nystrom_error"],
        "ridge_ceiling": figures["ridge_ceiling"]["value"],
        "cka": figures["cka"]["value"],
        "kendall_tau": figures["kendall_tau"]["value"],
        "accuracy_gap": figures["accuracy_gap"]["value"],
        "neighbour_overlap": overlap["value"],
        "neighbour_overlap_kernel": overlap["controls"]["kernel"],
        "precision_at_1": precision["value"],
        "precision_at_1_kernel": precision["controls"]["kernel"],
        "precision_at_1_paper": precision["controls"]["paper"],
        "solution": space.reader("influence").attributes["solution"],
        "cpu_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rows", default=",".join(ROWS))
    given = parser.parse_args()
    for rows in given.rows.split(","):
        found = measure(given.work / given.recipe, given.recipe, given.count, rows)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        key = f"{given.recipe}-{given.count}"
        results[key] = results.get(key, {}) | {rows: found}
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True, allow_nan=False) + "\n")
        print(rows, json.dumps(found))


if __name__ == "__main__":
    main()
