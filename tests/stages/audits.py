"""One small audit of a table with planted columns, computed once for the late stages' tests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import yaml

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace
from tests.small import own_recipe

ROWS = 320
CONCEPTS = {
    "east": {"positive": {"column": "town", "equals": "x"}},
    "old": {"positive": {"column": "a", "above": 5}, "negative": {"column": "a", "below": 3}},
    "noise": {"positive": {"column": "coin", "equals": "h"}},
    "kind": {"positive": {"label": "p"}, "negative": {"label": "q"}},
}


def table(rows: int = ROWS) -> str:
    """Numbers a, b, c; town follows a; coin is noise; flat is constant; the label follows b."""
    draw = np.random.default_rng(0)
    lines = ["a,b,c,town,coin,flat,kind"]
    for a, b, c in draw.uniform(1, 9, (rows, 3)):
        town = "xyz"[min(2, int(a // 3))]
        coin = "hht"[int(draw.integers(3))]
        kind = "p" if b + draw.normal() > 5 else "q"
        lines.append(f"{a:.4f},{b:.4f},{c:.4f},{town},{coin},1,{kind}")
    return "\n".join(lines) + "\n"


def write_recipe(folder: Path, **stages: object) -> Path:
    """A recipe over the table; coin and flat are audited but never shown to the network."""
    path = own_recipe(folder, table())
    values = yaml.safe_load(path.read_text())
    values["source"] |= {"audit_only": ["coin", "flat"], "categorical": ["town", "coin"]}
    values["network"]["arguments"] = {"inputs": 6}
    values["stages"] |= {"audited": {"audit": 60, "fit": 150}, **stages}
    path.write_text(yaml.safe_dump(values))
    return path


def audit(folder: Path, until: str | None = None, **stages: object) -> Workspace:
    """Run it to its end, or to the end of one stage; what is sealed is kept."""
    options = Options(workers=2, until=until, restart_stale=True)
    run(Recipe.load(str(write_recipe(folder, **stages))), folder / "w", options)
    return Workspace(folder / "w")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="krepes-audit-")


def recipe_of(space: Workspace) -> Recipe:
    """The recipe of the finished audit, as it lies beside its workspace."""
    return Recipe.load(str(space.root.parent / "own.yaml"))


@functools.cache
def finished() -> Workspace:
    """The audit with all concepts; read only."""
    return audit(Path(_folder().name), concepts={"sets": CONCEPTS})
