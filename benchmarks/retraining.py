"""Group influence against networks that were trained again without each group.

    python benchmarks/retraining.py WORK [--cells digits-vicreg,adult-vicreg] [--list]

Every cell is a whole audit with stage retraining, in a workspace of its own under WORK; an
interrupted one goes on where it stopped, a finished one is read. Figures with their controls go
into ``benchmarks/results/retraining.json``, one entry a cell. Settings (damping of the re-solve,
start, anchors, components of the controls) were chosen on digits and are those of the package.
Adult and Fashion-MNIST are fetched first: ``python benchmarks/fetch.py adult --to .cache/data``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krepes_ooc.engine import machine
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "retraining.json"
OBJECTIVES = ("barlow-twins", "vicreg", "simclr", "byol")
MOMENT_OBJECTIVES = ("barlow-twins", "vicreg")
MLP = "network.arguments={inputs: 784, hidden: [256, 256], outputs: 64}"
CLUSTERS = ("stages.groups.columns={}", "stages.groups.clusters=12")
SIZES = (
    *("stages.landmarks.count=256", "stages.spectrum.components=32"),
    *("stages.audited.audit=300", "stages.audited.fit=1000", "stages.concepts.sets={}"),
)


@dataclass(frozen=True)
class Cell:
    """One data set, network and objective.

    Args:
        recipe: shipped recipe.
        objective: of the demo trainer and of the audit.
        seeds: trainings of each set.
        changes: overrides.
    """

    recipe: str
    objective: str
    seeds: int
    changes: tuple[str, ...]

    def load(self) -> Recipe:
        """The recipe with its overrides."""
        return Recipe.load(
            self.recipe,
            (
                *SIZES,
                *self.changes,
                f"stages.pretrain.objective={self.objective}",
                f"stages.newton.objective={self.objective}",
                "stages.retraining.enabled=true",
                f"stages.retraining.seeds={self.seeds}",
            ),
        )


def cells() -> dict[str, Cell]:
    """All cells by name, cheap ones first."""
    halves = (*CLUSTERS, "stages.groups.halves=12")
    adult = ("source.limit=8000", "stages.groups.clusters=0")
    # Two categories of the 48,842 rows do not occur among these.
    adult += ("network.arguments={inputs: 105, hidden: [256, 256], outputs: 64}",)
    adult += ("stages.groups.columns={occupation: []}", "stages.alignment.groups=[]")
    fashion = ("network.factory=krepes_ooc.network.zoo:mlp", MLP, "stages.features={}", *CLUSTERS)
    cnn = ("source.limit=5000", *CLUSTERS)
    found = {f"digits-{name}": Cell("digits", name, 5, halves) for name in OBJECTIVES}
    found |= {f"adult-{name}": Cell("adult", name, 3, adult) for name in MOMENT_OBJECTIVES}
    found |= {
        f"fashion-{name}": Cell("fashion-mnist", name, 3, fashion) for name in MOMENT_OBJECTIVES
    }
    return found | {"fashion-cnn-barlow-twins": Cell("fashion-mnist", "barlow-twins", 3, cnn)}


def measure(name: str, cell: Cell, work: Path) -> dict[str, Any]:
    """Run a cell to the end of the stage; its figures."""
    workspace, recipe = work / name, cell.load()
    spent = [cpu_seconds()]
    for until in ("group_influence", "retraining"):
        run(recipe, workspace, Options(until=until, workers=1, restart_stale=True))
        spent.append(cpu_seconds())
    # Of this process alone: less than the whole where the cell was resumed.
    cost = {"before": spent[1] - spent[0], "after group_influence": spent[2] - spent[1]}
    return entry(workspace) | {"cpu_seconds": cost, "numerics": machine.numerics("cpu")}


def entry(workspace: Path) -> dict[str, Any]:
    """Figures of a finished cell, from its stores."""
    space = Workspace(workspace)
    found, predicted = space.reader("retraining"), space.reader("group_influence")
    seal = space.record("retraining", "retraining").seal() or {}
    groups = len(found.attributes["names"]) - len(found.attributes["reasons"])
    return {
        "figures": found.attributes["figures"],
        "agreement": table_of(found),
        "trainings": len(found.array("seed")) * (1 + groups),
        "seconds_of_training": seal["seconds_of_training"],
        "groups": groups,
        "reasons": found.attributes["reasons"],
        "repeatable": found.attributes["repeatable"],
        "method": predicted.attributes["method"],
        "damping_relative": predicted.attributes["damping_relative"],
    }


def table_of(found: Any) -> dict[str, dict[str, Any]]:
    """Value and interval of every predictor under every measure."""
    value, low, high = (found.array(f"agreement{end}") for end in ("", "_low", "_high"))
    measures = list(found.attributes["measures"])
    return {
        predictor: {
            measure: [_rounded(ends[p, m]) for ends in (value, low, high)]
            for m, measure in enumerate(measures)
        }
        for p, predictor in enumerate(found.attributes["predictors"])
    }


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def print_cell(name: str, found: Mapping[str, Any]) -> None:
    """Figures of one cell beside the best control of each."""
    print(f"{name}: {found['trainings']} trainings of {found['seconds_of_training']:.1f} s")
    for key, figure in found["figures"].items():
        if figure["value"] is None:
            print(f"  {key}: {figure['reason']}")
            continue
        ends = " to ".join(f"{end:.2f}" for end in figure["interval"] or ())
        beside = [f"{k} {v:.2f}" for k, v in figure["controls"].items() if v is not None]
        print(f"  {key}: {figure['value']:.2f} ({ends}); {', '.join(beside)}")


def cpu_seconds() -> float:
    """Processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cells", default=",".join(cells()))
    parser.add_argument("--list", action="store_true", help="print trainings and stop")
    given = parser.parse_args()
    known = cells()
    for name in given.cells.split(","):
        if given.list:
            print(name, make_plan(known[name].load(), given.work / name, timed=True)["trainings"])
            continue
        found = measure(name, known[name], given.work)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        temporary = RESULTS.with_suffix(".tmp")
        temporary.write_text(
            json.dumps(results | {name: found}, indent=1, sort_keys=True, allow_nan=False) + "\n"
        )
        os.replace(temporary, RESULTS)
        print_cell(name, found)


if __name__ == "__main__":
    main()
