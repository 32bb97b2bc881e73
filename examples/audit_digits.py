"""Train and audit a small network on the handwritten digits, then say whether to believe it.

python examples/audit_digits.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from krepes_ooc import Recipe, Workspace, plan, run

SMALL = (
    "source.limit=600",
    "stages.pretrain.epochs=5",
    "stages.landmarks.count=64",
    "stages.audited.audit=60",
    "stages.audited.fit=300",
    "stages.spectrum.components=8",
    "stages.concepts.sets={}",
)


def main(folder: Path) -> None:
    """Plan, run, and read the figures that the report begins with."""
    recipe = Recipe.load("digits", SMALL)
    planned = plan(recipe, folder)
    print(f"{len(planned['stages'])} stages, {planned['disk']['needed'] / 2**20:.0f} MiB to write")

    summary = run(recipe, folder, workers=2)
    print(f"trusted: {summary.trusted}; report: {summary.workspace / 'report.html'}")

    for name, figure in Workspace(folder)["fidelity"].attrs["figures"].items():
        if figure["value"] is not None:
            print(f"{name:20} {figure['value']:.3f}  beside it: {figure['controls']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
