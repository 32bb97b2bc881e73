"""An audit of a CNN by sketch: the same bits however it is run; probes are chosen once."""

from __future__ import annotations

from pathlib import Path

import pytest

from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import Stopped
from krepes_ooc.jacobian.sketched_features import SketchPlan
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace
from tests.crash.compare import differences

CHANGES = (
    "source.limit=600",
    "network.factory=krepes_ooc.network.zoo:small_cnn",
    "network.arguments={channels: 1, width: 2, outputs: 12}",
    "stages.pretrain.epochs=1",
    "stages.features={sketch: 64, block_rows: 256, forward_batch: 64}",
    "stages.features.probes=2",
    "stages.features.deflated_probes=2",
    "stages.landmarks.count=16",
    "stages.audited={audit: 20, fit: 40}",
    "stages.spectrum.components=4",
    "stages.concepts={}",
)


def audit(
    workspace: Path,
    *changes: str,
    workers: int = 2,
    until: str = "audited",
    stop: StopFlag | None = None,
) -> None:
    recipe = Recipe.load("digits", (*CHANGES, *changes))
    run(recipe, workspace, Options(workers=workers, until=until), stop=stop)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("cnn") / "w"
    audit(workspace)
    return workspace


def test_the_plan_is_told(reference: Path) -> None:
    attributes = Workspace(reference).reader("features").attributes
    assert attributes["network"]["kind"] == "sketch"
    assert len(attributes["probes"]) == 4
    assert attributes["self_check"]["words"].startswith("all 11 parameters agree with autograd")


def test_one_worker(reference: Path, tmp_path: Path) -> None:
    audit(tmp_path, workers=1)
    assert differences(reference, tmp_path) == []


class AfterOneBlock(StopFlag):
    """Stops a run as soon as a block of features is in the journal."""

    def __init__(self, workspace: Path) -> None:
        super().__init__()
        self.record = Workspace(workspace).record("features", "features")

    def check(self) -> None:
        if self.record.done():
            self.request("the test is impatient")
        super().check()


def test_stopped_and_resumed(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(tmp_path, until="pretrain")
    with pytest.raises(Stopped):
        audit(tmp_path, workers=1, stop=AfterOneBlock(tmp_path))
    record = Workspace(tmp_path).record("features", "features")
    assert 0 < len(record.done()) < 3
    assert not record.is_sealed()
    audit(tmp_path, until="features")
    # The probes of a sealed store are read, not chosen again.
    monkeypatch.setattr(SketchPlan, "choose_probes", None)
    audit(tmp_path)
    assert differences(reference, tmp_path) == []


def test_other_blocks_of_the_same_batches(reference: Path, tmp_path: Path) -> None:
    audit(tmp_path, "stages.features.block_rows=512", until="features")
    one, other = (Workspace(folder).reader("features") for folder in (reference, tmp_path))
    assert one.info("values").chunks != other.info("values").chunks
    for name in ("values", "self_kernel", "sample_id"):
        assert one.array(name).tobytes() == other.array(name).tobytes()
