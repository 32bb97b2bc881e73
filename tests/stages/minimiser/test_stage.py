"""The minimiser on whole audits: what is stored, who reads it, killed and resumed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import StageFailed
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.run import run
from krepes_ooc.stages.minimiser.likeness import network_likeness
from krepes_ooc.stages.minimiser.stage import RELATIVE_GRID
from krepes_ooc.stages.moments.stored_moments import read_moments
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences
from tests.stages import audits
from tests.stages.test_killed_audits import KILL

UNTIL = "minimiser"


@pytest.fixture(scope="module")
def space() -> Workspace:
    return audits.finished()


def test_stored_coefficients_have_the_gradient_that_is_stored(space: Workspace) -> None:
    store, newton, spectrum = (space.reader(name) for name in ("minimiser", "newton", "spectrum"))
    name, start = newton.attributes["objective"], spectrum.array("start")
    constants = read_settings(
        registry.settings_type(name), newton.attributes["objective_settings"], "newton"
    )
    objective = registry.create(
        name,
        constants,
        moments=read_moments(space.reader("moments")),
        start=start,
        offset=spectrum.array("offset"),
    )
    at_start, A = objective.linearise(start), store.array("coefficients_minimiser")
    grid = store.array("damping_relative")
    assert grid.tolist() == sorted(RELATIVE_GRID, reverse=True)
    at = grid.tolist().index(store.attributes["damping_relative"])
    here = objective.linearise(A)
    gradient = here.gradient + grid[at] * float(at_start.mean_diagonal) * (A - start)
    relative = np.linalg.norm(gradient) / np.linalg.norm(at_start.gradient)
    assert relative == pytest.approx(store.array("gradient")[at], rel=1e-6)
    assert float(here.value) == pytest.approx(store.array("loss")[at], rel=1e-9)
    assert float(here.value) < float(at_start.value)


def test_likenesses_follow_from_the_stored_embeddings(space: Workspace) -> None:
    store, audited = space.reader("minimiser"), space.reader("audited")
    fit = audited.array("role") == 1
    kernel, network = (
        space.reader("influence").array("kernel")[fit],
        audited.array("network_embedding")[fit].astype(float),
    )
    coefficients = {
        "start": space.reader("spectrum").array("start"),
        "step": space.reader("newton").array("coefficients"),
        "lm_steps": space.reader("newton").array("coefficients_lm"),
        "minimiser": store.array("coefficients_minimiser"),
    }
    for name, A in coefficients.items():
        expected = network_likeness(kernel @ A, network)
        assert store.attributes["likeness"][name] == pytest.approx(expected, abs=1e-5)
    known = {key: value for key, value in store.attributes["likeness"].items() if key != "start"}
    assert store.attributes["solution"] == max(known, key=lambda name: known[name])


def test_later_stages_explain_with_the_solution(space: Workspace) -> None:
    influence, offset = space.reader("influence"), space.reader("spectrum").array("offset")
    name = space.reader("minimiser").attributes["solution"]
    assert influence.attributes["solution"] == name
    A = influence.array("coefficients")
    np.testing.assert_allclose(
        influence.array("embedding"), influence.array("kernel") @ A + offset, atol=1e-10
    )
    start = space.reader("spectrum").array("start")
    np.testing.assert_allclose(influence.array("step"), A - start, atol=1e-12)


@pytest.mark.parametrize("solution", ["step", "lm_steps", "minimiser"])
def test_a_solution_can_be_named(tmp_path: Path, solution: str) -> None:
    small.audit(tmp_path / "w", f"stages.minimiser.solution={solution}", until="influence")
    space = Workspace(tmp_path / "w")
    store, array = {
        "step": ("newton", "coefficients"),
        "lm_steps": ("newton", "coefficients_lm"),
        "minimiser": ("minimiser", "coefficients_minimiser"),
    }[solution]
    expected = space.reader(store).array(array)
    assert np.array_equal(space.reader("influence").array("coefficients"), expected)


def test_a_loss_that_streams_has_no_minimiser(tmp_path: Path) -> None:
    byol = "stages.newton.objective=byol"
    small.audit(tmp_path / "w", byol, until="influence")
    store = Workspace(tmp_path / "w").reader("minimiser")
    assert not store.attributes["defined"]
    assert store.attributes["solution"] == "step"
    assert not store.has("coefficients_minimiser")
    with pytest.raises(StageFailed, match="no coefficients 'minimiser' for this objective"):
        small.audit(
            tmp_path / "other", byol, "stages.minimiser.solution=minimiser", until="minimiser"
        )


def test_without_fit_samples_the_step_explains(tmp_path: Path) -> None:
    small.audit(tmp_path / "w", "stages.audited.fit=0", until="minimiser")
    attributes = Workspace(tmp_path / "w").reader("minimiser").attributes
    assert attributes["solution"] == "step"
    assert set(attributes["likeness"].values()) == {0.0}


def test_workers_change_no_bit_and_a_kill_neither(tmp_path: Path) -> None:
    recipe = small.recipe()
    small.audit(tmp_path / "whole", until=UNTIL, workers=1)
    killed = tmp_path / "killed"
    small.audit(killed, until="newton")
    path = tmp_path / "digits.yaml"
    path.write_text(recipe.text)
    ended = subprocess.run(
        [sys.executable, "-c", KILL, str(path), str(killed), UNTIL, "2"],
        cwd=small.ROOT,
        env=os.environ | {"PYTHONPATH": str(small.ROOT)},
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert list((killed / ".krepes/stages/minimiser").rglob("damping-*.npz"))
    run(recipe, killed, dataclasses.replace(Options(), workers=2, until=UNTIL))
    found = differences(tmp_path / "whole", killed)
    assert [name for name in found if "minimiser/" in name] == []
