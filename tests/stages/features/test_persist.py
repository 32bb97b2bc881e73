"""Feature rows that are not kept: the same kernel, less disk, resumable, and never in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.core.feature_layout import CONDENSED_WIDTH, FeatureLayout, sketch_layout
from krepes_ooc.engine.cluster.connect import parse_cluster
from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import DataError, Stopped, WorkspaceError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import verify_workspace
from krepes_ooc.stages.features import featurizer, inner_products
from krepes_ooc.stages.kernel import kernel_map
from krepes_ooc.stages.kernel.normalisation import Normalisation
from krepes_ooc.storage.workspace import Workspace
from tests.crash.compare import differences

# The uniform sampler reads no rows, so that both audits have the same landmarks.
CHANGES = (
    "source.limit=600",
    "network.arguments={inputs: 64, hidden: [24, 16], outputs: 12}",
    "stages.pretrain.epochs=1",
    "stages.features={block_rows: 256, forward_batch: 64}",
    "stages.landmarks={count: 20, sampler: uniform}",
    "stages.audited={audit: 20, fit: 60}",
    "stages.spectrum.components=4",
    "stages.concepts={}",
)
NEVER = "stages.features.persist=never"


def recipe(*changes: str) -> Recipe:
    return Recipe.load("digits", (*CHANGES, *changes))


def audit(
    folder: Path, *changes: str, until: str | None = "kernel", stop: StopFlag | None = None
) -> None:
    options = Options(workers=2, until=until, restart_stale=True)
    run(recipe(*changes), folder, options, stop=stop)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "w"
    audit(folder)
    return folder


@pytest.fixture(scope="module")
def unkept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unkept") / "w"
    audit(folder, NEVER, until=None)
    return folder


def test_the_kernel_has_the_same_bits(kept: Path, unkept: Path) -> None:
    one, other = (Workspace(folder).reader("kernel") for folder in (kept, unkept))
    for name in ("values", "sample_id", "landmark_kernel"):
        assert one.whole(name).tobytes() == other.whole(name).tobytes()
    one, other = (Workspace(folder).reader("features") for folder in (kept, unkept))
    for name in ("self_kernel", "sample_id", "centre"):
        assert one.array(name).tobytes() == other.array(name).tobytes()
    assert one.has("values")
    assert not other.has("values")
    assert not one.has("condensed")


def test_a_whole_audit_without_rows_is_sound(unkept: Path) -> None:
    assert (unkept / "report.html").is_file()
    assert not verify_workspace(unkept).damage
    assert Workspace(unkept).record("features", "features").is_sealed()


def test_plan_counts_what_is_not_written(tmp_path: Path) -> None:
    plans = {
        how: make_plan(recipe(f"stages.features.persist={how}"), tmp_path / how, Options())
        for how in ("always", "never")
    }
    rows = {how: {row["stage"]: row for row in plan["stages"]} for how, plan in plans.items()}
    assert plans["never"]["shape"]["keeps_features"] is False
    saved = rows["always"]["features"]["disk_bytes"] - rows["never"]["features"]["disk_bytes"]
    stored = plans["always"]["shape"]["n_features"] * 2 * 2 * 768
    assert 0 < stored - saved <= 768 * (4 * 256 + 8) + 8 * 256
    assert rows["never"]["kernel"]["flops"] > rows["always"]["kernel"]["flops"]
    assert rows["never"]["kernel"]["memory_bytes"] > rows["always"]["kernel"]["memory_bytes"]


@pytest.mark.parametrize(
    ("changes", "keeps"),
    [
        (("stages.landmarks.count=20",), False),
        (("stages.landmarks.count=300",), True),
        (("stages.features.kind=sketch", "stages.features.sketch=512"), True),
    ],
)
def test_auto_leaves_out_exact_factors_that_are_longer_than_a_kernel_row(
    tmp_path: Path, changes: tuple[str, ...], keeps: bool
) -> None:
    asked = recipe("stages.features.persist=auto", *changes)
    assert make_plan(asked, tmp_path / "w", Options())["shape"]["keeps_features"] is keeps


def test_what_auto_chose_outlives_other_landmarks(tmp_path: Path) -> None:
    auto = "stages.features.persist=auto"
    audit(tmp_path, auto)
    audit(tmp_path, auto, "stages.landmarks.count=200")
    assert not Workspace(tmp_path).reader("features").has("values")


def test_another_persist_makes_the_features_stale(kept: Path) -> None:
    with pytest.raises(WorkspaceError, match=r'settings.persist was "always", is "never"'):
        run(recipe(NEVER), kept, Options(until="kernel"))


@pytest.mark.parametrize("sampler", ["kmeans-parallel", "kmeans++", "leverage"])
def test_samplers_choose_by_condensed_rows(tmp_path: Path, sampler: str) -> None:
    audit(tmp_path, NEVER, "stages.landmarks={count: 20, sampler: " + sampler + "}")
    reader = Workspace(tmp_path).reader("landmarks")
    assert len(np.unique(reader.array("sample_id"))) == 20
    assert reader.array("weight").sum() == pytest.approx(600)


def test_condensed_rows_tell_near_from_far(kept: Path, unkept: Path) -> None:
    """The centred cosine kernel of view 0, by whole rows and by condensed ones."""
    whole, short = (Workspace(folder).reader("features") for folder in (kept, unkept))
    layout = FeatureLayout.from_attributes(whole.attributes["layout"])
    rows = inner_products.unscale(whole.array("values")[0].astype(float), layout)
    exact = ccos(rows, layout, whole.array("centre"))
    centre = short.array("condensed_centre")
    near = ccos(short.array("condensed").astype(float), sketch_layout(CONDENSED_WIDTH), centre)
    above = np.triu_indices(len(exact), 1)
    assert np.corrcoef(exact[above], near[above])[0, 1] > 0.9
    assert np.allclose(short.array("condensed_self"), (short.array("condensed") ** 2).sum(axis=1))


def ccos(rows: np.ndarray, layout: FeatureLayout, centre: np.ndarray) -> np.ndarray:
    normalisation = Normalisation("ccos", inner_products.centre_self(centre))
    return np.asarray(kernel_map.landmark_kernel(rows, layout, centre, normalisation))


class After(StopFlag):
    """Stops a run as soon as so many blocks of a stage are in the journal."""

    def __init__(self, workspace: Path, stage: str, blocks: int) -> None:
        super().__init__()
        self.record, self.blocks = Workspace(workspace).record(stage, stage), blocks

    def check(self) -> None:
        if len(self.record.done()) >= self.blocks:
            self.request("the test is impatient")
        super().check()


@pytest.mark.parametrize("stage", ["features", "kernel"])
def test_stopped_and_resumed(unkept: Path, tmp_path: Path, stage: str) -> None:
    with pytest.raises(Stopped):
        audit(tmp_path, NEVER, until=None, stop=After(tmp_path, stage, 1))
    record = Workspace(tmp_path).record(stage, stage)
    assert not record.is_sealed()
    assert 0 < len(record.done()) < 3
    audit(tmp_path, NEVER, until=None)
    assert differences(unkept, tmp_path) == []


def test_a_killed_shard_computes_no_block_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all blocks in one shard, the running sum says which rows are folded already."""
    from krepes_ooc.core import blocks

    monkeypatch.setattr(blocks, "MIN_SHARDS", 1)
    whole = tmp_path / "whole"
    audit(whole, NEVER, until="features")
    with pytest.raises(Stopped):
        audit(tmp_path / "w", NEVER, until="features", stop=After(tmp_path / "w", "features", 2))
    monkeypatch.setattr(featurizer.ComputedRowSource, "rows", None)
    audit(tmp_path / "w", NEVER, until="features")
    assert differences(whole, tmp_path / "w") == []


def test_repair_computes_a_lost_block_and_the_centre_again(unkept: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(unkept, tmp_path / "w")
    (tmp_path / "w/audit.zarr/features/condensed/c/1/0").unlink()
    run(recipe(NEVER), tmp_path / "w", Options(repair=True))
    assert differences(unkept, tmp_path / "w") == []


def test_a_sample_that_is_no_longer_the_same_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(tmp_path, NEVER, until="landmarks")
    real = featurizer.self_kernel
    monkeypatch.setattr(featurizer, "self_kernel", lambda *given: real(*given) * 1.01)
    with pytest.raises(DataError, match=r"k\(x, x\) is .* and was") as caught:
        audit(tmp_path, NEVER)
    assert caught.value.where.startswith("sample ")


def test_worker_processes_give_the_same_bits(kept: Path, tmp_path: Path) -> None:
    wish = parse_cluster("local", None)
    run(recipe(NEVER), tmp_path, Options(workers=2, until="kernel", cluster=wish))
    one, other = (Workspace(folder).reader("kernel") for folder in (kept, tmp_path))
    assert one.whole("values").tobytes() == other.whole("values").tobytes()


def test_shards_give_the_same_bits(kept: Path, tmp_path: Path) -> None:
    audit(tmp_path, NEVER, until="pretrain")
    for stage in ("features", "kernel"):
        for number in (1, 2):
            run(recipe(NEVER), tmp_path, Options(workers=1, only=stage, shard=(number, 2)))
        audit(tmp_path, NEVER, until="landmarks" if stage == "features" else "kernel")
    one, other = (Workspace(folder).reader("kernel") for folder in (kept, tmp_path))
    assert one.whole("values").tobytes() == other.whole("values").tobytes()
