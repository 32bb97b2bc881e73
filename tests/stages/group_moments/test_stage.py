"""Moments of groups against the stored kernel, in waves, spans, shards, and through kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.core.blocks import Block
from krepes_ooc.errors import KrepesError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.run import run
from krepes_ooc.stages.group_moments import stage
from krepes_ooc.stages.group_moments.group_sums import GroupMoments
from krepes_ooc.stages.group_moments.stored_groups import StoredGroupMoments, StoredGroups
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences
from tests.stages import audits, group_audits
from tests.stages.test_killed_audits import KILL
from tests.storage import stores

# More rows and several shards, so that there are several spans.
CHANGES = (
    "source.limit=1100",
    "stages.features.block_rows=256",
    "stages.audited.fit=40",
    "stages.groups.columns=auto",
)


def stored(space: Workspace) -> StoredGroupMoments:
    return StoredGroupMoments(space.reader("group_moments"), StoredGroups(space.reader("groups")))


def assert_equal(found: GroupMoments, wanted: GroupMoments, tolerance: float = 1e-12) -> None:
    assert found.n_samples == wanted.n_samples
    np.testing.assert_allclose(found.mean, wanted.mean, atol=tolerance)
    np.testing.assert_allclose(found.second, wanted.second, atol=tolerance)


@pytest.fixture(scope="module", autouse=True)
def long() -> Iterator[None]:
    """Several spans for few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "LONG_ROWS", 1000)
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("reference") / "w"
    small.audit(workspace, *CHANGES, until="group_moments")
    return workspace


def anew(reference: Path, tmp_path: Path) -> Path:
    """A copy in which the moments of groups are not begun."""
    workspace = tmp_path / "w"
    shutil.copytree(reference, workspace)
    shutil.rmtree(workspace / ".krepes" / "stages" / "group_moments")
    shutil.rmtree(workspace / "audit.zarr" / "group_moments")
    return workspace


def test_every_group_and_its_rest_are_the_moments_of_their_rows():
    space = group_audits.finished()
    K, moments = group_audits.kernels(space), stored(space)
    assert_equal(moments.total(), group_audits.dense(K))
    for group in range(len(moments.groups.names)):
        chosen = group_audits.member(space, group)
        if chosen.any():
            assert_equal(moments.group(group), group_audits.dense(K[:, chosen]))
        if chosen.sum() < len(chosen):
            assert_equal(moments.rest(group), group_audits.dense(K[:, ~chosen]))


def test_the_sums_of_a_partition_are_the_total(reference: Path):
    space = Workspace(reference)
    reader, groups = space.reader("group_moments"), space.reader("groups")
    count = reader.array("count")
    for partition in (0, 1):
        chosen = groups.array("partition") == partition
        assert count[chosen].sum() == 1100
        n, mean = count[chosen], reader.array("mean")[chosen]
        total = np.einsum("g,gvl->vl", n, mean) / n.sum()
        np.testing.assert_allclose(total, reader.array("total_mean"), atol=1e-12)
        second = np.einsum("g,gpij->pij", n, reader.array("second")[chosen]) / n.sum()
        d = mean - total
        for p, (a, b) in enumerate(reader.attributes["pairs"]):
            between = np.einsum("g,gi,gj->ij", n, d[:, a], d[:, b]) / n.sum()
            np.testing.assert_allclose(
                second[p] + between, reader.array("total_second")[p], atol=1e-12
            )


def test_the_total_is_that_of_the_moments_stage_up_to_its_rounding(reference: Path):
    space = Workspace(reference)
    full = stored(space).total().full()
    np.testing.assert_allclose(full.second, space.reader("moments").array("second"), atol=1e-6)


def test_without_a_whole_partition_the_other_samples_are_one_more_group(tmp_path: Path):
    groups = {"clusters": 0, "columns": {"coin": ["h"]}}
    space = audits.audit(tmp_path, "group_moments", groups=groups)
    assert_equal(stored(space).total(), group_audits.dense(group_audits.kernels(space)))
    assert space.reader("group_moments").info("mean").shape[0] == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_waves_and_workers_change_no_bit(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    monkeypatch.setattr(stage, "WAVE_BYTES", 3 * 8 * 3 * 24 * 24)
    workspace = anew(reference, tmp_path)
    small.audit(workspace, *CHANGES, until="group_moments", workers=workers)
    assert differences(reference, workspace) == []


def test_shards_in_any_order(reference: Path, tmp_path: Path):
    workspace = anew(reference, tmp_path)
    for number in (3, 1, 1, 2):
        found = small.audit(workspace, *CHANGES, only="group_moments", shard=(number, 3))
        assert found.shard == f"shard {number}/3 of group_moments"
    small.audit(workspace, *CHANGES, until="group_moments")
    assert differences(reference, workspace) == []
    assert small.seals(workspace) == small.seals(reference)


def test_a_checkpoint_on_the_way_goes_on(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every shard is kept; the run ends in the middle of a span, and goes on with other groups."""
    workspace = anew(reference, tmp_path)
    monkeypatch.setattr(stage, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(stage, "SAVING_RATIO", 0.0)
    monkeypatch.setattr(stage, "SPANS", 2)
    seen = []
    add = stage.GroupPass._add_batch

    def failing(self, batch, sums):
        seen.append(batch[0].index)
        if len(seen) == 4:
            raise RuntimeError("power")
        add(self, batch, sums)

    monkeypatch.setattr(stage.GroupPass, "_add_batch", failing)
    with pytest.raises(RuntimeError, match="power"):
        small.audit(workspace, *CHANGES, until="group_moments", workers=1)
    monkeypatch.setattr(stage, "WAVE_BYTES", 2 * 8 * 3 * 24 * 24)
    monkeypatch.setattr(stage.GroupPass, "_add_batch", add)
    small.audit(workspace, *CHANGES, until="group_moments")
    full = stored(Workspace(workspace)).total()
    assert_equal(full, stored(Workspace(reference)).total())
    whole = anew(reference, tmp_path / "other")
    small.audit(whole, *CHANGES, until="group_moments")
    assert differences(whole, workspace) == []


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_a_kill_leaves_no_trace(tmp_path: Path, limit: int):
    finished = group_audits.finished()
    shutil.copytree(finished.root.parent, tmp_path / "copy")
    workspace = tmp_path / "copy" / "w"
    for name in ("group_moments", "group_influence"):
        shutil.rmtree(workspace / ".krepes" / "stages" / name)
        shutil.rmtree(workspace / "audit.zarr" / name)
    recipe = finished.root.parent / "own.yaml"
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", KILL, str(recipe), str(workspace), "group_moments", str(limit)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert "group_moments" not in small.seals(workspace)
    options = Options(workers=2, until="group_influence")
    run(audits.recipe_of(finished), workspace, options)
    assert differences(finished.root, workspace) == []
    assert small.seals(workspace) == small.seals(finished.root)


def test_chunks_are_groups(reference: Path):
    info = Workspace(reference).reader("group_moments").info("second")
    assert info.chunks == (1, *info.shape[1:])
    assert info.is_chunk(Block(3, 3, 4))


def test_a_full_disk_is_said_and_nothing_is_lost(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with stores.mounted(tmp_path / "disk", "40m") as disk:
        workspace = anew(reference, disk)
        filled: list[Path] = []
        save = stage.GroupPass._save

        def full(self, span, running):
            if not filled:
                filled.append(stores.fill_disk(disk, 0))
            save(self, span, running)

        monkeypatch.setattr(stage.GroupPass, "_save", full)
        with pytest.raises(KrepesError, match=r"the disk is full: .* needed, .* free"):
            small.audit(workspace, *CHANGES, until="group_moments")
        filled[0].unlink()
        small.audit(workspace, *CHANGES, until="group_moments")
        assert differences(reference, workspace) == []
