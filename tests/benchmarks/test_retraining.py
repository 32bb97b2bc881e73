"""Cells of the benchmark are recipes that can be read; entries are JSON without NaN."""

from __future__ import annotations

import json

import pytest

from benchmarks import retraining
from tests.stages import retraining_audits as audits


@pytest.mark.parametrize("name", retraining.cells())
def test_every_cell_is_a_recipe_with_the_stage_on(name: str):
    recipe = retraining.cells()[name].load()
    assert recipe.stages[-2].name in ("retraining", "verdict")
    assert recipe.settings["retraining"].enabled
    assert recipe.settings["retraining"].seeds == (5 if name.startswith("digits") else 3)
    assert recipe.settings["newton"].objective == recipe.settings["pretrain"].objective
    assert recipe.settings["groups"].halves == (12 if name.startswith("digits") else 0)


@pytest.mark.timeout(600)
def test_an_entry_is_what_the_store_says(capsys: pytest.CaptureFixture[str]):
    found = retraining.entry(audits.digits_after())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["trainings"] == 14
    assert found["agreement"]["group_size"]["within"] == [None, None, None]
    value = found["figures"]["retraining_pairs"]["value"]
    assert found["agreement"]["group_influence"]["pairs"][0] == pytest.approx(value, abs=1e-4)
    retraining.print_cell("digits", found)
    printed = capsys.readouterr().out
    assert f"retraining_pairs: {value:.2f}" in printed
    assert "14 trainings" in printed
