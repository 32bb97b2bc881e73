"""The paper's tables on real data: five data sets, four objectives, several seeds, every control.

    for set in adult protein census mnist fashion-mnist
        do python benchmarks/fetch.py $set --to .cache/data; done
    python -m benchmarks.paper choose --data .cache/data --work /tmp/paper
    python -m benchmarks.paper report --data .cache/data --work /tmp/paper --write docs/results.md

``choose`` varies one setting at a time on digits and Adult, the only sets on which defaults are
chosen. ``report`` runs the recipes with the defaults on the sets of the tables. Each cell is an
audit of a network pretrained with the objective that audits it. What has been measured is kept in
the work folder: an interrupted command goes on where it was, inside an audit too. ``page`` writes
the page from what is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from benchmarks.paper_cells import (
    CHOICES,
    CHOOSING,
    DATA,
    OBJECTIVES,
    SWEPT,
    VARIANTS,
    Cell,
    forget,
    measure,
    prepare,
)
from benchmarks.paper_page import write_page
from krepes_ooc.errors import StageFailed

REPORTED = ("adult", "protein", "census", "mnist", "fashion-mnist")
# Curves over landmarks are shown for these; components need no audit of their own.
CURVES = ("adult", "mnist")
LANDMARKS = ("m = 64", "m = 128", "m = 256", "m = 512")
# Spectral entropy against the probe's accuracy, over dampings.
ENTROPY = ("mnist", "barlow-twins")


def cells(chosen: argparse.Namespace) -> Iterator[Cell]:
    """All cells of a command, those of one network together."""
    choosing = chosen.command == "choose"
    data = chosen.sets or (CHOOSING if choosing else REPORTED)
    # Seeds outside: an early stop leaves whole tables of few seeds.
    for seed, name, objective in product(range(chosen.seeds), data, chosen.objectives):
        for variant in (chosen.variants or CHOICES) if choosing else ("default",):
            yield Cell(name, objective, seed, variant, frozen=not choosing)
    for name, objective in product(data, chosen.objectives):
        for variant in () if choosing else _curve(name, objective):
            yield Cell(name, objective, 0, variant, frozen=True)


def _curve(name: str, objective: str) -> tuple[str, ...]:
    """Audits of one network that differ by one setting, for a curve."""
    landmarks = LANDMARKS if (name in CURVES and objective == "barlow-twins") else ()
    swept = tuple(f"damping {value:g}" for value in SWEPT) if (name, objective) == ENTROPY else ()
    return landmarks + swept


def run_cells(chosen: argparse.Namespace) -> None:
    """Measure what is missing; an audit whose data or network are unfit is told and left out."""
    todo = list(cells(chosen))
    prepare(chosen.data)
    for index, cell in enumerate(todo):
        begun = time.monotonic()
        try:
            found = measure(cell, chosen.data, chosen.work)
        except StageFailed as error:
            print(f"{cell.workspace} {cell.variant}: {error}", file=sys.stderr, flush=True)
            continue
        tau = found["figures"].get("kendall_tau", {}).get("value")
        print(
            f"{index + 1}/{len(todo)} {cell.workspace} {cell.variant}: tau "
            f"{'-' if tau is None else format(tau, '.3f')}, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        last = index + 1 == len(todo) or todo[index + 1].workspace != cell.workspace
        if last and not chosen.keep:
            forget(cell, chosen.work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("choose", "report", "page"))
    parser.add_argument("--data", type=Path, default=Path(".cache/data"), help="fetched files")
    parser.add_argument("--work", type=Path, required=True, help="workspaces and figures")
    parser.add_argument("--sets", nargs="*", choices=list(DATA), help="default: by the command")
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="networks per cell")
    parser.add_argument("--keep", action="store_true", help="keep the workspaces")
    parser.add_argument("--write", type=Path, help="page to update")
    chosen = parser.parse_args()
    if chosen.command != "page":
        run_cells(chosen)
    if chosen.write:
        write_page(chosen.work / "figures", chosen.write)


if __name__ == "__main__":
    main()
