"""Audits of a folder of 1,200 pictures, and the harm that is done to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.run_history import Summary

N = 1_200
BLOCKS = 5
NET = """
import torch

def net(width=8, outputs=4):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, outputs)]
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)
"""
RECIPE = """
recipe: pictures
source: {kind: images, path: img}
network: {factory: "net.py:net", weights: factory}
views: {count: 2, flip: true, jitter: 0.2}
stages:
  features: {block_rows: 256}
  landmarks: {count: 12}
  audited: {audit: 30, fit: 80}
  spectrum: {components: 3}
"""


def name(position: int) -> str:
    return f"{position % 2}/{position:04}.png"


def draw(folder: Path, position: int, seed: int) -> None:
    pixels = np.random.default_rng((seed, position)).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "img" / name(position))


def positions() -> list[int]:
    """Numbers of the files in the order of their names."""
    return sorted(range(N), key=name)


def write_pictures(folder: Path) -> None:
    """The pictures, the network and the recipe."""
    for group in ("0", "1"):
        (folder / "img" / group).mkdir(parents=True)
    for position in range(N):
        draw(folder, position, 0)
    (folder / "net.py").write_text(NET)
    (folder / "r.yaml").write_text(RECIPE)


def audit(
    folder: Path, *changes: str, workspace: str = "w", until: str = "influence", **options: Any
) -> Summary:
    recipe = Recipe.load(str(folder / "r.yaml"), changes)
    stop = options.pop("stop", None)
    progress = options.pop("progress", None)
    given = Options(**{"workers": 2, "until": until, **options})
    return run(recipe, folder / workspace, given, progress=progress, stop=stop)


def truncate(path: Path) -> bytes:
    good = path.read_bytes()
    path.write_bytes(good[:-30])
    return good
