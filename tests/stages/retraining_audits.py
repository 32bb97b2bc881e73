"""Small audits with trainings: digits by the demo trainer, a table by a user's function."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.run_history import Summary
from krepes_ooc.storage.workspace import Workspace
from tests import small

# The stages that are read: nothing of what comes between them and retraining is needed.
UNTIL = "influence"
DIGITS = (
    "source.limit=300",
    "stages.audited.fit=140",
    "stages.groups.clusters=3",
    "stages.groups.columns={}",
    "stages.groups.halves=3",
    "stages.retraining.enabled=true",
    "stages.retraining.seeds=2",
)
ROWS = 160
TRAIN = """
import numpy as np

def net():
    import torch
    return torch.nn.Linear(5, 3, bias=False)

def components(subset, seed):
    X = subset.inputs(range(len(subset))).astype("f8")
    _, vectors = np.linalg.eigh(np.cov(X.T))
    return {"weight": vectors[:, ::-1][:, :3].T.astype("f4")}
"""


def digits_recipe(*changes: str) -> Recipe:
    """The tiny recipe of digits with two seeds, clusters and random halves."""
    return small.recipe(*DIGITS, *changes)


def prepared(folder: Path, recipe: Recipe) -> Path:
    """A workspace with all that the stage reads."""
    run(recipe, folder, Options(until=UNTIL, workers=2))
    return folder


def train(recipe: Recipe, workspace: Path, progress: Any = None, **options: Any) -> Summary:
    """Run the stage alone."""
    return run(recipe, workspace, Options(only="retraining", workers=1, **options), progress)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="krepes-retraining-")


@functools.cache
def digits_before() -> Path:
    """Digits, all but the stage; copied, never changed."""
    return prepared(Path(_folder().name) / "before", digits_recipe())


@functools.cache
def digits_after() -> Path:
    """Digits, the stage sealed; read only."""
    workspace = copy_of(digits_before(), Path(_folder().name) / "after")
    train(digits_recipe(), workspace)
    return workspace


def copy_of(workspace: Path, folder: Path) -> Path:
    """A copy of a workspace."""
    return Path(shutil.copytree(workspace, folder))


def table(copies: int = 2) -> str:
    """Five numbers, two of which share a direction; all rows are there ``copies`` times."""
    draw = np.random.default_rng(0)
    X = draw.normal(size=(ROWS, 5)) * [3, 2, 1.5, 1, 0.5]
    X[:, 1] += X[:, 0]
    lines = [",".join(f"{value:.4f}" for value in row) for row in X]
    return "\n".join(["a,b,c,d,e", *(lines * copies)]) + "\n"


def table_recipe(folder: Path, code: str = TRAIN, function: str = "components") -> Path:
    """A linear network with a closed form; groups: the copies of all rows, and some rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text(table())
    (folder / "train.py").write_text(code)
    draw = np.random.default_rng(1)
    groups = {"copy": range(ROWS, 2 * ROWS)}
    groups |= {f"part {i}": np.sort(draw.permutation(2 * ROWS)[:90]) for i in range(3)}
    rows = [f"{name},{i}" for name, ids in groups.items() for i in ids]
    (folder / "ids.csv").write_text("group,sample\n" + "\n".join(rows) + "\n")
    values = {
        "recipe": "linear",
        "source": {"kind": "table", "path": "rows.csv"},
        "views": {"noise": 0.001, "corruption": 0.0},
        "network": {"factory": "train.py:net", "weights": "factory"},
        "stages": {
            "features": {"block_rows": 256},
            "landmarks": {"count": 24},
            "audited": {"audit": 40, "fit": 200},
            "spectrum": {"components": 3},
            "newton": {"objective": "vicreg"},
            "groups": {"clusters": 0, "columns": {}, "file": "ids.csv"},
            "retraining": {"enabled": True, "seeds": 2, "train": f"train.py:{function}"},
        },
    }
    (folder / "linear.yaml").write_text(yaml.safe_dump(values))
    return folder / "linear.yaml"


@functools.cache
def table_before() -> Path:
    """The table, all but the stage, beside its recipe; copied, never changed."""
    folder = Path(_folder().name) / "table"
    prepared(folder / "w", Recipe.load(str(table_recipe(folder))))
    return folder


def table_audit(folder: Path, code: str = TRAIN, function: str = "components") -> Recipe:
    """A copy of the table's workspace as ``folder / "w"``, with another train function."""
    shutil.copytree(table_before(), folder, dirs_exist_ok=True)
    (folder / "own.py").write_text(code)
    path = folder / "linear.yaml"
    values = yaml.safe_load(path.read_text())
    values["stages"]["retraining"]["train"] = f"own.py:{function}"
    path.write_text(yaml.safe_dump(values))
    return Recipe.load(str(path))


def store(workspace: Path) -> Any:
    """Reader of the store."""
    return Workspace(workspace).reader("retraining")
