"""The damped minimiser on a finished workspace: damping against tau, accuracy gap and CKA.

    python benchmarks/minimiser.py WORKSPACE [--objective vicreg] [--evaluations 2000]

The rule picks a damping without labels: the largest one whose likeness is near the best.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from krepes_ooc.core.settings import read_settings
from krepes_ooc.stages.fidelity.metrics import kendall_tau, linear_probe
from krepes_ooc.stages.minimiser.likeness import choose_damping, network_likeness
from krepes_ooc.stages.minimiser.minimise import minimise
from krepes_ooc.stages.minimiser.stage import RELATIVE_GRID
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.levenberg_marquardt import levenberg_marquardt
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.preconditioners import Kronecker, KroneckerPath
from krepes_ooc.stages.newton.solvers import choose_solver
from krepes_ooc.storage.workspace import Workspace

HEAD = (
    "| coefficients | loss | gradient | evaluations | s | tau | gap, points | CKA fit | CKA audit |"
)


class Table:
    """Rows of the table: probes on K A against the probe on the network's embedding."""

    def __init__(self, space: Workspace) -> None:
        audited = space.reader("audited")
        role, self.label = audited.array("role"), audited.array("label")
        self.fit, self.audit = role == 1, role == 0
        self.kernel = space.reader("influence").array("kernel")
        self.network = audited.array("network_embedding").astype(np.float64)
        self.truth = self.probe(self.network)

    def probe(self, rows: np.ndarray) -> Any:
        fit, audit, label = self.fit, self.audit, self.label
        return linear_probe(rows[fit], label[fit], rows[audit], label[audit])

    def row(
        self,
        words: str,
        A: np.ndarray,
        loss: float,
        spent: float = 0.0,
        gradient: float = float("nan"),
        evaluations: int = 0,
    ) -> float:
        """Print one row; gives the CKA on the fit samples."""
        probe = self.probe(self.kernel @ A)
        tau = kendall_tau(probe.true_probability, self.truth.true_probability)
        gap = 100 * (probe.accuracy - self.truth.accuracy)
        likeness, other = (
            network_likeness(self.kernel[part] @ A, self.network[part])
            for part in (self.fit, self.audit)
        )
        print(
            f"| {words} | {loss:.4g} | {gradient:.1e} | {evaluations} | {spent:.1f} | {tau:.3f} "
            f"| {gap:+.1f} | {likeness:.3f} | {other:.3f} |",
            flush=True,
        )
        return likeness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--objective", default="")
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--components", type=int, default=0)
    given = parser.parse_args()
    space = Workspace(given.workspace)
    newton, store = space.reader("newton"), space.reader("moments")
    n_samples = int(store.attributes["n_samples"])
    moments = Moments(store.array("mean"), store.array("second"), n_samples)
    start, offset = (space.reader("spectrum").array(key) for key in ("start", "offset"))
    h = given.components or start.shape[1]
    name = given.objective or str(newton.attributes["objective"])
    audited = name == newton.attributes["objective"] and h == start.shape[1]
    start, offset = start[:, :h], offset[:h]
    settings = dict(newton.attributes["objective_settings"]) if audited else {}
    constants = read_settings(registry.settings_type(name), settings, "newton")
    objective = registry.create(name, constants, moments=moments, start=start, offset=offset)
    at_start = objective.linearise(start)
    table = Table(space)

    print(f"{name}, m {len(start)}, h {h}, network's probe {100 * table.truth.accuracy:.1f} %")
    print(HEAD)
    table.row("start", start, float(at_start.value), gradient=1.0)
    if audited:
        A = newton.array("coefficients")
        table.row("one step", A, float(objective.value(A)))

    def prepare(A: np.ndarray) -> tuple[Any, Any]:
        at = objective.linearise(A)
        return at, choose_solver(at, lambda: Kronecker.build(at, moments))

    began = time.perf_counter()
    descent = levenberg_marquardt(objective, start, prepare, steps=5)
    spent = time.perf_counter() - began
    table.row("5 LM steps", descent.coefficients, float(descent.loss[-1]), spent)
    model, likeness = KroneckerPath.build(at_start, moments), []
    for relative in RELATIVE_GRID:
        began = time.perf_counter()
        damping = relative * float(at_start.mean_diagonal)
        found = minimise(objective, start, damping, model=model, max_evaluations=given.evaluations)
        spent = time.perf_counter() - began
        words = f"lambda_rel {relative:g}" + ("" if found.converged else " (not converged)")
        cost = (spent, found.gradient, found.evaluations)
        likeness.append(table.row(words, found.coefficients, found.loss, *cost))
    chosen = choose_damping(likeness, RELATIVE_GRID)
    print(f"the rule chooses lambda_rel {RELATIVE_GRID[chosen]:g}")


if __name__ == "__main__":
    main()
