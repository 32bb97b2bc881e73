"""Examples on whole audits: against the stores that they come from, killed, with odd input."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.run import run
from krepes_ooc.stages.examples.convex_weights import convex_weights, share_explained
from krepes_ooc.storage.export import export_store
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences
from tests.stages import audits
from tests.stages.test_killed_audits import KILL


@pytest.fixture(scope="module")
def space() -> Workspace:
    return audits.finished()


def test_weights_add_up_to_the_networks_embedding(space: Workspace) -> None:
    store, audited = space.reader("examples"), space.reader("audited")
    explained = audited.array("role") == 0
    target = audited.array("network_embedding")[explained].astype(float)
    landmarks = store.array("landmark_embedding").astype(float)
    chosen, weight = store.array("top_landmark"), store.array("weight")
    assert np.array_equal(store.array("sample_id"), audited.array("sample_id")[explained])
    assert np.array_equal(chosen, space.reader("influence").array("top_landmark")[explained])
    np.testing.assert_allclose(weight, convex_weights(target, landmarks, chosen), atol=1e-6)
    found = np.einsum("sk,sko->so", weight, landmarks[chosen])
    figures = store.attributes["r_squared"]
    assert share_explained(target, found) == pytest.approx(figures["ranking"], abs=1e-5)
    spread = np.sqrt(np.mean(np.sum((target - target.mean(axis=0)) ** 2, axis=1)))
    np.testing.assert_allclose(
        store.array("residual"), np.linalg.norm(target - found, axis=1) / spread, atol=1e-5
    )
    assert figures["random"] < figures["kernel"] <= figures["all_landmarks"] + 1e-6
    assert figures["nearest"] <= figures["all_landmarks"] + 1e-6
    assert figures["ranking_of_bound_samples"] <= figures["all_landmarks"] + 1e-6


def test_the_landmarks_embedding_is_the_networks(space: Workspace) -> None:
    """A landmark lies among the audited samples in another audit; here the factory is asked."""
    import torch
    from safetensors.torch import load_file

    from krepes_ooc.runner.audit import Audit

    folder = space.root.parent
    spaces: dict = {}
    exec((folder / "net.py").read_text(), spaces)
    network = spaces["net"](inputs=6)
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    inputs, _ = Audit(audits.recipe_of(space), space).inputs.encode(
        space.reader("landmarks").array("sample_id"), -1
    )
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs)).numpy()
    found = space.reader("examples").array("landmark_embedding")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_samples_show_the_concept_of_the_largest_activation(space: Workspace) -> None:
    store, discovery = space.reader("examples"), space.reader("discovery")
    kernel = space.reader("influence").array("kernel")
    activation = kernel @ discovery.array("weights") - discovery.array("const")
    np.testing.assert_allclose(store.array("activation"), activation, atol=1e-12)
    assert np.array_equal(store.array("concept"), activation.argmax(axis=1))
    for key in ("average_precision", "embedding_r_squared"):
        figures = store.attributes[key]
        assert set(figures) == {"concepts", "random", "inputs"}
        assert figures["concepts"] > figures["random"]


def test_tables_are_ranked_and_name_samples(space: Workspace, tmp_path: Path) -> None:
    store, audited = space.reader("examples"), space.reader("audited")
    ids, near = audited.array("sample_id"), store.array("closeness")
    novel = store.array("novel_audited")
    assert np.array_equal(novel, np.argsort(near, kind="stable")[: len(novel)])
    assert np.array_equal(store.array("novel_id"), ids[novel])
    assert store.attributes["copies_by"] == "rows"
    for table in ("pair", "copy"):
        assert (np.diff(store.array(f"{table}_ratio")) >= 0).all()
        assert set(store.array(f"{table}_first_id")) <= set(ids)
        assert (store.array(f"{table}_first_id") != store.array(f"{table}_second_id")).all()
    assert (np.diff(store.array("mixed_share")) <= 0).all()
    assert np.array_equal(store.array("mixed_id"), ids[store.array("mixed_audited")])
    landmark_ids = space.reader("landmarks").array("sample_id")
    assert np.array_equal(store.array("lonely_id"), landmark_ids[store.array("lonely_landmark")])
    assert (np.diff(store.array("lonely_closeness")) >= 0).all()
    assert (store.array("own_landmark") == -1).all()
    columns = {"pair": "pair_first_id", "copy": "copy_second_id", "novel": "novel_id"}
    for dim, column in {**columns, "mixed": "mixed_id"}.items():
        export_store(space, "examples", tmp_path / f"{dim}.csv", "csv", dim)
        table = pyarrow.csv.read_csv(tmp_path / f"{dim}.csv")
        assert table[column].to_pylist() == store.array(column).tolist()
    export_store(space, "examples", tmp_path / "weights.csv", "csv", "explained")
    table = pyarrow.csv.read_csv(tmp_path / "weights.csv")
    ranks = store.array("weight").shape[1]
    assert table["sample_id"].to_pylist()[::ranks] == store.array("sample_id").tolist()
    np.testing.assert_allclose(table["weight"].to_numpy(), store.array("weight").reshape(-1))


def test_a_landmark_that_is_explained_is_told_and_does_not_explain_itself(tmp_path: Path) -> None:
    small.audit(tmp_path / "w", until="landmarks")
    ids = Workspace(tmp_path / "w").reader("landmarks").array("sample_id")[:5].tolist()
    chosen = f"stages.audited.sample_ids={[*ids, 1, 2, 3]}"
    small.audit(tmp_path / "w", chosen, until="examples", restart_stale=True)
    store = Workspace(tmp_path / "w").reader("examples")
    audited = Workspace(tmp_path / "w").reader("audited").array("sample_id")
    own = store.array("own_landmark")
    for sample, landmark in zip(audited, own, strict=True):
        assert (landmark >= 0) == (int(sample) in ids)
    explained = own[: len(store.array("weight"))]
    assert (explained >= 0).sum() == 5
    assert (store.array("top_landmark") != np.where(explained >= 0, explained, -9)[:, None]).all()
    np.testing.assert_allclose(store.array("weight").sum(axis=1), 1.0)


def test_a_kill_leaves_no_trace(space: Workspace, tmp_path: Path) -> None:
    workspace = tmp_path / "w"
    shutil.copytree(space.root, workspace)
    shutil.rmtree(workspace / ".krepes" / "stages" / "examples")
    shutil.rmtree(workspace / "audit.zarr" / "examples")
    recipe = space.root.parent / "own.yaml"
    ended = subprocess.run(
        [sys.executable, "-c", KILL, str(recipe), str(workspace), "examples", "9"],
        cwd=small.ROOT,
        env=os.environ | {"PYTHONPATH": str(small.ROOT)},
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    run(audits.recipe_of(space), workspace, Options(workers=2, until="examples"))
    assert differences(space.root, workspace) == []


def test_without_fit_samples_and_labels_there_are_still_weights(tmp_path: Path) -> None:
    changes = ("stages.audited.fit=0", "stages.audited.audit=3", "stages.examples.table=1")
    small.audit(tmp_path / "w", *changes, until="examples")
    store = Workspace(tmp_path / "w").reader("examples")
    assert len(store.array("weight")) == 3
    assert len(store.array("novel_id")) == len(store.array("pair_distance")) == 1
    assert set(store.attributes["embedding_r_squared"].values()) == {None}
