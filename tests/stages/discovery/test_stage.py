"""Discovered concepts on whole audits: against dense arrays, killed and resumed, odd input."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.engine.cluster.connect import parse_cluster
from krepes_ooc.errors import RecipeError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.discovery import fits
from krepes_ooc.stages.discovery.stage import count_units
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences
from tests.stages import audits
from tests.stages.test_killed_audits import KILL

UNTIL = "discovery"
# Several shards.
CHANGES = ("source.limit=1100", "stages.features.block_rows=256", "stages.audited.fit=40")


@pytest.fixture(scope="module")
def space() -> Workspace:
    """A table with planted columns."""
    return audits.finished()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("reference") / "w"
    small.audit(workspace, *CHANGES, until=UNTIL, workers=1)
    return workspace


def anew(reference: Path, workspace: Path) -> Path:
    """A copy in which the stage is not begun."""
    shutil.copytree(reference, workspace)
    shutil.rmtree(workspace / ".krepes" / "stages" / UNTIL)
    shutil.rmtree(workspace / "audit.zarr" / UNTIL)
    return workspace


def dense_map(space: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """Z - zbar [view, sample, direction] in float64, centred by view 0, and the projection."""
    values, vectors = np.linalg.eigh(space.reader("kernel").array("landmark_kernel"))
    rank = int(space.reader("spectrum").attributes["usable_rank"])
    P = vectors[:, ::-1][:, :rank] / np.sqrt(values[::-1][:rank])
    Z = space.reader("kernel").array("values").astype(np.float64) @ P
    return Z - Z[0].mean(axis=0), P


@pytest.mark.parametrize("of", ["space", "reference"])
def test_figures_are_those_of_the_dense_map(of: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(of)
    space = found if isinstance(found, Workspace) else Workspace(found)
    store, kernel = space.reader(UNTIL), space.reader("kernel")
    K = kernel.array("values").astype(np.float64)
    activation = K @ store.array("weights") - store.array("const")
    Z, _ = dense_map(space)
    # Winners are fixed points: every concept is the direction of the mean of its unit rows.
    unit = Z[0] / np.linalg.norm(Z[0], axis=1, keepdims=True)
    winners = activation.argmax(axis=2)
    for concept in range(activation.shape[2]):
        mean = unit[winners[0] == concept].sum(axis=0)
        np.testing.assert_allclose(
            Z[1] @ mean / np.linalg.norm(mean), activation[1][:, concept], atol=2e-4
        )
    count = np.bincount(winners[0], minlength=activation.shape[2])
    assert store.array("count").tolist() == count.tolist() == sorted(count, reverse=True)
    np.testing.assert_allclose(store.array("share"), count / len(unit))
    same = winners[0] == winners[1]
    expected = [same[winners[0] == concept].mean() for concept in range(len(count))]
    np.testing.assert_allclose(store.array("view_agreement"), expected)
    agreement = store.attributes["view_agreement"]
    assert agreement["concepts"] == pytest.approx(same.mean())
    second = np.bincount(winners[1], minlength=len(count)) / len(unit)
    assert agreement["chance"] == pytest.approx(float(second @ count) / len(unit))
    random = (K @ store.array("random_weights") - store.array("random_const")).argmax(axis=2)
    assert agreement["random"] == pytest.approx(float(np.mean(random[0] == random[1])))


def test_landmarks_are_scored_like_samples(space: Workspace) -> None:
    store, kernel = space.reader(UNTIL), space.reader("kernel")
    activation = kernel.array("landmark_kernel") @ store.array("weights") - store.array("const")
    np.testing.assert_allclose(store.array("landmark_activation"), activation)
    assert np.array_equal(store.array("landmark_concept"), activation.argmax(axis=1))
    top = store.array("top_landmark")
    assert np.array_equal(top, np.argsort(-activation, axis=0, kind="stable")[: top.shape[1]].T)
    np.testing.assert_array_equal(
        store.array("top_activation"), np.take_along_axis(activation.T, top, axis=1)
    )


def test_columns_are_compared_over_all_samples(space: Workspace) -> None:
    store, kernel = space.reader(UNTIL), space.reader("kernel")
    names = store.attributes["columns"]
    assert names == ["a", "b", "c", "town", "coin", "flat"]
    table = np.genfromtxt(
        space.root.parent / "rows.csv", delimiter=",", names=True, dtype=None, encoding="utf-8"
    )[kernel.array("sample_id")]
    K = kernel.array("values")[0].astype(np.float64)
    winners = (K @ store.array("weights") - store.array("const")).argmax(axis=1)
    for concept in range(len(store.array("share"))):
        mine = table[winners == concept]
        value = store.array("column_value")[concept]
        assert value[0] == pytest.approx(mine["a"].mean(), rel=1e-5)
        scaled = (mine["a"].mean() - table["a"].mean()) / table["a"].std()
        assert store.array("column_difference")[concept, 0] == pytest.approx(scaled, abs=1e-5)
        level = "xyz"[store.array("column_level")[concept, names.index("town")]]
        assert value[names.index("town")] == pytest.approx(np.mean(mine["town"] == level))
        overall = store.array("column_overall")[concept, names.index("town")]
        assert overall == pytest.approx(np.mean(table["town"] == level))
    assert (store.array("column_difference")[:, names.index("flat")] == 0).all()


def test_workers_and_processes_change_no_bit(reference: Path, tmp_path: Path) -> None:
    threads = anew(reference, tmp_path / "threads")
    small.audit(threads, *CHANGES, until=UNTIL, workers=3)
    assert differences(reference, threads) == []
    processes = anew(reference, tmp_path / "processes")
    small.audit(processes, *CHANGES, until=UNTIL, cluster=parse_cluster("local", None))
    assert differences(reference, processes) == []


@pytest.mark.parametrize("limit", [2, 5, 8])
def test_a_kill_leaves_no_trace(reference: Path, tmp_path: Path, limit: int) -> None:
    workspace = anew(reference, tmp_path / "w")
    recipe = small.recipe(*CHANGES)
    path = tmp_path / "digits.yaml"
    path.write_text(recipe.text)
    ended = subprocess.run(
        [sys.executable, "-c", KILL, str(path), str(workspace), UNTIL, str(limit)],
        cwd=small.ROOT,
        env=os.environ | {"PYTHONPATH": str(small.ROOT)},
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    partials = list((workspace / ".krepes/stages/discovery").rglob("*.npz"))
    assert 0 < len(partials) < count_units(5)
    before = {path: path.stat().st_mtime_ns for path in partials}
    done = []
    original = fits.write_partial
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fits, "write_partial", lambda c, path, a: (done.append(path), original(c, path, a))
        )
        run(recipe, workspace, Options(workers=2, until=UNTIL))
    assert not set(done) & set(before)
    assert differences(reference, workspace) == []
    assert small.seals(workspace) == small.seals(reference)


def test_more_concepts_than_directions_are_fewer(tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    small.audit(workspace, "stages.discovery.concepts=100", until=UNTIL)
    store = Workspace(workspace).reader(UNTIL)
    rank = store.attributes["rank"]
    assert rank == Workspace(workspace).reader("spectrum").attributes["usable_rank"] <= 24
    assert (store.attributes["asked"], len(store.array("share"))) == (100, rank)
    assert store.array("share").sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", "digits.yaml.stages.discovery.concepts: 1 is not allowed; expected at least 2"),
        ("0", "digits.yaml.stages.discovery.concepts: 0 is not allowed; expected at least 2"),
        (
            "5000",
            "digits.yaml.stages.discovery.concepts: 5000 is not allowed; expected at most 1000",
        ),
        (
            "many",
            "digits.yaml.stages.discovery.concepts: 'many' is not allowed; "
            "expected a value of type int",
        ),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(value: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        small.recipe(f"stages.discovery.concepts={value}")
    assert str(caught.value) == expected


@pytest.mark.parametrize("case", ["equal", "zero"])
def test_samples_that_are_all_equal_have_no_concepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Path, case: str
) -> None:
    """Rows without any difference: a store without concepts, and a reason."""
    workspace = anew(reference, tmp_path / "w")
    original = fits.ConceptFits._mapped_rows

    def same(self, kernel, projection):
        rows, mean = original(self, kernel, projection)
        rows[:] = 0.0
        rows[:, 0] = float(case == "equal")
        return rows, mean

    monkeypatch.setattr(fits.ConceptFits, "_mapped_rows", same)
    small.audit(workspace, *CHANGES, until=UNTIL)
    store = Workspace(workspace).reader(UNTIL)
    assert not store.attributes["defined"]
    assert store.attributes["reason"]
    assert store.array("weights").shape == (24, 0)
    assert small.floats_that_are_not_finite(workspace) == []


def test_three_samples(tmp_path: Path) -> None:
    changes = (
        "source.limit=3",
        "stages.landmarks.count=2",
        "stages.spectrum.components=1",
        "stages.groups.clusters=2",
        "stages.audited.audit=1",
        "stages.audited.fit=0",
    )
    small.audit(tmp_path / "w", *changes, until=UNTIL)
    store = Workspace(tmp_path / "w").reader(UNTIL)
    assert store.array("count").sum() == 3
    assert (store.array("stable") == 0).any()


def test_a_single_view_agrees_with_none(tmp_path: Path) -> None:
    recipe = Recipe.load(str(small.own_recipe(tmp_path)), ["views.count=1"])
    run(recipe, tmp_path / "w", Options(workers=2, until=UNTIL))
    store = Workspace(tmp_path / "w").reader(UNTIL)
    assert np.isnan(store.array("view_agreement")).all()
    assert set(store.attributes["view_agreement"].values()) == {0.0}
    assert small.floats_that_are_not_finite(tmp_path / "w") == []
