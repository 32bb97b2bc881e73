"""Memory and time of feature rows come from measurement: plan, budget, forward batch, refusal."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn

from krepes_ooc.errors import PlanRefused
from krepes_ooc.jacobian import gradient_plan
from krepes_ooc.jacobian.opening import sample_size
from krepes_ooc.jacobian.row_cost import RowCost, measure_rows
from krepes_ooc.jacobian.row_size import RowSize, measure_pass_size
from krepes_ooc.network.frozen import freeze
from krepes_ooc.runner import plan as plans
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.plan import make_plan, refuse_unfit_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.storage.workspace import Workspace
from tests import small

MIB = 2**20
FACTORY = """
import torch
from torch import nn

def build(channels=4, outputs=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 1), nn.GELU(), nn.Conv2d(channels, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs),
    )

def same(x, sample_id, view_id, seed):
    return x
"""


def pictures(folder: Path, side: int = 8, samples: int = 300, **features: Any) -> Path:
    """A recipe of generated pictures and a small convolutional network."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    np.save(folder / "x.npy", draw.random((samples, side, side, 3)).astype(np.float32))
    (folder / "nets.py").write_text(FACTORY)
    recipe = {
        "recipe": "pictures",
        "source": {"kind": "arrays", "path": "x.npy"},
        "views": {"count": 2, "function": "nets.py:same"},
        "network": {"factory": "nets.py:build", "weights": "factory"},
        "stages": {
            "features": {"sketch": 64, "probes": 1, "deflated_probes": 0, **features},
            "landmarks": {"count": 8},
            "audited": {"audit": 20, "fit": 40},
            "spectrum": {"components": 2},
        },
    }
    path = folder / "pictures.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def large(monkeypatch: pytest.MonkeyPatch, sample: int, fixed: int = 0) -> None:
    """Rows whose batch takes so many bytes, whatever is measured."""
    size = RowSize(fixed, sample, 0, 1e6)
    monkeypatch.setattr(AuditInputs, "measure_rows", lambda *_: size)


def features_row(planned: Any) -> Any:
    return next(row for row in planned["stages"] if row["stage"] == "features")


def test_a_batch_that_does_not_fit_is_refused_with_one_that_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.load(str(pictures(tmp_path)))
    base = make_plan(recipe, tmp_path / "w", Options(workers=1))
    large(monkeypatch, 8 * MIB)
    memory = features_row(base)["memory_bytes"] + 700 * MIB
    with pytest.raises(PlanRefused) as caught:
        run(recipe, tmp_path / "w", Options(workers=1, memory=memory))
    assert caught.value.exit_code == 3
    words = str(caught.value)
    assert re.search(r"one worker needs [23]\.\d GiB of memory \(nor do .*features", words)
    assert "or set stages.features.forward_batch to 64" in words
    assert small.seals(tmp_path / "w") == {}
    # The plan shows the same, and refuses with the same words.
    planned = make_plan(recipe, tmp_path / "w", Options(workers=1, memory=memory))
    with pytest.raises(PlanRefused, match=r"or set stages\.features.forward_batch to 64"):
        refuse_unfit_plan(planned, tmp_path)
    again = Recipe.load(str(tmp_path / "pictures.yaml"), ["stages.features.forward_batch=64"])
    planned = make_plan(again, tmp_path / "w", Options(workers=1, memory=memory))
    assert features_row(planned)["workers"] == 1


def test_auto_takes_the_largest_batch_that_fits_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pictures(tmp_path, forward_batch="auto")
    recipe = Recipe.load(str(path))
    base = make_plan(recipe, tmp_path / "w", Options(workers=1))
    assert base["shape"]["forward_batch"] == 256
    memory = features_row(base)["memory_bytes"] + 700 * MIB
    large(monkeypatch, 8 * MIB)
    planned = make_plan(recipe, tmp_path / "w", Options(workers=1, memory=memory))
    assert planned["shape"]["forward_batch"] == 64
    assert features_row(planned)["workers"] == 1
    run(recipe, tmp_path / "w", Options(workers=1, memory=memory, until="features"))
    attributes = Workspace(tmp_path / "w").reader("features").attributes
    assert attributes["block_plan"]["forward_batch"] == 64
    # Begun with it, another budget changes no bit: the batch stays.
    later = make_plan(recipe, tmp_path / "w", Options(workers=1, memory=4 * memory))
    assert later["shape"]["forward_batch"] == 64
    assert features_row(later)["state"] == "sealed"


def test_the_batches_of_auto_are_those_of_the_number(tmp_path: Path) -> None:
    """The same rows as with the number written in the recipe."""
    values = []
    for name, batch in (("a", "auto"), ("b", 256)):
        path = pictures(tmp_path / name, forward_batch=batch)
        run(Recipe.load(str(path)), tmp_path / name / "w", Options(until="features"))
        values.append(Workspace(tmp_path / name / "w").reader("features").array("values"))
    np.testing.assert_array_equal(*values)


def test_weights_that_cannot_fit_are_refused_before_the_network_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_plan, "_proven_rules", None)
    recipe = Recipe.load(str(pictures(tmp_path)))
    with pytest.raises(PlanRefused, match="no forward batch fits"):
        run(recipe, tmp_path / "w", Options(workers=1, memory=64 * MIB))
    # The plan shows what does not fit, all the same from shapes, and refuses then.
    planned = make_plan(recipe, tmp_path / "w", Options(workers=1, memory=64 * MIB), timed=True)
    assert "does not fit the memory" in planned["rows"]["not measured"]
    assert features_row(planned)["workers"] == 0
    with pytest.raises(
        PlanRefused, match=r"one worker needs .* of memory \(nor do \w+(, \w+){4,} fit\)"
    ):
        refuse_unfit_plan(planned, tmp_path)


def test_table_and_cost_line_tell_one_time(tmp_path: Path) -> None:
    recipe = Recipe.load(str(pictures(tmp_path, side=24)))
    planned = make_plan(recipe, tmp_path / "w", Options(workers=1), timed=True)
    row = features_row(planned)
    said = re.search(r"all 600 rows: ([\d.,]+) to ([\d.,]+) s of", planned["rows"]["cost"])
    assert said is not None
    least, most = (float(part.replace(",", "")) for part in said.groups())
    assert least <= most
    # The table adds moments and bytes to the rows, and nothing else.
    assert row["seconds_range"][0] == pytest.approx(least, abs=0.5)
    assert row["seconds_range"][1] == pytest.approx(most, abs=0.5)
    assert row["seconds_range"][0] <= row["seconds"] <= row["seconds_range"][1]
    # Operations by positions: the parameters alone would give a few hundredths of them.
    positions, weights = 24 * 24, 3 * 4 + 4 * 8
    passes = next(t for t in row["cost"]["flops"]["phases"][""] if "passes" in t["label"])
    assert passes["total"] >= 600 * 4 * positions * weights


def test_a_cost_is_a_range_that_holds_its_spread() -> None:
    expected, least, most = RowCost(0.01, 0.004, 16, 0.2).seconds(1000)
    assert expected == pytest.approx(10.0)
    assert least == pytest.approx(8.0)
    assert most == pytest.approx(19.2)
    # An earlier record holds no spread: a tenth at least.
    old = RowCost.from_attributes({"row": 0.01, "plain": 0.004, "n_samples": 16})
    assert old.seconds(1000)[1] == pytest.approx(9.0)


def test_a_time_is_measured_until_its_spread_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from krepes_ooc.jacobian import row_cost

    clock = [0.0]
    durations = iter([0.1, 0.3, 0.2, 0.101, 0.1, 0.1, 9.9])

    def work() -> None:
        clock[0] += next(durations)

    monkeypatch.setattr(row_cost.time, "process_time", lambda: clock[0])
    seconds, spread = row_cost._cpu_seconds(work)
    assert seconds == pytest.approx(0.1)
    assert spread <= row_cost.LARGEST_SPREAD / 2
    assert measure_rows is row_cost.measure_rows


def test_a_plan_opens_no_network_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.load(str(pictures(tmp_path)))
    opened = make_plan(recipe, tmp_path / "w", Options(workers=1), timed=True)
    monkeypatch.setattr(plans, "OPENING_SECONDS", 0.0)
    monkeypatch.setattr(gradient_plan, "_proven_rules", None)
    planned = make_plan(recipe, tmp_path / "w", Options(workers=1), timed=True)
    words = planned["rows"]
    assert "the run opens it once and records what it finds" in words["not measured"]
    assert re.fullmatch(r"\d+ forward and backward passes of one sample", words["opening"])
    # From classes alone, and as they are proven where the network is opened.
    assert words["ways by class, not proven yet"] == "layers: Conv2d 4, Linear 2"
    assert opened["rows"]["ways by class"] == "layers: Conv2d 4, Linear 2"
    assert "a row estimated at 1.0 such passes; all 600 rows: " in words["cost"]
    for key in ("n_features", "n_moments", "n_outputs", "n_parameters", "block_rows"):
        assert planned["shape"][key] == opened["shape"][key]
    assert features_row(planned)["disk_bytes"] == features_row(opened)["disk_bytes"]
    assert features_row(planned)["seconds"] > 0


def test_what_a_plan_finds_in_a_workspace_is_kept_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.load(str(pictures(tmp_path)))
    Workspace(tmp_path / "w").create("pictures")
    make_plan(recipe, tmp_path / "w", Options(workers=1))
    records = list((tmp_path / "w" / ".krepes" / "openings").glob("*.json"))
    assert len(records) == 1
    body = json.loads(records[0].read_text())["body"]["parts"]
    assert {key.split(" ")[0] for key in body} == {
        "layers",
        "outputs",
        "rules",
        "sketches",
        "probes",
        "scales",
    }
    monkeypatch.setattr(gradient_plan, "_proven_rules", None)
    run(recipe, tmp_path / "w", Options(workers=1, until="features"))
    assert "features" in small.seals(tmp_path / "w")
    # A worker opens the inputs anew, from their declarations.
    inputs = pickle.loads(pickle.dumps(Audit(recipe, Workspace(tmp_path / "w")).inputs))
    opened = inputs.open_features(recipe.settings["features"])
    layout = Workspace(tmp_path / "w").reader("features").attributes["layout"]
    assert opened.layout.to_attributes() == layout


MEASURE = """
import json, sys
from pathlib import Path
from krepes_ooc.engine import machine
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.errors import PlanRefused

machine.INTERVAL_SECONDS = 0.002
path, memory = Path(sys.argv[1]), int(sys.argv[2])
recipe, options = Recipe.load(str(path)), Options(workers=1, memory=memory, until="features")
found = {}
with machine.ResourceMeter() as meter:
    planned = make_plan(recipe, path.parent / "w", options)
found["plan_peak"] = meter.facts()["anonymous_peak"]
found["planned"] = next(r for r in planned["stages"] if r["stage"] == "features")["memory_bytes"]
with machine.ResourceMeter() as meter:
    try:
        run(recipe, path.parent / "w", options)
        found["refused"] = ""
    except PlanRefused as error:
        found["refused"] = str(error)
found["run_peak"] = meter.facts()["anonymous_peak"]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told by /proc")
@pytest.mark.parametrize(("batch", "memory"), [(256, 4 << 30), (16, 1 << 30), (256, 600 << 20)])
def test_wide_activations_stay_within_the_plan(tmp_path: Path, batch: int, memory: int) -> None:
    """Few parameters, large activations: plan, opening and blocks together."""
    path = pictures(tmp_path, side=56, samples=64, forward_batch=batch)
    recipe = yaml.safe_load(path.read_text())
    recipe["network"]["arguments"] = {"channels": 160}
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-c", MEASURE, str(path), str(memory)]
    done = subprocess.run(command, cwd=small.ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    if found["refused"]:
        assert memory == 600 << 20
        assert "set stages.features.forward_batch to" in found["refused"]
    else:
        assert found["run_peak"] <= found["planned"] <= memory
    assert found["plan_peak"] <= memory
    assert found["run_peak"] <= memory


def test_auto_batches_fit_blocks_that_the_recipe_fixes(tmp_path: Path) -> None:
    recipe = Recipe.load(str(pictures(tmp_path, samples=40, forward_batch="auto", block_rows=16)))
    planned = make_plan(recipe, tmp_path / "w", Options(workers=1))
    assert (planned["shape"]["forward_batch"], planned["shape"]["block_rows"]) == (16, 16)


def test_a_plain_pass_stands_for_rows_with_the_gradients_at_all_layers() -> None:
    """What a plan measures of a network that it does not open is no less than rows take."""
    draw = np.random.default_rng(0)
    inputs = draw.random((4, 8, 96, 96)).astype(np.float32)
    body = [layer for _ in range(6) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.GELU())]
    network = freeze(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    size = sample_size(network, inputs)
    # Growth that sees nothing, as where the allocator has room: results and gradients count.
    arguments = (inputs, size, 1 << 60, lambda work: 0)
    plain = measure_pass_size(network, network.trainable, *arguments)
    assert plain.sample_bytes >= 2 * 4 * size.numbers
