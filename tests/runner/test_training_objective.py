"""Objective that trained the network, beside the audited one: recorded and said, never a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from krepes_ooc.engine.run_control import Silent
from krepes_ooc.errors import RecipeError
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace
from tests import small


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def facts(workspace: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((workspace / "report.json").read_text())["subject"]
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    small.own_recipe(folder, small.rows_csv(140))
    run(Recipe.load(str(folder / "own.yaml")), folder / "w", Options(workers=2))
    return folder


def test_a_statement_makes_verdict_and_report_stale_and_nothing_else(own: Path) -> None:
    plain = small.seals(own / "w")
    assert "training objective" not in facts(own / "w")
    stated = Recipe.load(str(own / "own.yaml"), ["network.objective=DINO"])
    states = Audit(stated, Workspace(own / "w")).states()
    assert {name for name, state in states.items() if state.kind != "sealed"} == {
        "verdict",
        "report",
    }
    assert "network.objective changed" in states["report"].reason_text
    progress = Notes()
    run(stated, own / "w", Options(workers=2, restart_stale=True), progress)
    assert "network: trained with dino, audited with barlow-twins in its place" in str(
        progress.lines
    )
    subject = facts(own / "w")
    assert subject["training objective"] == "dino"
    assert subject["objective"] == "Barlow Twins"
    html = (own / "w/report.html").read_text()
    assert "Network: trained with dino, audited with barlow-twins in its place" in html
    sealed = small.seals(own / "w")
    assert {name for name in plain if plain[name] != sealed[name]} == {"verdict", "report"}


@pytest.mark.parametrize(
    ("stated", "trained"),
    [("Barlow Twins", "barlow-twins"), ("barlow_twins", "barlow-twins"), ("", "")],
)
def test_the_same_objective_is_no_difference(own: Path, stated: str, trained: str) -> None:
    recipe = Recipe.load(str(own / "own.yaml"), [f"network.objective={stated!r}"])
    assert recipe.notes == ()


def test_the_demo_trainer_is_believed(tmp_path: Path) -> None:
    assert small.recipe().notes == ()
    (note,) = small.recipe("stages.newton.objective=byol").notes
    assert note.startswith("trained with barlow-twins, audited with byol in its place")
    assert (
        small.recipe("stages.newton.objective=byol", "stages.pretrain.objective=byol").notes == ()
    )
    with pytest.raises(RecipeError) as caught:
        small.recipe("network.objective=mae")
    assert str(caught.value) == (
        "digits.yaml.network.objective: says 'mae', but stage pretrain trains with 'barlow-twins'; "
        "expected the objective of stages.pretrain, or no key"
    )
