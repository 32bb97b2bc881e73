"""Audits of extreme shapes, each on the fewest samples that show its memory: peak beside plan.

    python -m tests.runner.shapes FOLDER SHAPE MEMORY WORKERS

runs the whole audit of one shape in a fresh process and prints a row of JSON for every stage. The
function of a shape writes source, network and recipe into the folder; it returns the recipe's path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

SAMPLED_SECONDS = 0.002
# Repetitions of a stage fill the same memory: a few are enough.
STAGES: dict[str, Any] = {
    "landmarks": {"count": 100},
    "audited": {"audit": 100, "fit": 200},
    "spectrum": {"components": 8},
    "minimiser": {"max_evaluations": 20},
    "group_influence": {"max_evaluations": 10},
    "randomised": {"draws": 3, "fit": 100},
}
PICTURE_NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.GELU(), nn.Conv2d(4, 8, 5, stride=4), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8),
    )
"""


def wide(folder: Path) -> Path:
    """5,000 columns of numbers."""
    return _table(folder, _numbers(600, 5000), _labels(600, 2))


def columns(folder: Path) -> Path:
    """2,000 columns of numbers, and little else."""
    few = {"landmarks": {"count": 24}, "audited": {"audit": 60, "fit": 60}}
    return _table(folder, _numbers(260, 2000), _labels(260, 2), **few)


def tall(folder: Path) -> Path:
    """60,000 samples of a few columns."""
    return _table(folder, _numbers(60_000, 8), _labels(60_000, 2))


def classes(folder: Path) -> Path:
    """1,000 classes."""
    return _table(
        folder, _numbers(4000, 8), _labels(4000, 1000), audited={"audit": 200, "fit": 3000}
    )


def categories(folder: Path) -> Path:
    """12 columns of 400 categories each: 4,800 encoded columns of 12."""
    draw = np.random.default_rng(1)
    texts = draw.integers(0, 400, (4800, 12))
    texts[:400] = np.arange(400)[:, None]
    return _table(folder, _numbers(4800, 4), _labels(4800, 2), texts)


def landmarks(folder: Path) -> Path:
    """2,100 landmarks, more than a tile."""
    return _table(folder, _numbers(4600, 8), _labels(4600, 2), landmarks={"count": 2100})


def audited(folder: Path) -> Path:
    """4,000 explained samples beside 3,500 that controls are fitted on."""
    return _table(
        folder,
        _numbers(16_000, 8),
        _labels(16_000, 10),
        audited={"audit": 4000, "fit": 3500},
        landmarks={"count": 400},
    )


def pictures(folder: Path) -> Path:
    """Files of 1,600 by 1,600 pixels, read at 224."""
    (folder / "pictures").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(24):
        colours = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        large = Image.fromarray(colours).resize((1600, 1600), Image.Resampling.BICUBIC)
        large.save(folder / "pictures" / f"{number:03d}.png", compress_level=1)
    (folder / "nets.py").write_text(PICTURE_NETWORK)
    return _written(
        folder,
        {"kind": "images", "path": "pictures", "size": 224},
        {"count": 2, "crop": 0.4, "flip": True},
        {"factory": "nets.py:build", "weights": "factory"},
        {
            "features": {"sketch": 256, "probes": 1, "deflated_probes": 0, "forward_batch": 8},
            "landmarks": {"count": 10},
            "audited": {"audit": 10, "fit": 10},
            "spectrum": {"components": 2},
            "randomised": {"draws": 3, "fit": 10},
        },
    )


SHAPES: dict[str, Callable[[Path], Path]] = {
    shape.__name__: shape
    for shape in (wide, columns, tall, classes, categories, landmarks, audited, pictures)
}


def measure(folder: Path, shape: str, memory: int, workers: int) -> list[dict[str, Any]]:
    """Measured peak and plan of every stage, as its seal records them."""
    import torch

    from krepes_ooc.engine import machine
    from krepes_ooc.runner.audit import Options
    from krepes_ooc.runner.recipe import Recipe
    from krepes_ooc.runner.run import run

    machine.INTERVAL_SECONDS = SAMPLED_SECONDS
    torch.manual_seed(0)
    path = SHAPES[shape](folder)
    recipe = Recipe.load(str(path))
    run(recipe, folder / "w", Options(memory=memory, workers=workers))
    rows = []
    for stage in recipe.stages:
        seal = folder / "w/.krepes/stages" / stage.name / "seal.json"
        facts = json.loads(seal.read_text())["body"]
        keys = ("planned_memory", "anonymous_peak", "anonymous_before", "seconds")
        rows.append({"stage": stage.name, **{key: facts[key] for key in keys}})
    return rows


def _numbers(samples: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(samples, columns)).astype(np.float32)


def _labels(samples: int, count: int) -> np.ndarray:
    # Every class has samples, in an order that has nothing to do with the rows.
    return np.random.default_rng(2).permutation(np.arange(samples) % count)


def _table(
    folder: Path,
    numbers: np.ndarray,
    labels: np.ndarray,
    texts: np.ndarray | None = None,
    **stages: dict[str, Any],
) -> Path:
    """A table in parquet, and a small encoder of its columns."""
    import pyarrow
    import pyarrow.parquet

    columns = {f"c{i}": numbers[:, i] for i in range(numbers.shape[1])}
    columns |= {"kind": [f"k{label:04d}" for label in labels]}
    inputs = numbers.shape[1]
    if texts is not None:
        for i in range(texts.shape[1]):
            columns[f"t{i}"] = [f"v{value:03d}" for value in texts[:, i]]
            inputs += len(np.unique(texts[:, i]))
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "rows.parquet")
    network = {
        "factory": "krepes_ooc.network.zoo:mlp",
        "arguments": {"inputs": inputs, "hidden": [64], "outputs": 16},
        "weights": "factory",
    }
    source = {"kind": "table", "path": "rows.parquet", "label": "kind"}
    return _written(folder, source, {"count": 2, "corruption": 0.3}, network, STAGES | stages)


def _written(
    folder: Path,
    source: dict[str, Any],
    views: dict[str, Any],
    network: dict[str, Any],
    stages: dict[str, Any],
) -> Path:
    recipe = {"recipe": "shape", "source": source, "views": views, "network": network}
    path = folder / "shape.yaml"
    path.write_text(yaml.safe_dump(recipe | {"stages": stages}))
    return path


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))))
