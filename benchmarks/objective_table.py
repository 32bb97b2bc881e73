"""Audit three real data sets with all five objectives and tabulate what the newton stage found.

    python benchmarks/fetch.py adult --to .cache/data
    python benchmarks/fetch.py fashion-mnist --to .cache/data
    python -m benchmarks.objective_table --work /tmp/objectives --write docs/objectives.md

Each network is pretrained with the objective that audits it. A finished audit in the work folder is
not run again; the page keeps everything outside the two marker lines.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace

OBJECTIVES = ("barlow-twins", "vicreg", "simclr", "byol", "spectral-contrastive")
DATA = {
    "digits": ("digits",),
    "adult": ("adult",),
    "fashion-mnist": (
        "fashion-mnist",
        "source.limit=10000",
        "network.factory=krepes_ooc.network.zoo:mlp",
        "network.arguments={inputs: 784, hidden: [256, 256], outputs: 64}",
        "stages.features={}",
    ),
}
HEADS = (
    "objective",
    "damping",
    "rho",
    "loss",
    "products (to 1e-3)",
    "grid products",
    "passes",
    "CPU-seconds",
    "dA/A0",
    "df/f",
    "stability",
    "residual",
    "trusted",
)


def audit(data: str, objective: str, work: Path, until: str = "newton") -> Path:
    """Run one audit up to a stage, unless it is there already; its workspace."""
    name, *settings = DATA[data]
    settings += [f"stages.pretrain.objective={objective}", f"stages.newton.objective={objective}"]
    workspace = work / f"{data}-{objective}"
    run(Recipe.load(name, tuple(settings)), workspace, Options(until=until, restart_stale=True))
    return workspace


def measure(workspace: Path) -> dict[str, Any]:
    """What the newton stage of a finished audit found."""
    group = zarr.open_group(str(workspace / "audit.zarr"), mode="r", use_consolidated=False)
    newton = group["newton"]
    facts, arrays = dict(newton.attrs), {name: a[:] for name, a in newton.arrays()}
    at = int(np.flatnonzero(arrays["damping_relative"] == facts["damping_relative"])[0])
    seal = Workspace(workspace).record("newton", "newton").seal() or {}
    return {
        "samples": group["kernel/values"].sizes[1],
        "landmarks": arrays["step"].sizes[0],
        "components": arrays["step"].sizes[1],
        "facts": {k: facts[k] for k in facts if k != "diagnostics"},
        "diagnostics": facts["diagnostics"],
        "products_to_1e-3": _products_to(arrays["residual"], 1e-3, facts["solver"]),
        "seconds": seal.get("cpu_seconds", seal.get("seconds")),
        "step_norm": float(arrays["step_norm"][at]),
        "embedding_change": float(arrays["embedding_change"][at]),
        "stability": float(arrays["stability"][at]),
        "sweep": {
            name: arrays[name].tolist()
            for name in ("damping_relative", "loss", "rho", "step_norm", "embedding_change")
        },
    }


def _products_to(residual: np.ndarray, tolerance: float, solver: str) -> int:
    """Products until the recursion sees this residual; 0 if the step was solved directly."""
    below = np.flatnonzero(residual <= tolerance)
    return 0 if solver == "direct" else int(below[0]) + 1 if below.size else len(residual)


def row(objective: str, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    facts, products = found["facts"], found["diagnostics"]["products"]
    return [
        objective,
        f"{facts['damping_relative']:g}",
        f"{facts['rho']:.2f}",
        f"{facts['loss_start']:.4g} -> {facts['loss_step']:.4g}",
        "direct" if facts["solver"] == "direct" else str(found["products_to_1e-3"]),
        str(products["grid"] + products["preconditioner"]),
        str(found["diagnostics"]["passes"]),
        f"{found['seconds']:.1f}",
        f"{found['step_norm']:.2f}",
        f"{found['embedding_change']:.2f}",
        f"{found['stability']:.2f}",
        f"{facts['residual_norm']:.0e}",
        "yes" if facts["trusted"] else "no",
    ]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def page(found: dict[str, dict[str, Any]]) -> str:
    """The measured part of the page: one table for each data set."""
    parts = []
    for data, results in found.items():
        if not results:
            continue
        first = next(iter(results.values()))
        sizes = f"n = {first['samples']:,}, m = {first['landmarks']}, h = {first['components']}"
        lines = [row(objective, one) for objective, one in results.items()]
        parts += [f"### {data} ({sizes})", "", table(HEADS, lines), ""]
    return "\n".join(parts)


def write(path: Path, text: str, part: str = "measured") -> None:
    """Put what was measured between the two marker lines of a part of a page."""
    begin, end = (f"<!-- {part}: {edge} -->" for edge in ("begin", "end"))
    old = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    head, _, rest = old.partition(begin)
    tail = rest.partition(end)[2]
    path.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the workspaces")
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--write", type=Path, help="page to update")
    parser.add_argument("--json", type=Path, help="file for all figures")
    chosen = parser.parse_args()
    found: dict[str, dict[str, Any]] = {data: {} for data in chosen.data}
    for data in chosen.data:
        for objective in chosen.objectives:
            found[data][objective] = measure(audit(data, objective, chosen.work))
            print(data, *row(objective, found[data][objective]), sep=" | ", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if chosen.write:
        write(chosen.write, page(found))


if __name__ == "__main__":
    main()
