"""Files beside the stores are of one run: those of another, older or damaged ones are not used."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.core.files import checksummed_json
from krepes_ooc.engine.run_control import Silent
from krepes_ooc.errors import DamageError, WorkspaceError
from krepes_ooc.runner.audit import Options, recorded_recipe
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import read_status, verify_workspace
from krepes_ooc.stages.features.stage import FeatureShards
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences

CHANGES = (
    "stages.features.block_rows=64",
    "stages.features.forward_batch=32",
    # Fewer probes than outputs: some are drawn, others are measured.
    "stages.features.probes=2",
    "stages.features.deflated_probes=1",
)
BLOCKS = 5
# A factory whose network depends on a file that no digest covers.
FACTORY = small.FACTORY.replace(
    "    return torch.nn.Sequential(",
    "    import scale\n\n    return torch.nn.Sequential(scale.Scaled(),",
)
SCALED = """
import torch

class Scaled(torch.nn.Module):
    def forward(self, x):
        return x * {factor}
"""


class Listener(Silent):
    """Notes, and units that each stage found on disk."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: dict[str, int] = {}

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)

    def begin(self, stage: str, total: int, done: int) -> None:
        """Keep it."""
        self.done[stage] = done


def load(path: Path, *changes: str) -> Recipe:
    return Recipe.load(str(path), (*CHANGES, *changes))


def interrupt(recipe: Recipe, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features up to their third block."""
    block = FeatureShards._block

    def two(shards: FeatureShards, at: Any) -> Any:
        if at.index == 2:
            raise KeyboardInterrupt
        return block(shards, at)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureShards, "_block", two)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, workspace, Options(workers=1, until="features"))


def features(recipe: Recipe, workspace: Path, **options: Any) -> Listener:
    listener = Listener()
    run(recipe, workspace, Options(workers=1, until="features", **options), listener)
    return listener


def private(workspace: Path, name: str) -> Path:
    return workspace / ".krepes" / name


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.own_recipe(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def clean(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the recipe."""
    workspace = tmp_path_factory.mktemp("clean") / "w"
    features(load(files), workspace)
    return workspace


@pytest.fixture(scope="module")
def other(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under another seed: its probes are others."""
    workspace = tmp_path_factory.mktemp("other") / "w"
    features(load(files, "seed=7"), workspace)
    return workspace


@pytest.fixture
def scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose factory imports code that no digest covers."""
    path = small.own_recipe(tmp_path / "scaled")
    (path.parent / "net.py").write_text(FACTORY)
    state = path.parent / "weights.safetensors"
    from safetensors.torch import load_file, save_file

    names = {"0.": "1.", "2.": "3."}
    save_file({names[k[:2]] + k[2:]: v for k, v in load_file(state).items()}, state)
    monkeypatch.syspath_prepend(str(path.parent))
    set_factor(path, 1.0)
    return path


def set_factor(path: Path, factor: float) -> None:
    (path.parent / "scale.py").write_text(SCALED.format(factor=factor))
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    sys.modules.pop("scale", None)


# Openings of the network -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["other run", "earlier version", "odd"])
def test_an_opening_of_another_run_is_not_used(
    tmp_path: Path, files: Path, clean: Path, how: str
) -> None:
    """The same network and samples, whose outputs are the same, with other probes."""
    features(load(files, "stages.features.deflated_probes=2"), tmp_path / "other")
    (own,) = private(clean, "openings").iterdir()
    (foreign,) = private(tmp_path / "other", "openings").iterdir()
    assert own.name != foreign.name
    parts = json.loads(foreign.read_bytes())["body"]["parts"]
    laid = {
        "other run": foreign.read_bytes(),
        "earlier version": checksummed_json(parts),
        "odd": checksummed_json({"of": own.stem, "parts": [1]}),
    }
    place = private(tmp_path / "w", "openings") / own.name
    place.parent.mkdir(parents=True)
    place.write_bytes(laid[how])
    features(load(files), tmp_path / "w")
    assert differences(clean, tmp_path / "w") == []
    assert json.loads(place.read_bytes()) == json.loads(own.read_bytes())


# Outputs of the network --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["other run", "deleted"])
def test_other_outputs_than_those_of_the_sealed_features_are_refused(
    tmp_path: Path, scaled: Path, other: Path, how: str
) -> None:
    workspace = tmp_path / "w"
    features(load(scaled), workspace)
    place = private(workspace, "network.json")
    if how == "deleted":
        place.unlink()
    else:
        shutil.copy(private(other, "network.json"), place)
        (damage,) = verify_workspace(workspace).damage
        assert damage.file == str(place)
        assert "of another run of the features" in damage.problem
    set_factor(scaled, 1.5)
    for repair in (False, True):
        with pytest.raises(WorkspaceError, match="gives other outputs on two fixed samples"):
            run(load(scaled), workspace, Options(workers=1, until="landmarks", repair=repair))
    assert verify_workspace(workspace).damage == ()


def test_blocks_of_another_network_are_computed_again(
    tmp_path: Path, scaled: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the blocks are there, and what the network gave then is not known any more."""
    workspace = tmp_path / "w"
    interrupt(load(scaled), workspace, monkeypatch)
    shutil.copytree(workspace, tmp_path / "same")
    shutil.copy(private(other, "network.json"), private(workspace, "network.json"))
    private(tmp_path / "same", "network.json").unlink()
    assert features(load(scaled), tmp_path / "same").done["features"] == 2
    set_factor(scaled, 1.5)
    listener = features(load(scaled), workspace)
    assert listener.done["features"] == 0
    assert [note for note in listener.notes if "all blocks are computed again" in note]
    features(load(scaled), tmp_path / "clean")
    assert differences(tmp_path / "clean", workspace) == []


# Documents of a store that was begun -------------------------------------------------------------


def change_probe(path: Path) -> None:
    document = json.loads(path.read_text())
    document["attributes"]["probes"][0][0] *= 1.001
    path.write_text(json.dumps(document))


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("persist", ["always", "never"])
@pytest.mark.parametrize(
    ("harm", "document"),
    [
        (change_probe, "zarr.json"),
        (tear, "zarr.json"),
        (tear, "self_kernel/zarr.json"),
        (Path.unlink, "zarr.json"),
    ],
)
def test_a_damaged_document_of_begun_features_harms_nothing(
    tmp_path: Path,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
    document: str,
    persist: str,
) -> None:
    recipe = load(files, f"stages.features.persist={persist}")
    workspace = tmp_path / "w"
    interrupt(recipe, workspace, monkeypatch)
    harm(workspace / "audit.zarr/features" / document)
    assert features(recipe, workspace).done["features"] == 2
    features(recipe, tmp_path / "clean")
    assert differences(tmp_path / "clean", workspace) == []
    assert verify_workspace(workspace).damage == ()


# Measured cost of a row --------------------------------------------------------------------------


def test_the_cost_of_another_run_is_refused(
    tmp_path: Path, files: Path, clean: Path, other: Path
) -> None:
    workspace = tmp_path / "w"
    shutil.copytree(clean, workspace)
    place = private(workspace, "row-cost.json")
    shutil.copy(private(other, "row-cost.json"), place)
    with pytest.raises(DamageError, match=r"row-cost\.json: of another run of the features"):
        make_plan(load(files), workspace, timed=True)
    (damage,) = verify_workspace(workspace).damage
    assert damage.file == str(place)
    assert features(load(files), workspace, repair=True).notes == [f"repair: {damage}"]
    assert make_plan(load(files), workspace, timed=True)["rows"]["cost"]
    assert verify_workspace(workspace).damage == ()


def test_the_cost_of_another_run_is_measured_again(
    tmp_path: Path, files: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "w"
    interrupt(load(files), workspace, monkeypatch)
    place = private(workspace, "row-cost.json")
    shutil.copy(private(other, "row-cost.json"), place)
    features(load(files), workspace)
    seal = json.loads(private(workspace, "stages/features/seal.json").read_bytes())["body"]
    assert json.loads(place.read_bytes())["body"]["digest"] == seal["digest"]


# Text of the recipe ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["recipe-text.json", "recipe.json"])
@pytest.mark.parametrize("how", ["other run", "earlier"])
def test_the_text_of_another_run_is_refused(
    tmp_path: Path, files: Path, clean: Path, other: Path, file: str, how: str
) -> None:
    workspace = tmp_path / "w"
    shutil.copytree(clean, workspace)
    laid = private(other, file).read_bytes()
    if how == "earlier":
        laid = private(workspace, file).read_bytes()
        features(load(files, "stages.report.samples=3"), workspace)
    private(workspace, file).write_bytes(laid)
    (damage,) = verify_workspace(workspace).damage
    assert damage.file == str(private(workspace, "recipe-text.json"))
    space = Workspace(workspace)
    assert recorded_recipe(space) is None
    with pytest.raises(DamageError, match="the text of another recipe, or of another run"):
        recorded_recipe(space, require="trust", named=str(files))
    # The records alone: nothing is compared with the other recipe.
    rows = {row["stage"]: row["state"] for row in read_status(None, workspace)["stages"]}
    assert rows["features"] == "sealed"
    assert features(load(files), workspace, repair=True).notes[0] == f"repair: {damage}"
    assert verify_workspace(workspace).damage == ()
    recorded = recorded_recipe(space)
    assert recorded is not None
    assert recorded.text == load(files).text


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_kill_while_the_text_is_recorded_is_no_damage(
    tmp_path: Path, files: Path, clean: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    workspace = tmp_path / "w"
    shutil.copytree(clean, workspace)
    replace, names = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        names.append(Path(target).name)
        if len([name for name in names if name.startswith("recipe")]) > written:
            raise KeyboardInterrupt
        return replace(path, target)

    changed = load(files, "stages.report.samples=3")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run(changed, workspace, Options(workers=1, until="features"))
    assert verify_workspace(workspace).damage == ()
    recorded = recorded_recipe(Workspace(workspace))
    assert recorded is not None
    assert recorded.text == (changed if written > 1 else load(files)).text
    features(changed, workspace)
    assert verify_workspace(workspace).damage == ()
