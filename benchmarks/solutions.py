"""Which claims of the method hold at the damped minimum: coefficients side by side.

    python benchmarks/solutions.py WORK [--cells digits-vicreg] [--write docs/results.md]

Every cell is an audit, in a workspace of its own under WORK, finished where it is not. Start, one
step, further steps, minimiser and distilled coefficients are judged on its audit samples by the
same functions; figures go to ``benchmarks/results/solutions.json``. Networks, sizes and settings
are those of ``benchmarks/retraining.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from retraining import MOMENT_OBJECTIVES, OBJECTIVES, SIZES

from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.fidelity.confidence_drop import (
    confidence_drop,
    knn_shares,
    largest,
    random_landmarks,
    remove_from_sum,
)
from krepes_ooc.stages.fidelity.metrics import kendall_tau, linear_probe
from krepes_ooc.stages.fidelity.neighbour_overlap import nearest_landmarks, sample_overlap
from krepes_ooc.stages.influence.ranking import ranking_score
from krepes_ooc.stages.minimiser.likeness import network_likeness
from krepes_ooc.storage.workspace import Workspace
from krepes_ooc.views.spec import CLEAN

RESULTS = Path(__file__).parent / "results" / "solutions.json"
ADULT = (
    "source.limit=8000",
    "network.arguments={inputs: 105, hidden: [256, 256], outputs: 64}",
    "stages.alignment.groups=[]",
)
COLUMNS = (
    *("tau", "gap, points", "CKA", "nearest of the network", "P@1", "drop, top 10"),
    *("drop, largest kernel", "drop, random"),
)
ORDER = ("start", "one step", "further steps", "minimiser", "distilled", "plain kernel")
TOP = 10


def cells() -> dict[str, Recipe]:
    """Recipes by name of the cell."""
    names = {f"digits-{name}": ("digits", name, ()) for name in OBJECTIVES}
    names |= {f"adult-{name}": ("adult", name, ADULT) for name in OBJECTIVES}
    return {cell: _recipe(*parts) for cell, parts in names.items()}


def _recipe(recipe: str, objective: str, changes: tuple[str, ...]) -> Recipe:
    chosen = (f"stages.pretrain.objective={objective}", f"stages.newton.objective={objective}")
    return Recipe.load(recipe, (*SIZES, *changes, *chosen))


def measure(work: Path, name: str, recipe: Recipe) -> dict[str, Any]:
    """Finish the audit as far as it is needed; figures by coefficients."""
    run(recipe, work / name, Options(until="spectrum", workers=1))
    for stage in ("newton", "minimiser", "influence", "distilled"):
        run(recipe, work / name, Options(only=stage, workers=1))
    space = Workspace(work / name)
    judge = Judge(space, recipe)
    start, offset = (space.reader("spectrum").array(key) for key in ("start", "offset"))
    newton, minimiser = space.reader("newton"), space.reader("minimiser")
    solutions = {"one step": newton.array("coefficients")}
    if newton.has("coefficients_lm"):
        solutions["further steps"] = newton.array("coefficients_lm")
    if minimiser.has("coefficients_minimiser"):
        solutions["minimiser"] = minimiser.array("coefficients_minimiser")
    found = {"start": judge.figures(start, offset, None)}
    found |= {key: judge.figures(A, offset, A - start) for key, A in solutions.items()}
    distilled = space.reader("distilled")
    if distilled.attributes["defined"]:
        A = distilled.array("distilled")
        found["distilled"] = judge.figures(A, distilled.array("offset"), A)
    found["plain kernel"] = judge.kernel_figures()
    return {
        "chosen": minimiser.attributes["solution"],
        "damping_relative": minimiser.attributes["damping_relative"],
        "probe of the network, %": round(100 * judge.truth.accuracy, 1),
        "solutions": found,
    }


class Judge:
    """Audit and fit samples of one workspace, and the figures of any coefficients on them."""

    def __init__(self, space: Workspace, recipe: Recipe) -> None:
        audited = space.reader("audited")
        role, self.label = audited.array("role"), audited.array("label")
        self.fit, self.audit = role == 1, role == 0
        self.kernel = space.reader("influence").array("kernel")
        self.network = audited.array("network_embedding").astype(np.float64)
        self.landmark_kernel = space.reader("kernel").whole("landmark_kernel")
        self.landmark_label = space.reader("landmarks").array("label")
        self.sample_id = audited.array("sample_id")[self.audit]
        self.n_classes = int(self.label.max()) + 1
        inputs = Audit(recipe, space).inputs
        encoded, _ = inputs.encode(space.reader("landmarks").array("sample_id"), CLEAN)
        with torch.no_grad():
            embedded = inputs.network(torch.from_numpy(encoded)).numpy().astype(np.float64)
        self.nearest = nearest_landmarks(self.network[self.audit], embedded, TOP)
        self.truth = self._probe(self.network)

    def _probe(self, rows: np.ndarray) -> Any:
        fit, audit, label = self.fit, self.audit, self.label
        return linear_probe(rows[fit], label[fit], rows[audit], label[audit])

    def figures(
        self, A: np.ndarray, offset: np.ndarray, step: np.ndarray | None
    ) -> dict[str, float | None]:
        """Figures of the embedding K A + gamma, and of the ranking that the step makes."""
        embedding = self.kernel @ A + offset
        probe = self._probe(embedding)
        kernel = self.kernel[self.audit]
        found: dict[str, float | None] = {
            "tau": kendall_tau(probe.true_probability, self.truth.true_probability),
            "gap, points": 100 * (probe.accuracy - self.truth.accuracy),
            "CKA": network_likeness(embedding[self.audit], self.network[self.audit]),
        }
        if step is None:
            return found
        scores = ranking_score("aligned", step, self.landmark_kernel @ step)(kernel)
        found |= self._ranking(scores)
        m = len(self.landmark_kernel)
        removed = {
            "drop, top 10": largest(scores, TOP),
            "drop, largest kernel": largest(np.abs(kernel), TOP),
            "drop, random": random_landmarks(self.sample_id, m, TOP, 0),
        }
        return found | {key: self._drop(embedding, A, rows) for key, rows in removed.items()}

    def kernel_figures(self) -> dict[str, float | None]:
        """The ranking by the kernel alone."""
        return self._ranking(self.kernel[self.audit])

    def _ranking(self, scores: np.ndarray) -> dict[str, float | None]:
        first = self.landmark_label[scores.argmax(axis=1)]
        return {
            "nearest of the network": float(sample_overlap(scores, self.nearest).mean()),
            "P@1": float(np.mean(first == self.label[self.audit])),
        }

    def _drop(self, embedding: np.ndarray, A: np.ndarray, removed: np.ndarray) -> float:
        """Mean loss of k-NN confidence without some landmarks of each sample."""
        audit, reference = embedding[self.audit], embedding[self.fit]
        label = self.label[self.fit]
        left = remove_from_sum(audit, self.kernel[self.audit], A, removed)
        shares = (knn_shares(rows, reference, label, self.n_classes) for rows in (audit, left))
        return float(confidence_drop(*shares).mean())


def table(results: dict[str, Any]) -> str:
    """The results as a table."""
    lines = ["| cell | coefficients | " + " | ".join(COLUMNS) + " |"]
    lines.append("|" + " --- |" * (len(COLUMNS) + 2))
    for name, cell in sorted(results.items(), key=lambda item: list(cells()).index(item[0])):
        for solution in filter(cell["solutions"].get, ORDER):
            figures = cell["solutions"][solution]
            shown = [figures.get(column) for column in COLUMNS]
            numbers = ["-" if value is None else f"{value:.3g}" for value in shown]
            lines.append(f"| {name} | {solution} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def write_table(path: Path, text: str) -> None:
    """Put the table between the marks of a document."""
    marked = r"(<!-- solutions: begin -->\n).*?(<!-- solutions: end -->)"
    document = path.read_text()
    path.write_text(re.sub(marked, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", document, flags=re.S))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    order = [f"{data}-{name}" for data in ("digits", "adult") for name in MOMENT_OBJECTIVES]
    order += [name for name in cells() if name not in order]
    parser.add_argument("--cells", default=",".join(order), help="'': only write the table")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in filter(None, given.cells.split(",")):
        results[name] = measure(given.work, name, cells()[name])
        temporary = RESULTS.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, RESULTS)
        print(table({name: results[name]}), flush=True)
    if given.write:
        write_table(given.write, table(results))


if __name__ == "__main__":
    main()
