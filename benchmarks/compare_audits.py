"""Audits side by side: Barlow Twins, VICReg, another seed and random weights.

    python benchmarks/compare_audits.py WORK [--recipe digits]

Each audit is a workspace of its own under WORK; an interrupted one goes on where it stopped, a
finished one is read. The first one is then compared with the others; figures go into
``benchmarks/results/compare-RECIPE.json``, the page into WORK.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from krepes_ooc.rendering.comparison import Comparison
from krepes_ooc.rendering.comparison_page import build_comparison_page
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.comparison.compare import compare
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run

RESULTS = Path(__file__).parent / "results"
AUDITS = {
    "bt": (),
    "vicreg": ("stages.pretrain.objective=vicreg", "stages.newton.objective=vicreg"),
    "seed1": ("seed=1",),
    "random": ("network.weights=factory",),
}


def entry(comparison: Comparison) -> dict[str, Any]:
    """Figures of a comparison, without its samples."""
    record = comparison.record()
    for pair in record["pairs"]:
        pair["samples"] = len(pair["samples"])
        pair["landmarks"] = len(pair["landmarks"])
        pair["concepts"].pop("pairs")
        pair.pop("groups")
    return record


def main() -> None:
    """Run what is missing, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--memory", type=float, default=2.0, help="GiB of a run")
    arguments = parser.parse_args()
    options = Options(workers=1, memory=int(arguments.memory * 2**30))
    for name, changes in AUDITS.items():
        recipe = Recipe.load(arguments.recipe, (*arguments.changes, *changes))
        run(recipe, arguments.work / name, options)
    comparison = compare([arguments.work / name for name in AUDITS])
    page = arguments.work / "comparison.html"
    page.write_text(build_comparison_page(comparison), encoding="utf-8")
    name = Path(arguments.recipe).stem
    target = RESULTS / f"compare-{name}.json"
    target.write_text(json.dumps(entry(comparison), indent=1) + "\n")
    print(f"wrote {target} and {page}")


if __name__ == "__main__":
    main()
