"""One small audit of a table with groups of every kind, computed once."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np

from krepes_ooc.stages.group_moments.group_sums import GroupMoments
from krepes_ooc.storage.workspace import Workspace
from tests.stages import audits

# Tight enough that sums in another order end in the same minimum.
RESOLVED = {"damping": 1.0, "max_evaluations": 5000, "tolerance": 1e-10}
GROUPS = {
    "clusters": 5,
    "columns": {"town": [], "coin": ["h"]},
    "ranges": {"a": [3, 6]},
    "file": "ids.csv",
}
FILE = {"few": range(5, 25), "one": [7], "all": range(audits.ROWS), "most": range(300)}


def write_ids(folder: Path) -> None:
    """The file of ids: groups that overlap, one of one sample, one of all."""
    rows = [f"{name},{i}" for name, ids in FILE.items() for i in ids]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ids.csv").write_text("group,sample\n" + "\n".join(rows) + "\n")


def audit(
    folder: Path, objective: str = "vicreg", until: str = "group_influence", **resolved: float
) -> Workspace:
    """Run it to the end of one stage."""
    write_ids(folder)
    newton = {"objective": objective}
    if objective == "simclr":
        newton["objective_settings"] = {"batch": 64}
    return audits.audit(
        folder, until, groups=GROUPS, newton=newton, group_influence=RESOLVED | resolved
    )


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="krepes-groups-")


@functools.cache
def finished(objective: str = "vicreg") -> Workspace:
    """The audit for one objective; read only."""
    return audit(Path(_folder().name) / objective, objective)


def kernels(space: Workspace) -> np.ndarray:
    """Kernel rows [view, sample, landmark] in float64."""
    return space.reader("kernel").array("values").astype(np.float64)


def member(space: Workspace, group: int) -> np.ndarray:
    """Whether every store row belongs to a group."""
    reader = space.reader("groups")
    level = reader.array("level")
    return level[:, reader.array("partition")[group]] == reader.array("code")[group]


def dense(K: np.ndarray) -> GroupMoments:
    """Moments of rows [view, sample, landmark], in float64."""
    mean = K.mean(axis=1)
    centred = K - mean[:, None]
    pairs = [(a, b) for a in range(len(K)) for b in range(a, len(K))]
    second = np.stack([centred[a].T @ centred[b] / K.shape[1] for a, b in pairs])
    return GroupMoments(K.shape[1], mean, second)
