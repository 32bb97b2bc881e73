"""Tables of a training and of other rows, and what a pipeline makes of them for a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from krepes_ooc.runner.recipe import Recipe

ROWS = 240
HEADER = ["age", "job", "wage", "town", "kind"]
# Gives its input back, so that the embedding of a sample is what the network saw.
NET = """
import torch

def net(inputs):
    layer = torch.nn.Linear(inputs, inputs)
    torch.nn.init.eye_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return torch.nn.Sequential(layer)
"""
RECIPE: dict[str, Any] = {
    "recipe": "own",
    "source": {"kind": "table", "path": "shifted.csv", "label": "kind"},
    "network": {"factory": "net.py:net", "arguments": {"inputs": 7}, "weights": "w.safetensors"},
    "stages": {
        "features": {"block_rows": 256},
        "landmarks": {"count": 24},
        "audited": {"audit": 30, "fit": 60},
        "spectrum": {"components": 4},
    },
}


def table(shift: float, jobs: str, rows: int = ROWS, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [
        {
            "age": round(draw.normal(40 + shift * 10, 10), 3),
            "job": str(draw.choice(list(jobs))),
            "wage": round(draw.normal(3000 + shift * 500, 500), 2),
            "town": str(draw.choice(["n", "s"])),
            "kind": str(draw.choice(["p", "q"])),
        }
        for _ in range(rows)
    ]


TRAINING = table(0, "abc")
SHIFTED = table(3, "ac", seed=1)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [",".join(HEADER), *(",".join(str(row[name]) for name in HEADER) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def write_files(folder: Path) -> None:
    """Both tables, the network, and recipes of the training and of the audit."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "training.csv", TRAINING)
    write_csv(folder / "shifted.csv", SHIFTED)
    (folder / "net.py").write_text(NET)
    space: dict[str, Any] = {}
    exec(NET, space)
    save_file(space["net"](7).state_dict(), folder / "w.safetensors")
    write_recipe(folder, "training", path="training.csv")
    write_recipe(folder, "own", encoding="enc.json")


def write_recipe(folder: Path, name: str = "own", **source: Any) -> Path:
    values = {**RECIPE, "source": {**RECIPE["source"], **source}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder / f"{name}.yaml"


def load(folder: Path, name: str = "own", *changes: str) -> Recipe:
    return Recipe.load(str(folder / f"{name}.yaml"), changes)


def numbers(rows: list[dict[str, Any]]) -> Any:
    return np.array([[row["age"], row["wage"]] for row in rows], dtype=float)


def categories(rows: list[dict[str, Any]]) -> Any:
    return np.array([[row["job"], row["town"]] for row in rows], dtype=object)


def pipeline_inputs(rows: list[dict[str, Any]]) -> Any:
    """The oracle: StandardScaler and OneHotEncoder, fitted on the training table."""
    scaler = StandardScaler().fit(numbers(TRAINING))
    encoder = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
    encoder.fit(categories(TRAINING))
    return np.hstack([scaler.transform(numbers(rows)), encoder.transform(categories(rows))])
