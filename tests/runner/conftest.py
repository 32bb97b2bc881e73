"""Finished audits for explanations and of pictures; each is computed once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.runner import picture_audits


@dataclass(frozen=True)
class FinishedAudit:
    """A workspace without its n-sized stores, and what tests recompute explanations from."""

    path: Path
    recipe: str | None
    landmark_kernel: np.ndarray

    def reader(self, store: str):
        return Workspace(self.path).reader(store)

    @property
    def audited(self) -> list[int]:
        return [int(i) for i in self.reader("audited").array("sample_id")]

    @classmethod
    def of(cls, path: Path, recipe: str | None = None) -> FinishedAudit:
        kernel = np.array(Workspace(path).reader("kernel").whole("landmark_kernel"))
        for store in ("features", "kernel"):
            shutil.rmtree(path / "audit.zarr" / store)
        return cls(path, recipe, kernel.astype(np.float64))


@pytest.fixture(scope="session")
def explained_digits(tmp_path_factory: pytest.TempPathFactory) -> FinishedAudit:
    """Digits under Barlow Twins, groups by cluster and by label."""
    folder = tmp_path_factory.mktemp("explained-digits")
    small.audit(folder, until="distilled")
    return FinishedAudit.of(folder)


@pytest.fixture(scope="session")
def explained_table(tmp_path_factory: pytest.TempPathFactory) -> FinishedAudit:
    """A table of two classes under VICReg, groups by column and by range."""
    folder = tmp_path_factory.mktemp("explained-table")
    changes = (
        "stages.newton.objective=vicreg",
        "stages.audited.fit=200",
        "stages.groups.clusters=0",
        "stages.groups.columns={town: []}",
        "stages.groups.ranges={a: [3.5]}",
        "stages.group_influence.max_evaluations=10",
    )
    recipe = str(small.own_recipe(folder / "files"))
    run(Recipe.load(recipe, changes), folder / "w", Options(workers=2, until="distilled"))
    return FinishedAudit.of(folder / "w", recipe)


@pytest.fixture(scope="session")
def explained_streamed(tmp_path_factory: pytest.TempPathFactory) -> FinishedAudit:
    """A table without labels under SimCLR, whose loss streams the kernel."""
    folder = tmp_path_factory.mktemp("explained-streamed")
    rows = [line.rsplit(",", 1)[0] for line in small.rows_csv().splitlines()]
    recipe = small.own_recipe(folder / "files", "\n".join(rows) + "\n")
    recipe.write_text(recipe.read_text().replace(", label: kind", ""))
    changes = (
        "stages.newton.objective=simclr",
        "stages.landmarks.count=12",
        "stages.groups.clusters=0",
    )
    run(Recipe.load(str(recipe), changes), folder / "w", Options(workers=2, until="influence"))
    return FinishedAudit.of(folder / "w", str(recipe))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 1,200 pictures with a recipe; copied before anything is done to it."""
    folder = tmp_path_factory.mktemp("pictures")
    picture_audits.write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def audited_pictures(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a whole run in ``w``."""
    folder = tmp_path_factory.mktemp("audited-pictures") / "f"
    shutil.copytree(pictures, folder)
    picture_audits.audit(folder)
    return folder
