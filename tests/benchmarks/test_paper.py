"""The paper's tables: every cell is a recipe, and the page says what was measured."""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks import paper
from benchmarks.paper_cells import CENSUS, DATA, OBJECTIVES, VARIANTS, Cell, measure
from benchmarks.paper_figures import draw
from benchmarks.paper_page import spread, write_page


@pytest.mark.parametrize("data", list(DATA))
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_cell_is_a_recipe(data: str, variant: str, tmp_path: Path) -> None:
    recipe = Cell(data, "byol", 3, variant).recipe(tmp_path)
    assert recipe.seed == 3
    assert recipe.settings["newton"].objective == "byol"
    assert recipe.settings["pretrain"].objective == "byol"
    if DATA[data].path:
        assert Path(str(recipe.source.path)).is_relative_to(tmp_path)


def test_files_of_figures_are_told_apart() -> None:
    cells = [Cell(d, o, s, v) for d in DATA for o in OBJECTIVES for s in (0, 1) for v in VARIANTS]
    assert len({cell.file for cell in cells}) == len(cells)
    assert len(CENSUS) == 42


def test_defaults_are_chosen_on_two_sets_only() -> None:
    chosen = argparse.Namespace(
        command="choose", sets=None, objectives=OBJECTIVES, variants=None, seeds=1
    )
    assert {cell.data for cell in paper.cells(chosen)} == {"digits", "adult"}
    chosen.command = "report"
    reported = list(paper.cells(chosen))
    assert {cell.data for cell in reported} == set(DATA) - {"digits"}
    assert all(cell.frozen for cell in reported)
    assert len({cell.file for cell in reported}) == len(reported)


def test_reported_audits_have_the_frozen_settings(tmp_path: Path) -> None:
    recipe = Cell("mnist", "simclr", 0, frozen=True).recipe(tmp_path)
    assert recipe.settings["landmarks"].count == 1000
    assert recipe.settings["spectrum"].components == 32
    curve = Cell("mnist", "simclr", 0, "m = 128", frozen=True).recipe(tmp_path)
    assert curve.settings["landmarks"].count == 128


def test_what_is_measured_is_kept(tmp_path: Path) -> None:
    cell = Cell("digits", "barlow-twins", 0)
    found = tmp_path / "figures" / cell.file
    found.parent.mkdir()
    found.write_text('{"kept": 1}')
    assert measure(cell, tmp_path, tmp_path) == {"kept": 1}


def _figures(seed: int, tau: float, **more: Any) -> dict[str, Any]:
    return {
        "data": "adult",
        "objective": "vicreg",
        "seed": seed,
        "variant": "default",
        "samples": 48842,
        "frozen": True,
        "landmarks": 256,
        "components": 64,
        "figures": {"kendall_tau": {"value": tau, "controls": {"raw_inputs": 0.5}}},
        "curves": {},
        "damping": 0.1,
        "rho": 1.0,
        "trusted": True,
        "alignment": {"gender": {"gap": 0.3, "stderr": 0.01, "kernel_only": 0.2}},
        "cost": dict.fromkeys(("kernel", "solve", "pretrain", "other", "cpu", "peak"), 1.0),
        **more,
    }


def test_the_page_holds_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    folder, page = tmp_path / "figures", tmp_path / "results.md"
    folder.mkdir()
    for seed, tau in enumerate((0.8, 0.9)):
        (folder / f"{seed}.json").write_text(json.dumps(_figures(seed, tau)))
    plain = _figures(0, 0.8, frozen=False)
    (folder / "chosen.json").write_text(json.dumps(plain))
    changed = _figures(0, 0.7, variant="h = 16", frozen=False)
    (folder / "changed.json").write_text(json.dumps(changed))
    write_page(folder, page)
    text = page.read_text()
    assert "| adult | vicreg | - | - | - | - | 0.85 ± 0.071 |" in text
    assert "| gender | - | 0.3 ± 0 (0.2) | - | - |" in text
    assert "| adult | h = 16 | 1 | -0.1 |" in text


def test_spread() -> None:
    assert spread([None, float("nan")]) == "-"
    assert spread([2.0]) == "2"
    assert spread([1.0, 3.0]) == "2 ± 1.4"


def test_figures_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    curve = {"x": [1.0, 2.0, 4.0], "lines": {"start": [0.1, 0.5, 0.6]}}
    cells = [
        _figures(0, 0.8, curves={"tau_over_components": curve}),
        _figures(0, 0.7, landmarks=64, variant="m = 64"),
    ]
    lines = draw(cells, tmp_path / "results").splitlines()
    drawn = {path.name: ElementTree.parse(path) for path in (tmp_path / "results").iterdir()}
    assert set(drawn) == {"adult-tau-m.svg", "adult-tau-h.svg"}
    assert len(lines) == 2
    space = "{http://www.w3.org/2000/svg}"
    assert len(drawn["adult-tau-h.svg"].findall(f".//{space}circle")) == 3
    assert len(drawn["adult-tau-m.svg"].findall(f".//{space}circle")) == 2
    assert draw([], tmp_path / "none") == "Not measured."
