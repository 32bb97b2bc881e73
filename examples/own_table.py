"""Audit a network and a table of one's own: a CSV file, a factory, a checkpoint, a recipe.

    python examples/own_table.py FOLDER

The files are written here so that the example is whole; yours exist already.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from krepes_ooc import Recipe, Workspace, encode, explain, run

FACTORY = """
import torch

def encoder(width):
    return torch.nn.Sequential(
        torch.nn.Linear(5, width), torch.nn.ReLU(), torch.nn.Linear(width, 8)
    )
"""
RECIPE = """
recipe: people
about: Incomes of people who never were.
source: {kind: table, path: people.csv, label: town, encoding: encoding.json}
network:
  factory: network.py:encoder
  arguments: {width: 32}
  weights: encoder.safetensors
stages:
  landmarks: {count: 48}
  audited: {audit: 60, fit: 200}
  spectrum: {components: 8}
"""


def main(folder: Path) -> None:
    """Write the files, audit, explain a row that is not in the table, export."""
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder)
    workspace = folder / "audit"
    recipe = Recipe.load(str(folder / "people.yaml"))
    # Once, from the table that the network was trained on: here the same one.
    if not (folder / "encoding.json").exists():
        encode(recipe, folder / "encoding.json")
    run(recipe, workspace, workers=2)

    row = folder / "row.json"
    row.write_text(json.dumps({"age": 41, "hours": 38.5, "job": "baker"}))
    for landmark in explain(workspace, file=row, top=3, recipe=recipe)[0].record()["landmarks"]:
        print(f"{landmark['score']:.2f} {landmark['values']} agrees in {landmark['agrees']}")

    Workspace(workspace).export("influence", folder / "influence.parquet")


def write_files(folder: Path) -> None:
    """A table, a factory, a checkpoint and a recipe."""
    draw = np.random.default_rng(0)
    lines = ["age,hours,job,town"]
    for _ in range(500):
        age, hours = draw.integers(18, 70), draw.normal(38, 6)
        job, town = draw.choice(["baker", "smith", "nurse"]), draw.choice(["north", "south"])
        lines.append(f"{age},{hours:.1f},{job},{town}")
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
    (folder / "network.py").write_text(FACTORY)
    (folder / "people.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    save_file(network.state_dict(), folder / "encoder.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
