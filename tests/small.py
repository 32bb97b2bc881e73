"""A tiny recipe for tests of whole runs: 300 digits, one epoch, 24 landmarks, 4 components."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from krepes_ooc.cli import main
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.run_history import Summary
from krepes_ooc.storage.contracts import load_contract
from krepes_ooc.storage.workspace import Workspace

ROOT = Path(__file__).parents[1]
ROWS = 300
# Stages that repeat a computation: a few times are enough.
FEW = (
    "stages.discovery.concepts=4",
    "stages.group_influence.max_evaluations=10",
    "stages.minimiser.max_evaluations=8",
    "stages.randomised.draws=3",
)
SETTINGS = (
    f"source.limit={ROWS}",
    "stages.pretrain.epochs=1",
    "stages.landmarks.count=24",
    "stages.audited.audit=30",
    "stages.audited.fit=80",
    "stages.spectrum.components=4",
    "stages.concepts.sets={}",
    "stages.groups.clusters=3",
    "stages.groups.columns={label: ['3', '8']}",
    *FEW,
)


def recipe(*changes: str) -> Recipe:
    """The tiny recipe, with further overrides."""
    return Recipe.load("digits", (*SETTINGS, *changes))


def audit(workspace: Path, *changes: str, **options: Any) -> Summary:
    """Run the tiny recipe in this process."""
    return run(recipe(*changes), workspace, Options(**{"workers": 2, **options}))


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="krepes-small-")


@functools.cache
def finished() -> Path:
    """The tiny audit, computed once for all tests of this process; read only."""
    workspace = Path(_folder().name) / "w"
    audit(workspace)
    return workspace


def finished_copy(folder: Path) -> Path:
    """A copy of the finished audit in a new folder, to work with."""
    return Path(shutil.copytree(finished(), folder))


def copy_before(workspace: Path, folder: Path, stage: str) -> Path:
    """A copy of a finished audit in which a stage and all after it are not begun."""
    shutil.copytree(workspace, folder)
    names = [each.name for each in recipe().stages]
    for name in names[names.index(stage) :]:
        shutil.rmtree(folder / ".krepes" / "stages" / name, ignore_errors=True)
        shutil.rmtree(folder / "audit.zarr" / name, ignore_errors=True)
    return folder


def arguments(workspace: Path, *extra: str, changes: Iterable[str] = ()) -> list[str]:
    """The command line of the tiny run."""
    sets = [part for change in (*SETTINGS, *changes) for part in ("--set", change)]
    return ["run", "digits", "-w", str(workspace), "--device", "cpu", *sets, *extra]


def process(given: Sequence[str], **more: Any) -> subprocess.Popen[str]:
    """Start krepes as its own process."""
    command = [sys.executable, "-m", "krepes_ooc", *given]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, **more)


@dataclass(frozen=True)
class Outcome:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        assert self.err.startswith("krepes: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.strip()


def krepes(capsys: Any, *given: str) -> Outcome:
    """Run a command in this process."""
    capsys.readouterr()
    try:
        main(list(given))
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def seals(workspace: Path) -> dict[str, str]:
    """Name and digest of every sealed stage."""
    found = {}
    for path in sorted((workspace / ".krepes" / "stages").glob("*/seal.json")):
        found[path.parent.name] = str(json.loads(path.read_text())["body"]["digest"])
    return found


def floats_that_are_not_finite(workspace: Path) -> list[str]:
    """Arrays of sealed stores that hold a NaN or an infinity, and attributes that are null.

    A NaN that an array's contract gives a meaning is none of them.
    """
    space, found = Workspace(workspace), []
    for store in space.stores():
        if space.record(store, store).is_sealed():
            reader = space.reader(store)
            for name in reader.names():
                values = reader.array(name)
                missing = load_contract(store).arrays[name].missing
                if values.dtype.kind == "f" and not (missing | np.isfinite(values)).all():
                    found.append(f"{store}.{name}")
            found += [f"{store}:{key}" for key, value in reader.attributes.items() if value is None]
    return found


FACTORY = """
import torch

def net(inputs=6, width=16, outputs=4):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, width), torch.nn.ReLU(), torch.nn.Linear(width, outputs)
    )
"""
OWN = """
recipe: own
source: {kind: table, path: rows.csv, label: kind}
network: {factory: "net.py:net", weights: weights.safetensors}
stages:
  features: {block_rows: 256}
  landmarks: {count: 24}
  audited: {audit: 30, fit: 80}
  spectrum: {components: 4}
"""


def rows_csv(rows: int = ROWS, seed: int = 0) -> str:
    """A table of three numbers, one column of three categories and a label."""
    draw = np.random.default_rng(seed)
    lines = ["a,b,c,town,kind"]
    for a, b, c in draw.uniform(1, 9, (rows, 3)):
        town, kind = draw.choice(["x", "y", "z"]), draw.choice(["p", "q"])
        lines.append(f"{a:.4f},{b:.4f},{c:.4f},{town},{kind}")
    return "\n".join(lines) + "\n"


def own_recipe(folder: Path, table: str | None = None) -> Path:
    """A user's own recipe: a csv file, a factory file, a checkpoint. Returns the recipe's file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text(rows_csv() if table is None else table)
    (folder / "net.py").write_text(FACTORY)
    (folder / "own.yaml").write_text(OWN)
    write_weights(folder, scale=1.0)
    return folder / "own.yaml"


def write_weights(folder: Path, scale: float, drop: str = "") -> None:
    """Write the checkpoint of the factory's network, scaled, without the tensor ``drop``."""
    from safetensors.torch import save_file

    space: dict[str, Any] = {}
    exec(FACTORY, space)
    state = {k: scale * v for k, v in space["net"]().state_dict().items() if k != drop}
    save_file(state, folder / "weights.safetensors")
