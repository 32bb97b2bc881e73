"""An audit whose landmarks have a row, and coefficients, for every view, against dense routines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.explanation.explain import explain
from krepes_ooc.runner.run import run
from krepes_ooc.stages.features.inner_products import unscale
from krepes_ooc.storage.workspace import Workspace
from tests import dense, small
from tests.crash.compare import differences
from tests.residual import relative_residual
from tests.stages.test_killed_audits import KILL

CHANGE = "stages.landmarks.rows=both"
M, VIEWS = 24, 2
# Stage, and how many of its files are published before the kill.
KILLED = {"landmarks": 3, "kernel": 2, "influence": 3}


def exact(stored: np.ndarray, layout: FeatureLayout) -> np.ndarray:
    """Stored rows without their scales, in float64."""
    return np.asarray(unscale(stored.astype(np.float64), layout))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The finished audit; read only."""
    workspace = tmp_path_factory.mktemp("both") / "w"
    small.audit(workspace, CHANGE)
    return Workspace(workspace)


def test_every_view_of_a_landmark_has_a_row(space: Workspace) -> None:
    marks, features = space.reader("landmarks"), space.reader("features")
    ids, views = marks.array("sample_id"), marks.array("view")
    assert len(np.unique(ids)) == M
    assert views.tolist() == [0] * M + [1] * M
    assert ids[:M].tolist() == ids[M:].tolist() == sorted(set(ids.tolist()))
    # The same rows as those of the samples.
    order = {int(sample): i for i, sample in enumerate(features.array("sample_id"))}
    stored = features.array("values")
    expected = [stored[view, order[int(one)]] for one, view in zip(ids, views, strict=True)]
    assert np.array_equal(marks.array("features"), np.stack(expected))
    assert marks.array("weight")[:M].sum() == small.ROWS


def test_kernel_rows_are_inner_products_with_the_rows_of_the_views(space: Workspace) -> None:
    marks, features = space.reader("landmarks"), space.reader("features")
    layout = FeatureLayout.from_attributes(features.attributes["layout"])
    phi_l = dense.explicit_features(exact(marks.array("features"), layout), layout)
    found = space.reader("kernel").array("values")
    phi = [
        dense.explicit_features(exact(rows, layout), layout) for rows in features.array("values")
    ]
    centre = np.concatenate(phi).mean(axis=0)
    for view in range(VIEWS):
        expected = dense.centred_cosine(phi[view][:50], phi_l, centre)
        assert np.abs(found[view, :50] - expected).max() < 2e-3
    between = space.reader("kernel").whole("landmark_kernel")
    assert np.abs(between - dense.centred_cosine(phi_l, phi_l, centre)).max() < 2e-3


def test_the_step_solves_the_system_of_all_rows(space: Workspace) -> None:
    assert space.reader("newton").info("coefficients").shape[0] == VIEWS * M
    _, residual = relative_residual(space.root)
    assert residual <= 1.01 * space.reader("newton").attributes["tolerance"]


def test_a_landmark_is_ranked_by_its_strongest_row(
    space: Workspace,
) -> None:
    store, offset = space.reader("influence"), space.reader("spectrum").array("offset")
    K, A, step = (store.array(name) for name in ("kernel", "coefficients", "step"))
    between = space.reader("kernel").whole("landmark_kernel")
    by_row = dense.influence("aligned", K, step, A, landmark_kernel=between) * (K > 0)
    signed = dense.influence("signed-step", K, step, A, offset=offset)
    score = np.zeros((len(K), M))
    contribution = np.zeros((len(K), M))
    for t in range(len(K)):
        for mark in range(M):
            score[t, mark] = max(by_row[t, mark], by_row[t, mark + M], key=abs)
            contribution[t, mark] = signed[t, mark] + signed[t, mark + M]
    top = store.array("top_landmark")
    assert top.max() < M
    order = np.argsort(-np.abs(score), axis=1, kind="stable")[:, : top.shape[1]]
    ranked = np.take_along_axis(score, top, axis=1)
    np.testing.assert_allclose(ranked, np.take_along_axis(score, order, axis=1), atol=1e-10)
    np.testing.assert_allclose(store.array("score"), ranked, atol=1e-10)
    expected = np.take_along_axis(contribution, top, axis=1)
    np.testing.assert_allclose(store.array("contribution"), expected, atol=1e-10)
    # The embedding is the sum over all rows.
    np.testing.assert_allclose(store.array("embedding"), K @ A + offset, atol=1e-10)


def test_a_new_sample_is_explained_as_a_stored_one(space: Workspace, tmp_path: Path) -> None:
    stored = space.reader("audited").array("sample_id")
    new = next(i for i in range(small.ROWS) if i not in set(stored.tolist()))
    marks = set(space.reader("landmarks").array("sample_id").tolist())
    for sample in (int(stored[0]), new):
        found = explain(space.root, sample=sample)[0]
        ids = [mark["sample_id"] for mark in found.record()["landmarks"]]
        assert len(ids) == 10
        assert set(ids) <= marks
        assert len(ids) == len(set(ids))


def test_the_report_counts_landmarks_and_not_rows(space: Workspace) -> None:
    checks = space.reader("verdict").attributes["verdict"]["checks"]
    shown = {check["key"]: check["figures"] for check in checks}
    assert shown["landmarks"] == {"count": M}
    for name, bound in (("randomised", M), ("examples", M), ("discovery", M)):
        assert space.reader(name).array("top_landmark").max() < bound, name


def test_without_the_key_and_with_one_row_the_stages_are_the_same() -> None:
    plain, one = (small.recipe(*given) for given in ((), ("stages.landmarks.rows=clean",)))
    assert plain.settings == one.settings


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_while_it_writes_it_ends_in_the_same_bits(space: Workspace, tmp_path: Path) -> None:
    root, recipe = Path(__file__).parents[3], tmp_path / "own.yaml"
    workspace = tmp_path / "w"
    shutil.copytree(space.root, workspace)
    stages = workspace / ".krepes" / "stages"
    for stage in [path.name for path in stages.iterdir()]:
        if stage not in ("pretrain", "features"):
            shutil.rmtree(stages / stage)
            shutil.rmtree(workspace / "audit.zarr" / stage, ignore_errors=True)
    recipe.write_text(small.recipe(CHANGE).text)
    for stage, limit in KILLED.items():
        ended = subprocess.run(
            [sys.executable, "-c", KILL, str(recipe), str(workspace), stage, str(limit)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            check=False,
            capture_output=True,
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        assert stage not in small.seals(workspace)
    run(small.recipe(CHANGE), workspace, Options(workers=2, until="influence"))
    whole = tmp_path / "until influence"
    shutil.copytree(space.root, whole)
    for stage in small.seals(space.root).keys() - small.seals(workspace).keys():
        shutil.rmtree(whole / "audit.zarr" / stage, ignore_errors=True)
    assert set(KILLED) <= small.seals(workspace).keys()
    # The group's own document lists the stores that are there.
    assert set(differences(whole, workspace)) <= {"differs: zarr.json"}
