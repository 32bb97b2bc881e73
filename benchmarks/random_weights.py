"""Rates of the check "differs from random weights": networks never trained, and trained ones.

    python benchmarks/random_weights.py WORK [--seeds 8] [--landmarks 64] [--objective barlow-twins]

Every network is an audit of digits with the stages that the check reads, in a workspace of its own
under WORK; an interrupted run goes on, a finished one is read. Of networks that were never trained
about one in twenty may pass; how often a trained one passes is the power of the check.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.verdict.criteria import random_weights
from krepes_ooc.storage.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "random-weights.json"
WEIGHTS = {"never trained": "factory", "trained": "pretrain"}


def seeded_mlp(seed: int, **arguments: Any) -> Any:
    """The network of the recipe with weights of its own seed, never trained."""
    import torch

    from krepes_ooc.network.zoo import mlp

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(**arguments)


def measure(work: Path, weights: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The check, and both figures that it is made of, of one network."""
    name = f"{weights}-{given.objective}-{given.landmarks}-{seed}"
    network: tuple[str, ...] = (f"network.weights={weights}",)
    if weights == "factory":
        network += (
            f"network.factory={Path(__file__).resolve()}:seeded_mlp",
            f"network.arguments={{seed: {seed}, inputs: 64, hidden: [256, 256], outputs: 64}}",
        )
    changes = (
        f"seed={seed}",
        *network,
        f"stages.landmarks.count={given.landmarks}",
        "stages.audited.fit=500",
        "stages.concepts.sets={}",
        f"stages.pretrain.objective={given.objective}",
        f"stages.newton.objective={given.objective}",
    )
    recipe = Recipe.load("digits", changes)
    run(recipe, work / name, Options(until="spectrum", workers=1))
    for stage in ("newton", "minimiser", "influence", "randomised"):
        run(recipe, work / name, Options(only=stage, workers=1))
    found = Workspace(work / name).reader("randomised").attributes
    ranking, agreement = found["ranking"], found["figures"]["cka"]
    return {
        "outcome": random_weights(ranking, agreement).outcome,
        "ranking differs": bool(ranking["decided"] and ranking["distinguishable"]),
        "embedding is more alike": agreement["learned"] is True,
        "cka": agreement["value"],
        "most of random weights": agreement["most"],
        "difference of overlaps": ranking.get("difference"),
        "interval": ranking.get("interval"),
    }


def print_rates(found: dict[str, list[dict[str, Any]]]) -> None:
    """Networks that pass, by kind, as lines of a table."""
    print("| networks | pass the check | by the ranking | by the embedding |")
    print("|---|---|---|---|")
    for kind, rows in found.items():
        counts = [sum(row["outcome"] == "pass" for row in rows)]
        keys = ("ranking differs", "embedding is more alike")
        counts += [sum(row[key] for row in rows) for key in keys]
        print(f"| {kind} | " + " | ".join(f"{count} of {len(rows)}" for count in counts) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--landmarks", type=int, default=64)
    parser.add_argument("--objective", default="barlow-twins")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in WEIGHTS}
    for seed in range(given.seeds):
        for kind, weights in WEIGHTS.items():
            found[kind].append(measure(given.work, weights, seed, given))
            print(kind, seed, found[kind][-1], flush=True)
        results[f"digits {given.objective} {given.landmarks}"] = found
        temporary = RESULTS.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, RESULTS)
    print_rates(found)


if __name__ == "__main__":
    main()
