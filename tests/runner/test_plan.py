"""What a plan foretells is what a run writes, and a plan leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.engine.calibration import Rates
from krepes_ooc.errors import PlanRefused, UsageError
from krepes_ooc.jacobian.row_cost import RowCost
from krepes_ooc.runner import preflight
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.plan import Timing, make_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term
from tests import small


def written(workspace: Path) -> dict[str, int]:
    stages = workspace / ".krepes" / "stages"
    bodies = (json.loads(path.read_text())["body"] for path in stages.glob("*/seal.json"))
    return {body["stage"]: body["bytes"] for body in bodies}


@pytest.mark.parametrize("kind", ["digits", "table"])
def test_disk(tmp_path: Path, kind: str) -> None:
    rows = small.rows_csv(3000)
    recipe = (
        Recipe.load("digits", ["stages.pretrain.epochs=1", "stages.concepts.sets={}"])
        if kind == "digits"
        else Recipe.load(str(small.own_recipe(tmp_path, rows)), ["stages.landmarks.count=128"])
    )
    planned = make_plan(recipe, tmp_path / "w", Options())
    assert not (tmp_path / "w").exists()
    foretold = {row["stage"]: row["disk_bytes"] for row in planned["stages"]}
    run(recipe, tmp_path / "w", Options(until="kernel"))
    found = written(tmp_path / "w")
    for stage in ("features", "kernel"):
        assert found[stage] == pytest.approx(foretold[stage], rel=0.05)
    total = sum(foretold[stage] for stage in found)
    assert sum(found.values()) == pytest.approx(total, rel=0.05)
    left = make_plan(recipe, tmp_path / "w", Options())
    assert all(r["remaining_bytes"] == 0 for r in left["stages"] if r["stage"] in found)
    assert left["disk"]["needed"] < planned["disk"]["needed"]


def test_plan_follows_settings_of_later_stages(tmp_path: Path) -> None:
    small.audit(tmp_path, until="features")
    few, many = (
        make_plan(small.recipe(f"stages.landmarks.count={m}"), tmp_path, Options())
        for m in (20, 100)
    )
    assert few["shape"]["n_landmarks"] == 20
    assert many["shape"]["n_landmarks"] == 100
    assert few["shape"]["block_rows"] == many["shape"]["block_rows"]
    assert few["stages"][0]["state"] == many["stages"][1]["state"] == "sealed"


def test_changed_architecture_can_be_planned_and_run(tmp_path: Path) -> None:
    small.audit(tmp_path, until="landmarks")
    changed = small.recipe("network.arguments.hidden=[24]")
    planned = make_plan(changed, tmp_path, Options())
    assert [row["state"] for row in planned["stages"][:2]] == ["stale", "stale"]
    summary = run(changed, tmp_path, Options(restart_stale=True, until="landmarks"))
    assert summary.ran == ["pretrain", "features", "landmarks"]


def test_all_stages_must_fit_before_the_first_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krepes_ooc.engine import machine

    recipe = small.recipe("stages.landmarks.count=200")
    planned = make_plan(recipe, tmp_path / "w", Options(workers=1))
    needs = {r["stage"]: r["memory_bytes"] - planned["memory"]["base"] for r in planned["stages"]}
    worst = max(needs, key=lambda name: needs[name])
    assert worst not in ("pretrain", "features")
    monkeypatch.setattr(machine, "anonymous_bytes", lambda: 0)
    limit = (max(v for name, v in needs.items() if name != worst) + needs[worst]) // 2
    with pytest.raises(PlanRefused, match=f"stage {worst}: one worker needs "):
        run(recipe, tmp_path / "w", Options(memory=limit))
    assert small.seals(tmp_path / "w") == {}


def test_disk_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 4096

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(PlanRefused, match=r"MiB of disk needed, 4\.0 KiB free") as caught:
        small.audit(tmp_path)
    assert caught.value.exit_code == 3
    assert small.seals(tmp_path) == {}


def test_resuming_needs_only_the_disk_that_is_left(tmp_path: Path, monkeypatch: Any) -> None:
    small.audit(tmp_path, until="features")
    (tmp_path / ".krepes/stages/features/seal.json").unlink()

    class Usage:
        free = 2**20  # the centre and the metadata; the blocks take 1.3 MiB more

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage)
    assert small.audit(tmp_path, until="features").ran == ["features"]


def test_small_sources_leave_samples_to_audit() -> None:
    from krepes_ooc.stages.landmarks.landmark_settings import LandmarksSettings, count_landmarks

    assert [count_landmarks(LandmarksSettings(), n) for n in (2, 3, 300, 512, 10**6)] == [
        1,
        1,
        150,
        256,
        1000,
    ]


def test_features_of_a_broken_block_plan(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="forward_batch 300 does not divide"):
        make_plan(small.recipe("stages.features.forward_batch=300"), tmp_path / "w", Options())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            ("views.count=1",),
            "stages.newton.objective: barlow-twins compares views, the kernel holds 1; expected at "
            "least 2 views; set views.count to 2 or more",
        ),
        (
            ("stages.newton.objective=simclr", "stages.spectrum.components=1"),
            "stages.spectrum.components: 1 component of simclr, which compares directions: one "
            "cannot turn; expected at least 2; raise it, or choose another objective",
        ),
        (
            ("stages.newton.objective=byol", "stages.spectrum.components=1"),
            "1 component of byol",
        ),
        (
            ("stages.newton.objective=simclr", "stages.newton.objective_settings={batch: 100}"),
            "stages.newton.objective_settings.batch: a batch of 100 does not divide blocks of",
        ),
    ],
)
def test_what_the_step_cannot_do_is_refused_before_the_first_task(
    tmp_path: Path, changes: tuple[str, ...], line: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(small.recipe(*changes), tmp_path / "w", Options())
    assert line in str(caught.value)
    with pytest.raises(UsageError) as caught:
        small.audit(tmp_path / "w", *changes)
    assert line in str(caught.value)
    assert small.seals(tmp_path / "w") == {}


def test_one_component_is_enough_where_nothing_has_to_turn(tmp_path: Path) -> None:
    changes = ("stages.newton.objective=vicreg", "stages.spectrum.components=1")
    make_plan(small.recipe(*changes), tmp_path / "w", Options())


def test_time_is_that_of_the_workers_that_fit_the_memory() -> None:
    timing = Timing(Rates(1e9, 1e9, 1e9, 1e9, 1e9), RowCost(0.1, 0.1, 8), 5.0)
    cost = Cost(units=8, flops=Quantity.of(Term(ROW_PASSES, 5.0 * 600)))
    one, two = (timing.of(cost, workers)["seconds"] for workers in (1, 2))
    assert one == pytest.approx(60.0)
    assert two == pytest.approx(30.0)
    # A stage that does not fit at all is timed as one that just fits.
    assert timing.of(cost, 0)["seconds"] == one
