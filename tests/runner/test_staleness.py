"""What changes makes exactly the affected stages stale, by name, and nothing is ever mixed."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.errors import WorkspaceError
from krepes_ooc.runner import recipe as recipe_module
from krepes_ooc.runner import staleness
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.base.stage import is_enabled
from krepes_ooc.stages.registry import STAGES
from tests import small
from tests.crash.compare import differences

# An optional stage that is off is no part of an audit.
ALL = tuple(stage.name for stage in STAGES if is_enabled(stage.settings()))
# setting, the stages that read it themselves, why
CHANGES = [
    ("seed=1", ALL, "seed was 0, is 1"),
    ("source.limit=299", ("pretrain", "features", "landmarks", "audited"), "source was"),
    ("views.noise=0.2", ("pretrain", "features"), "views.noise was 0.1, is 0.2"),
    (
        "network.arguments.hidden=[32]",
        ("pretrain", "features", "landmarks", "audited"),
        "arguments.hidden was [256,256], is [32]",
    ),
    ("stages.pretrain.epochs=2", ("pretrain",), "settings.epochs was 1, is 2"),
    ("stages.features.forward_batch=128", ("features",), "settings.forward_batch was 256, is 128"),
    ("stages.landmarks.count=20", ("landmarks",), "settings.count was 24, is 20"),
    ("stages.audited.fit=70", ("audited",), "settings.fit was 80, is 70"),
    ("stages.kernel.normalise=cosine", ("kernel",), 'settings.normalise was "ccos", is "cosine"'),
    ("stages.spectrum.components=3", ("spectrum",), "settings.components was 4, is 3"),
    ("stages.discovery.concepts=3", ("discovery",), "settings.concepts was 4, is 3"),
    ("stages.newton.damping=1.0", ("newton",), 'settings.damping was "auto", is 1.0'),
    ("stages.influence.top=5", ("influence",), "settings.top was 10, is 5"),
    (
        "stages.concepts.sets={even: {positive: {label: '2'}, negative: {label: '3'}}}",
        ("concepts",),
        "settings.sets was",
    ),
    ("stages.alignment.groups=[label]", ("alignment",), 'settings.groups was [], is ["label"]'),
    ("stages.fidelity.top=5", ("fidelity",), "settings.top was 10, is 5"),
    ("stages.distilled.removed=5", ("distilled",), "settings.removed was 10, is 5"),
    ("stages.examples.table=5", ("examples",), "settings.table was 100, is 5"),
    ("stages.randomised.top=5", ("randomised",), "settings.top was 10, is 5"),
    ("stages.report.samples=3", ("report",), "settings.samples was 24, is 3"),
]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.finished_copy(tmp_path_factory.mktemp("sealed") / "w")


@pytest.fixture
def workspace(sealed: Path, tmp_path: Path) -> Path:
    shutil.copytree(sealed, tmp_path / "w")
    return tmp_path / "w"


def after(direct: tuple[str, ...], trained: bool = True) -> list[str]:
    """The stages themselves and all that read their results, in order."""
    reached = set(direct)
    for stage in STAGES:
        extra = {"pretrain"} if trained and "network" in stage.reads else set()
        # Stores that these settings do not ask for are not read.
        reads = set(stage.reads) - stage.inputs.optional().keys()
        if reached & (reads | extra):
            reached.add(stage.name)
    return [name for name in ALL if name in reached and (trained or name != "pretrain")]


def told(error: WorkspaceError) -> list[str]:
    """Stages that the message names as stale, in order."""
    words = error.what.replace("(", " ").replace(";", " ").replace(",", " ").split()
    return [name for name in ALL if name in words]


@pytest.mark.parametrize(("change", "direct", "why"), CHANGES, ids=[c[0] for c in CHANGES])
def test_setting(
    workspace: Path, sealed: Path, change: str, direct: tuple[str, ...], why: str
) -> None:
    stale = after(direct)
    with pytest.raises(WorkspaceError) as caught:
        small.audit(workspace, change)
    assert told(caught.value) == stale
    assert len(direct) == len(stale) or f"({direct[0]}" in caught.value.what
    assert why.split(" was")[0] in caught.value.what
    assert caught.value.exit_code == 4
    assert "--restart-stale" in caught.value.advice
    assert differences(sealed, workspace) == []
    summary = small.audit(workspace, change, restart_stale=True)
    assert summary.ran == stale
    assert summary.skipped == [name for name in ALL if name not in stale]
    assert not any((workspace / ".krepes" / "parked").glob("*"))
    assert small.audit(workspace, change).ran == []


@pytest.mark.parametrize("change", ["views.noise=0.2", "stages.landmarks.count=20"])
def test_recomputed_bits_are_those_of_a_fresh_run(
    workspace: Path, tmp_path: Path, change: str
) -> None:
    small.audit(workspace, change, restart_stale=True)
    small.audit(tmp_path / "fresh", change)
    assert differences(workspace, tmp_path / "fresh") == []
    assert small.seals(workspace) == small.seals(tmp_path / "fresh")


def test_going_back_and_forth(workspace: Path, sealed: Path) -> None:
    small.audit(workspace, "stages.newton.damping=1.0", restart_stale=True)
    small.audit(workspace, restart_stale=True)
    assert differences(sealed, workspace) == []


def test_only_chosen_stages_are_restarted(workspace: Path) -> None:
    summary = small.audit(workspace, "views.noise=0.2", restart_stale=True, until="features")
    assert summary.ran == ["pretrain", "features"]
    assert summary.left == [n for n in ALL if n not in ("pretrain", "features")]
    with pytest.raises(WorkspaceError, match="stale: landmarks, "):
        small.audit(workspace, "views.noise=0.2")


def test_parked_store_stays_until_the_new_one_is_sealed(workspace: Path) -> None:
    from krepes_ooc.engine.run_control import StopFlag
    from krepes_ooc.errors import Stopped

    class Second(StopFlag):
        asked = 0

        def check(self) -> None:
            self.asked += 1
            if self.asked > 2:
                self.request("of the test")
            super().check()

    changed = small.recipe("stages.kernel.normalise=cosine")
    with pytest.raises(Stopped):
        run(changed, workspace, Options(restart_stale=True), stop=Second())
    parked = workspace / ".krepes" / "parked"
    assert [path.name for path in parked.iterdir()] == ["kernel"]
    small.audit(workspace, "stages.kernel.normalise=cosine", restart_stale=True)
    assert not any(parked.glob("*"))


@pytest.mark.parametrize(
    "name", ["features", "moments", "spectrum", "influence", "concepts", "alignment", "fidelity"]
)
def test_stage_version(workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    versions = {stage.name: stage.version for stage in STAGES}
    raised = tuple(
        dataclasses.replace(s, version=s.version + 1) if s.name == name else s for s in STAGES
    )
    monkeypatch.setattr(recipe_module, "STAGES", raised)
    was = versions[name]
    with pytest.raises(WorkspaceError, match=f"stage version was {was}, is {was + 1}") as caught:
        small.audit(workspace)
    assert told(caught.value) == after((name,))


def test_contract_version(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = staleness.load_contract

    def newer(name: str) -> Any:
        contract = real(name)
        return dataclasses.replace(contract, version=99) if name == "newton" else contract

    monkeypatch.setattr(staleness, "load_contract", newer)
    with pytest.raises(WorkspaceError, match=r"contract version was \d+, is 99") as caught:
        small.audit(workspace)
    assert told(caught.value) == after(("newton",))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    small.own_recipe(folder)
    run(own_recipe(folder), folder / "w")
    return folder


def own_recipe(folder: Path, *changes: str) -> Recipe:
    return Recipe.load(str(folder / "own.yaml"), (*small.FEW, *changes))


def weights(folder: Path) -> None:
    small.write_weights(folder, scale=0.5)


def code(folder: Path) -> None:
    text = (folder / "net.py").read_text()
    (folder / "net.py").write_text(text.replace("ReLU", "Tanh"))


def data_of_the_same_size(folder: Path) -> None:
    path = folder / "rows.csv"
    text, state = path.read_text(), path.stat()
    at = text.index("\n") + 1
    digit = "2" if text[at] != "2" else "3"
    path.write_text(text[:at] + digit + text[at + 1 :])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size


def test_a_label_more_leaves_the_features_alone(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(own, folder)
    lines = (folder / "rows.csv").read_text().splitlines()
    labelled = [f"{line},{'rs'[i % 2] if i else 'side'}" for i, line in enumerate(lines)]
    (folder / "rows.csv").write_text("\n".join(labelled) + "\n")
    recipe = own_recipe(folder, "source.label=side", "source.exclude=[kind]")
    with pytest.raises(WorkspaceError, match="labels changed") as caught:
        run(recipe, folder / "w")
    direct = ("landmarks", "audited")
    assert told(caught.value) == after(direct, trained=False)
    assert run(recipe, folder / "w", Options(restart_stale=True)).skipped == ["features"]
    run(recipe, folder / "fresh")
    assert differences(folder / "w", folder / "fresh") == []
    # Without declaring it, the column is one more that the network would see.
    with pytest.raises(WorkspaceError, match="source changed"):
        run(own_recipe(folder), folder / "w")


READERS = ("features", "landmarks", "audited")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (weights, "network.weights changed"),
        (code, "network.code changed"),
        (data_of_the_same_size, "source changed"),
    ],
)
def test_files(own: Path, tmp_path: Path, change: Any, why: str) -> None:
    folder = tmp_path / "own"
    shutil.copytree(own, folder)
    recipe = own_recipe(folder)
    assert run(recipe, folder / "w").ran == []
    change(folder)
    with pytest.raises(WorkspaceError, match=why) as caught:
        run(recipe, folder / "w")
    assert told(caught.value) == after(READERS, trained=False)
    summary = run(recipe, folder / "w", Options(restart_stale=True))
    assert summary.ran == after(READERS, trained=False)
    run(recipe, folder / "fresh")
    assert differences(folder / "w", folder / "fresh") == []


def test_code_beside_the_factory_is_found_by_its_outputs(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(own, folder)
    (folder / "net.py").write_text("from helper import net\n")
    recipe = own_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        (folder / "helper.py").write_text(small.FACTORY)
        run(recipe, folder / "other", Options(until="features"))
        (folder / "helper.py").write_text(small.FACTORY.replace("ReLU", "Tanh"))
        import sys

        for name in [n for n in sys.modules if n == "helper" or n.startswith("krepes_factory_")]:
            del sys.modules[name]
        with pytest.raises(WorkspaceError, match="gives other outputs on two fixed samples"):
            run(recipe, folder / "other")


def test_moved_weights_are_not_stale(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(own, folder)
    (folder / "weights.safetensors").rename(folder / "renamed.safetensors")
    changed = own_recipe(folder, "network.weights=renamed.safetensors")
    assert run(changed, folder / "w").ran == []
