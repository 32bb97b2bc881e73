"""Does the damping rule choose well? Every damping of the grid beside measures it does not see.

    python -m benchmarks.damping_rule --work /tmp/objectives --write docs/objectives.md

For each data set and objective the step of every damping is judged on the audited samples: P@1 of
the influence score |k| |dA_l| and of the aligned score max(k, 0) cos(df_t, df_l), and the agreement
of a linear probe on the embedding f = K (A0 + dA) + gamma with one on the network's own embedding.
The rule sees the loss and the size of the step only, never a label.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from sklearn.linear_model import RidgeClassifier
from threadpoolctl import threadpool_limits

from benchmarks.objective_table import DATA, OBJECTIVES, audit, table, write
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.core.settings import read_settings
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.damping import (
    RELATIVE_GRID,
    absolute_damping,
    choose_damping,
    evaluate_sweep,
)
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.preconditioners import Kronecker, RotationDeflation
from krepes_ooc.stages.newton.solvers import choose_solver

AUDIT, FIT = 0, 1
BLOCK = 4096


@dataclass(frozen=True)
class InMemory:
    """A stored kernel, held whole as float16."""

    values: Any

    @property
    def n_samples(self) -> int:
        return int(self.values.shape[1])

    @property
    def n_views(self) -> int:
        return int(self.values.shape[0])

    def reduce(self, function: Any) -> tuple[Any, ...]:
        totals: tuple[Any, ...] = ()
        for index, start in enumerate(range(0, self.n_samples, BLOCK)):
            stop = min(start + BLOCK, self.n_samples)
            views = tuple(to_float32(view[start:stop]) for view in self.values)
            parts = function(views, Block(index, start, stop))
            totals = tuple(t + p for t, p in zip(totals, parts, strict=True)) if totals else parts
        return totals


def sweep_of(group: Any) -> tuple[Any, np.ndarray]:
    """The judged sweep and all its steps, solved again from the stores."""
    facts = dict(group["newton"].attrs)
    name, start, offset = (
        facts["objective"],
        group["spectrum/start"][:],
        group["spectrum/offset"][:],
    )
    moments = Moments(
        group["moments/mean"][:], group["moments/second"][:], group["kernel/values"].shape[1]
    )
    objective = registry.create(
        name,
        read_settings(registry.settings_type(name), facts["objective_settings"], name),
        moments=moments,
        stream=InMemory(group["kernel/values"][:]),
        start=start,
        offset=offset,
    )
    here = objective.linearise(start)
    model: Any = Kronecker.build(here, moments)
    if objective.rotation_invariant:
        model = RotationDeflation.build(model, start)
    grid = np.array(RELATIVE_GRID)
    solver = choose_solver(here, lambda: model, tolerance=facts["tolerance"])
    solution = solver.solve(absolute_damping(grid, here, start))
    losses = objective.values(start[..., None] + solution.step)
    return evaluate_sweep(losses, here, start, solution, grid, moments, offset), solution.step


def measures(group: Any, step: np.ndarray) -> dict[str, float]:
    """P@1 of both scores, and the agreement of probes."""
    role, label = group["audited/role"][:], group["audited/label"][:]
    rows, K = group["influence/kernel"][:], group["kernel/landmark_kernel"][:]
    owner = group["landmarks/label"][:]
    audited, fit = role == AUDIT, role == FIT
    k = rows[audited]
    size = np.linalg.norm(step, axis=1)
    moved, marks = k @ step, K @ step
    cosine = _unit(moved) @ _unit(marks).T
    hit = {
        "P@1 IS": owner[np.argmax(np.abs(k) * size, axis=1)] == label[audited],
        "P@1 aligned": owner[np.argmax(np.maximum(k, 0) * cosine, axis=1)] == label[audited],
    }
    f = rows @ (group["spectrum/start"][:] + step) + group["spectrum/offset"][:]
    network = group["audited/network_embedding"][:].astype(np.float64)
    own, theirs = (
        RidgeClassifier().fit(_scaled(x, fit)[fit], label[fit]).predict(_scaled(x, fit)[audited])
        for x in (f, network)
    )
    return {name: float(h.mean()) for name, h in hit.items()} | {
        "agreement": float(np.mean(own == theirs))
    }


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)


def _scaled(x: np.ndarray, fit: np.ndarray) -> np.ndarray:
    return (x - x[fit].mean(0)) / np.maximum(x[fit].std(0), 1e-9)


def validate(workspace: Path) -> dict[str, Any]:
    """The measures at every damping, and which one the rule takes."""
    group = zarr.open_group(str(workspace / "audit.zarr"), mode="r", use_consolidated=False)
    sweep, steps = sweep_of(group)
    found = [measures(group, steps[..., i]) for i in range(steps.shape[-1])]
    chosen = choose_damping(sweep)
    return {
        "damping": sweep.damping_relative.tolist(),
        "loss": (sweep.loss / abs(sweep.loss_start)).tolist(),
        "rho": sweep.rho.tolist(),
        "admissible": sweep.admissible.tolist(),
        "chosen": chosen.index,
        "trusted": chosen.trusted,
        "start": measures(group, 1e-300 * steps[..., -1])["agreement"],
        **{name: [one[name] for one in found] for name in found[0]},
    }


def lines(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One line for each audit: the rule's choice beside the best and worst of the grid."""
    rows = []
    for name, one in found.items():
        at, cells = one["chosen"], [name]
        for measure in ("P@1 IS", "P@1 aligned", "agreement"):
            values = one[measure]
            cells.append(f"{values[at]:.3f} ({min(values):.3f} to {max(values):.3f})")
        damping = one["damping"]
        best = int(np.argmax(one["P@1 aligned"]))
        rows.append([*cells, f"{one['start']:.3f}", f"{damping[at]:g}", f"{damping[best]:g}"])
    return rows


HEADS = (
    "audit",
    "P@1 IS (grid)",
    "P@1 aligned (grid)",
    "probe agreement (grid)",
    "agreement of A0",
    "rule's damping",
    "best aligned P@1 at",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the workspaces")
    parser.add_argument("--data", nargs="*", default=["digits", "adult"], choices=list(DATA))
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--write", type=Path, help="page to update")
    parser.add_argument("--json", type=Path, help="file for all figures")
    chosen = parser.parse_args()
    found = {}
    with threadpool_limits(1):
        for data in chosen.data:
            for objective in chosen.objectives:
                name = f"{data}, {objective}"
                found[name] = validate(audit(data, objective, chosen.work, until="influence"))
                print(name, json.dumps(found[name]), flush=True)
    print(table(HEADS, lines(found)))
    if chosen.write:
        write(chosen.write, table(HEADS, lines(found)), "rule")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
