"""Near duplicates: recall and precision of planted copies, by the network and by the inputs.

    python benchmarks/duplicates.py WORK [--cells "digits;fashion;..."]

A network is trained as its recipe says; then 200 samples are copied and changed a little (images:
moved by one pixel, or by up to two with other brightness and noise; table rows: every number by a
tenth of its standard deviation), and the tables of stage examples are computed over all samples and
copies. ``digits`` chose the rule, three networks; the other cells were measured once it was fixed.
Figures go into ``benchmarks/results/duplicates.json``. The data are fetched first:
``python benchmarks/fetch.py fashion-mnist --to .cache/data``, likewise adult.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.examples.near_duplicates import (
    Float,
    NearPairs,
    near_pairs,
    nearest_neighbours,
    shifted_distances,
)
from krepes_ooc.storage.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "duplicates.json"
COPIES, SAMPLES = 200, 3300
IMAGES = (
    "source.limit=10000",
    "network.factory=krepes_ooc.network.zoo:mlp",
    "network.arguments={inputs: 784, hidden: [256, 256], outputs: 64}",
    "stages.pretrain.epochs=20",
)
WEAK = ("views={count: 2, shift: 2, noise: 0.1}",)
ADULT = ("source.limit=20000", "network.arguments.inputs=106")
# Recipe and its changes
CELLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits": ("digits", ()),
    "digits, VICReg": ("digits", ("stages.pretrain.objective=vicreg", "seed=1")),
    "digits, SimCLR": ("digits", ("stages.pretrain.objective=simclr", "seed=2")),
    "fashion": ("fashion-mnist", IMAGES),
    "fashion, weak views": ("fashion-mnist", (*IMAGES, *WEAK)),
    "adult": ("adult", ADULT),
}
BRIGHTNESS, NOISE = 0.2, 0.05
SHIFTS = ((0, 1), (0, -1), (1, 0), (-1, 0))
FAR_SHIFTS = (*SHIFTS, (1, 1), (-1, 1), (2, 0), (0, -2), (2, -1), (-2, -2))
Copier = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def moved(images: np.ndarray, shifts: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Images [sample, channel, y, x] whose content is moved; what moves in is black.

    Args:
        images: originals.
        shifts: down and right, in turn.
    """
    side = max(abs(x) for shift in shifts for x in shift)
    border = ((0, 0), (0, 0), (side, side), (side, side))
    padded = np.pad(images, border, constant_values=images.min())
    height, width = images.shape[2:]
    found = np.empty_like(images)
    for i, row in enumerate(padded):
        down, right = shifts[i % len(shifts)]
        found[i] = row[:, side - down :, side - right :][:, :height, :width]
    return found


def shifted(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Copies moved by one pixel."""
    return moved(rows, SHIFTS)


def faint(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Copies moved by up to two pixels, brighter or darker, with noise in full scales."""
    low, full = rows.min(), rows.max() - rows.min()
    light = draw.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS, (len(rows), 1, 1, 1))
    copies = (moved(rows, FAR_SHIFTS) - low) * light + low
    return np.asarray(copies + NOISE * full * draw.normal(size=rows.shape))


def jittered(rows: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Copies of encoded table rows whose numbers are changed, categories kept."""
    numeric = np.array([len(np.unique(column)) > 2 for column in rows.T])
    return np.asarray(rows + 0.1 * numeric * draw.normal(size=rows.shape))


def measure(name: str, work: Path) -> dict[str, Any]:
    """Train or read one network; figures of every kind of copy."""
    recipe_name, changes = CELLS[name]
    recipe = Recipe.load(recipe_name, changes)
    root = work / name.replace(", ", "-").replace(" ", "-")
    run(recipe, root, Options(only="pretrain", workers=1, memory=3 * 2**30))
    inputs = Audit(recipe, Workspace(root)).inputs
    draw = np.random.default_rng(0)
    chosen = draw.permutation(inputs.source.n_samples)[:SAMPLES]
    rows = np.asarray(inputs.encode(np.sort(chosen).astype(np.int64), -1)[0], dtype=np.float64)
    originals = draw.permutation(len(rows))[:COPIES]
    copiers: dict[str, Copier] = {"jittered": jittered}
    if rows.ndim == 4:
        copiers = {"shifted": shifted, "faint": faint}
    found = {}
    for kind, copier in copiers.items():
        planted = np.concatenate([rows, copier(rows[originals], draw)]).astype(np.float32)
        found[kind] = figures(planted, originals, inputs.network)
    return {"samples": len(rows), "copies": COPIES, **found}


def figures(rows: np.ndarray, originals: np.ndarray, network: torch.nn.Module) -> dict[str, Any]:
    """Recall and precision of both tables, and the bound of any table of these neighbours."""
    with torch.no_grad():
        parts = [network(torch.from_numpy(part)).numpy() for part in np.array_split(rows, 20)]
    near = nearest_neighbours(np.concatenate(parts).astype(np.float64))
    first = len(rows) - len(originals)
    true = {(int(a), first + i) for i, a in enumerate(originals)}
    by_distance = near_pairs(near.index, near.distance, near.index.size)
    order = np.argsort(by_distance.distance, kind="stable")
    plain = NearPairs(*(getattr(by_distance, key)[order] for key in vars(by_distance)))
    compared = shifted_distances(rows, near.index)
    by_inputs = near_pairs(near.index, compared, near.index.size)
    # Samples of the source may be nearer to each other than copies are to their originals.
    planted = np.array(
        [pair in true for pair in zip(by_inputs.first, by_inputs.second, strict=True)]
    )
    usual = float(np.median(by_inputs.distance[planted]))
    others = ~planted[: len(true)]
    return {
        "original_is_nearest": float(np.mean(near.index[first:, 0] == originals)),
        "original_among_neighbours": float(
            (near.index[first:] == originals[:, None]).any(1).mean()
        ),
        "distance": counted(plain, true),
        "ratio": counted(near_pairs(near.index, near.distance, near.index.size), true),
        "inputs": counted(by_inputs, true),
        "others_nearer_than_a_copy": float(
            np.mean(others & (by_inputs.distance[: len(true)] <= usual))
        ),
    }


def counted(pairs: NearPairs, true: set[tuple[int, int]]) -> dict[str, float]:
    """Precision and recall of the first pairs, and the average precision of all."""
    listed = zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    hits: Float = np.array([pair in true for pair in listed], dtype=np.float64)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return {
        "precision_at_50": float(precision[49]),
        # As many pairs as there are copies: precision and recall are equal.
        "at_200": float(hits[: len(true)].sum() / len(true)),
        "recall_at_400": float(hits[: 2 * len(true)].sum() / len(true)),
        "average_precision": float((precision * hits).sum() / len(true)),
    }


def main() -> None:
    """Measure the cells and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cells", default=";".join(CELLS), help="names, separated by ;")
    arguments = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.cells.split(";"):
        found[name] = measure(name, arguments.work)
        print(name, json.dumps(found[name], indent=1))
        RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
