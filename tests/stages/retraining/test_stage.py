"""Trainings without a group: oracle, planted groups, kills, shards, functions that fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.core.figure_specs import GROUP_INFLUENCE, PREDICTORS
from krepes_ooc.engine.run_control import Silent, StopFlag
from krepes_ooc.errors import KrepesError, NetworkError, Stopped, UsageError, WorkspaceError
from krepes_ooc.network import retrain
from krepes_ooc.network.pretrain import PretrainSettings
from krepes_ooc.runner.audit import Audit, Options, recorded_recipe
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Recipe, enable_stages
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import verify_workspace
from krepes_ooc.stages.retraining.agreement import PAIRS, rank_agreement
from krepes_ooc.stages.retraining.trainings import FOLDER, Trainings
from krepes_ooc.storage.workspace import Workspace
from krepes_ooc.views.views import Views
from tests import small
from tests.crash.compare import differences
from tests.stages import retraining_audits as audits
from tests.storage import stores

# Every test trains a dozen small networks.
pytestmark = pytest.mark.timeout(600)


class Notes(Silent):
    """Keeps what is noted, and calls a function after some units."""

    def __init__(self, after: int = 0, call=None) -> None:
        self.lines: list[str] = []
        self._left, self._call = after, call

    def note(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, units: int, size: int = 0) -> None:
        self._left -= units
        if self._left == 0 and self._call:
            self._call()


def test_effects_are_those_of_networks_trained_on_the_remaining_samples():
    workspace = audits.digits_after()
    space, found = Workspace(workspace), audits.store(workspace)
    recipe = audits.digits_recipe()
    inputs = Audit(recipe, space).inputs
    groups, audited = space.reader("groups"), space.reader("audited")
    names = list(groups.attributes["names"])
    member = groups.array("level")[:, groups.array("partition")] == groups.array("code")
    order = groups.array("sample_id")
    sample_id, explained = audited.array("sample_id"), found.array("explained")
    anchors = space.reader("group_influence").array("anchor")
    group, seed = names.index("half 1"), 1

    def embedding(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        views = Views(recipe.views, inputs.source, seed, recipe.base)
        training = retrain.DemoTraining(recipe.network, PretrainSettings(epochs=1), recipe.base)
        weights = training.train(
            *(seed, len(positions), small.ROWS, lambda i, e: views.batch(positions[i], e)),
            workspace / "none.pt",
        )
        network = retrain.network_of(recipe.network, recipe.base, weights, "w")
        every = np.arange(64)
        rows = [
            retrain.outputs_of(network, inputs.encode(positions, view)[0], every)
            for view in range(2)
        ]
        clean = retrain.outputs_of(network, inputs.encode(sample_id, -1)[0], every)
        return clean.astype(float) - np.mean(rows, axis=(0, 1), dtype=float), clean

    full, _ = embedding(np.arange(small.ROWS))
    rest, _ = embedding(np.sort(order[~member[:, group]]))
    outside = [a for a in anchors if sample_id[a] not in set(order[member[:, group]])]
    assert 50 <= len(outside) < len(anchors)

    def profile(f: np.ndarray, t: int) -> list[float]:
        return [f[t] @ f[a] / np.sqrt((f[t] @ f[t]) * (f[a] @ f[a])) for a in outside]

    wanted = [1 - np.corrcoef(profile(full, t), profile(rest, t))[0, 1] for t in explained]
    np.testing.assert_allclose(found.array("effect")[seed, group], wanted, atol=1e-5)
    assert np.mean(wanted) > 1e-3


def test_the_store_holds_every_prediction_and_its_agreement():
    found = audits.store(audits.digits_after())
    names, halves = list(found.attributes["names"]), set(found.attributes["halves"])
    assert halves == {"half 0", "half 1", "half 2"}
    assert found.attributes["repeatable"] is True
    assert list(found.attributes["predictors"]) == list(PREDICTORS)
    effect, prediction = found.array("effect").mean(axis=0), found.array("prediction")
    left = [g for g, n in enumerate(names) if n not in halves | set(found.attributes["reasons"])]
    for at in range(len(PREDICTORS)):
        wanted = rank_agreement(effect[left], prediction[at][left])
        np.testing.assert_allclose(found.array("agreement")[at, :3], wanted, equal_nan=True)
    figures = found.attributes["figures"]
    at = list(PREDICTORS).index(GROUP_INFLUENCE)
    assert figures["retraining_pairs"]["value"] == found.array("agreement")[at, PAIRS]
    assert figures["retraining_pairs"]["controls"]["group_size"] is not None
    assert figures["retraining_within"]["controls"]["group_size"] is None
    assert figures["retraining_halves"]["value"] == found.array("agreement")[at, 3]
    assert verify_workspace(audits.digits_after()).damage == ()


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_stop_between_trainings_changes_no_bit(tmp_path: Path, after: int):
    workspace = audits.copy_of(audits.digits_before(), tmp_path / "w")
    flag = StopFlag(None)
    listener = Notes(after, lambda: flag.request("enough"))
    with pytest.raises(Stopped):
        run(audits.digits_recipe(), workspace, Options(only="retraining"), listener, flag)
    assert "retraining" not in small.seals(workspace)
    planned = make_plan(audits.digits_recipe(), workspace)["trainings"]
    assert planned["left"] == planned["trainings"] - after
    audits.train(audits.digits_recipe(), workspace)
    assert differences(audits.digits_after(), workspace) == []
    assert small.seals(workspace) == small.seals(audits.digits_after())


def test_a_stop_inside_a_training_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The training state of a stopped training is used, and removed with the partial results."""
    monkeypatch.setattr(retrain, "SAVE_SECONDS", -1.0)
    workspace = audits.copy_of(audits.digits_before(), tmp_path / "w")
    encode, calls = retrain.outputs_of, [0]

    def failing(*given):
        calls[0] += 1
        if calls[0] == 5:
            raise Stopped("enough")
        return encode(*given)

    monkeypatch.setattr(retrain, "outputs_of", failing)
    with pytest.raises(Stopped):
        audits.train(audits.digits_recipe(), workspace)
    monkeypatch.setattr(retrain, "outputs_of", encode)
    folder = workspace / ".krepes" / FOLDER
    assert len(list(folder.glob("*.pt"))) == 1
    audits.train(audits.digits_recipe(), workspace)
    assert {path.suffix for path in folder.iterdir()} == {".npz"}
    assert differences(audits.digits_after(), workspace) == []


def test_another_prediction_trains_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    workspace = audits.copy_of(audits.digits_after(), tmp_path / "w")
    recipe = audits.digits_recipe("stages.group_influence.damping=0.3")
    run(recipe, workspace, Options(until=audits.UNTIL, restart_stale=True))
    monkeypatch.setattr(Trainings, "train", None)
    audits.train(recipe, workspace, restart_stale=True)
    before, after = (audits.store(space) for space in (audits.digits_after(), workspace))
    np.testing.assert_array_equal(after.array("effect"), before.array("effect"))
    moved = (after.array("prediction") != before.array("prediction")).any(axis=(1, 2))
    assert moved[list(PREDICTORS).index(GROUP_INFLUENCE)]
    # One more seed: the others are on disk.
    monkeypatch.undo()
    recipe = audits.digits_recipe("stages.retraining.seeds=3", "stages.group_influence.damping=0.3")
    trained: list[str] = []
    train = Trainings.train

    def noted(self, unit):
        trained.append(unit.text)
        train(self, unit)

    monkeypatch.setattr(Trainings, "train", noted)
    audits.train(recipe, workspace, restart_stale=True)
    assert len(trained) == 7
    assert all(text.endswith("seed 2") for text in trained)


def test_shards_give_the_bits_of_the_whole(tmp_path: Path):
    workspace = audits.copy_of(audits.digits_before(), tmp_path / "w")
    for number in (2, 3, 1, 1):
        found = audits.train(audits.digits_recipe(), workspace, shard=(number, 3))
        assert found.shard == f"shard {number}/3 of retraining"
    assert make_plan(audits.digits_recipe(), workspace)["trainings"]["left"] == 0
    audits.train(audits.digits_recipe(), workspace)
    assert differences(audits.digits_after(), workspace) == []


def test_a_damaged_partial_result_is_trained_anew(tmp_path: Path):
    workspace = audits.copy_of(audits.digits_before(), tmp_path / "w")
    audits.train(audits.digits_recipe(), workspace, shard=(1, 1))
    paths = sorted((workspace / ".krepes" / FOLDER).glob("*.npz"))
    assert len(paths) == 14
    stores.flip(paths[3], 8 * 400)
    # The result of another training under this name is refused too.
    paths[5].write_bytes(paths[6].read_bytes())
    audits.train(audits.digits_recipe(), workspace)
    assert differences(audits.digits_after(), workspace) == []


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path):
    with stores.mounted(tmp_path / "disk", "40m") as disk:
        workspace = audits.copy_of(audits.digits_before(), disk / "w")
        filled: list[Path] = []
        listener = Notes(3, lambda: filled.append(stores.fill_disk(disk, 0)))
        with pytest.raises(KrepesError, match=r"the disk is full: .* needed, .* free"):
            audits.train(audits.digits_recipe(), workspace, listener)
        filled[0].unlink()
        assert make_plan(audits.digits_recipe(), workspace)["trainings"]["left"] == 11
        audits.train(audits.digits_recipe(), workspace)
        assert differences(audits.digits_after(), workspace) == []


def test_a_copied_group_has_no_effect_when_one_copy_goes(tmp_path: Path):
    recipe = audits.table_audit(tmp_path)
    audits.train(recipe, tmp_path / "w")
    found = audits.store(tmp_path / "w")
    effect = dict(zip(found.attributes["names"], found.array("effect").mean(axis=0), strict=True))
    others = np.mean([effect[f"part {i}"].mean() for i in range(3)])
    assert np.abs(effect["copy"]).max() < 1e-5
    assert others > 1e-4
    # Components of the inputs are what this network is: as a prediction they are the truth.
    at = list(PREDICTORS).index("input_components")
    assert found.array("effect").shape == (2, 4, 40)
    np.testing.assert_array_equal(found.array("effect")[0], found.array("effect")[1])
    assert found.array("single_seed")[PAIRS] == pytest.approx(1)
    assert found.array("prediction")[at].shape == (4, 40)
    assert found.attributes["trainer"] == "own.py:components"


FAILING = """
import numpy as np
import torch

def raises(subset, seed):
    if len(subset) < 320:
        raise RuntimeError("out of samples")
    return {"weight": torch.ones(3, 5)}

def other_keys(subset, seed):
    return {"weight": torch.ones(3, 5), "bias": torch.ones(3)}

def infinite(subset, seed):
    return {"weight": torch.full((3, 5), float("nan"))}

def random(subset, seed):
    return {"weight": np.random.default_rng().normal(size=(3, 5)).astype("f4")}

def keyed(subset, seed):
    return {"weight": torch.randn(3, 5)}
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "(without 'copy', seed 0): own.py:raises failed: RuntimeError: out of samples"),
        ("other_keys", "(all samples, seed 0): 0 keys missing (none), 1 unexpected (bias)"),
        ("infinite", "(all samples, seed 0): 15 of 15 values are NaN or infinite"),
    ],
)
def test_a_function_that_fails_is_named_with_group_and_seed(tmp_path: Path, name: str, said: str):
    recipe = audits.table_audit(tmp_path, FAILING, name)
    with pytest.raises(NetworkError) as caught:
        audits.train(recipe, tmp_path / "w")
    assert said in str(caught.value)
    assert caught.value.exit_code == 1
    # What was trained before stays.
    assert len(list((tmp_path / "w" / ".krepes").glob(f"{FOLDER}/*.npz"))) == (name == "raises")


@pytest.mark.parametrize("name", ["random", "keyed"])
def test_a_function_that_gives_other_weights_again_is_said(tmp_path: Path, name: str):
    recipe = audits.table_audit(tmp_path, FAILING, name)
    notes = Notes()
    audits.train(recipe, tmp_path / "w", notes)
    # torch's own generator is keyed by the seed; any other is the function's to key.
    assert audits.store(tmp_path / "w").attributes["repeatable"] is (name == "keyed")
    assert any("gave other weights" in line for line in notes.lines) is (name == "random")


def test_another_train_function_makes_the_stage_stale(tmp_path: Path):
    recipe = audits.table_audit(tmp_path)
    audits.train(recipe, tmp_path / "w")
    (tmp_path / "own.py").write_text(audits.TRAIN + "\n# another version\n")
    with pytest.raises(
        WorkspaceError, match=r"stale: retraining; settings.own.py:components: code"
    ):
        audits.train(recipe, tmp_path / "w")


def test_code_that_trains_is_code_that_the_user_vouches_for(tmp_path: Path):
    path = audits.table_recipe(tmp_path)
    assert any("train.py:components" in name for name in Recipe.load(str(path)).code)
    off = Recipe.load(str(path), ["stages.retraining.enabled=false"])
    assert not any("train.py:components" in name for name in off.code)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "stages.retraining.train=''",
            "no function trains the network, whose weights are 'factory'",
        ),
        ("stages.retraining.groups=[none]", "no group 'none'; expected one of copy, part 0"),
        ("stages.retraining.train=none.py:f", "stages.retraining: no such file"),
        ("stages.retraining.seeds=0", "0 is not allowed; expected at least 1"),
    ],
)
def test_a_wrong_declaration_is_refused_before_anything_runs(
    tmp_path: Path, change: str, said: str
):
    path = audits.table_recipe(tmp_path)
    with pytest.raises(UsageError) as caught:
        run(Recipe.load(str(path), [change]), tmp_path / "w", Options())
    assert said in str(caught.value)
    assert not small.seals(tmp_path / "w")


def test_only_named_groups_are_trained_without(tmp_path: Path):
    path = audits.table_recipe(tmp_path)
    recipe = Recipe.load(str(path), ["stages.retraining.groups=[part 2, copy]"])
    assert make_plan(recipe, tmp_path / "w")["trainings"]["trainings"] == 6
    audits.table_audit(tmp_path)
    audits.train(recipe, tmp_path / "w")
    found = audits.store(tmp_path / "w")
    assert dict(found.attributes["reasons"]) == dict.fromkeys(["part 0", "part 1"], "not asked for")
    trained = np.isfinite(found.array("effect")).all(axis=(0, 2))
    assert trained.tolist() == [True, False, False, True]
    # Two groups have no rank correlation.
    reason = found.attributes["figures"]["retraining_pairs"]["reason"]
    assert reason == "fewer than 3 groups were left out"


def test_the_switch_is_an_override_of_an_optional_stage():
    assert enable_stages(["retraining"]) == ("stages.retraining.enabled=true",)
    for name, said in (("kernel", "is part of every run"), ("kernal", "does not exist")):
        with pytest.raises(UsageError, match=f"--with: stage '{name}' {said}; expected an opt"):
            enable_stages([name])


def test_the_command_line_switches_it_on_and_records_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workspace = tmp_path / "w"
    given = small.arguments(workspace, "--with", "retraining", "--until", "pretrain", "-q")
    assert small.krepes(capsys, *given).code == 0
    recorded = recorded_recipe(Workspace(workspace))
    assert recorded is not None
    assert recorded.settings["retraining"].enabled
    assert "retraining" in {stage.name for stage in recorded.stages}
    refused = small.krepes(capsys, *small.arguments(workspace, "--with", "report"))
    assert refused.code == 2
    assert "stage 'report' is part of every run" in refused.line


def test_the_plan_says_what_the_trainings_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changes = [part for change in (*small.SETTINGS, *audits.DIGITS) for part in ("--set", change)]
    found = small.krepes(capsys, "plan", "digits", "-w", str(tmp_path / "w"), *changes)
    assert found.code == 0
    assert "14 of 14 trainings left x" in found.out
    assert "(a few steps)" in found.out
    found = small.krepes(capsys, "plan", "digits", "-w", str(tmp_path / "w"))
    assert "training" not in found.out.replace("training_epochs 0", "")
    planned = make_plan(audits.digits_recipe(), audits.digits_after(), timed=True)
    assert planned["trainings"]["from"] == "finished trainings"
    row = next(row for row in planned["stages"] if row["stage"] == "retraining")
    assert row["units"] == 14
    assert row["seconds"] == 0


def test_a_stage_that_is_off_leaves_no_trace(tmp_path: Path):
    on = audits.copy_of(audits.digits_after(), tmp_path / "on")
    changes = [change for change in audits.DIGITS if not change.startswith("stages.retraining")]
    run(small.recipe(*changes), tmp_path / "off", Options(workers=2))
    run(audits.digits_recipe(), on, Options(workers=2))
    off = small.seals(tmp_path / "off")
    assert {name: digest for name, digest in small.seals(on).items() if name in off} | {
        "report": off["report"]
    } == off
    assert "retraining" not in off
    assert '"retraining' not in (tmp_path / "off" / "report.json").read_text()
    assert "training again" not in (tmp_path / "off" / "report.html").read_text()
    figures = json.loads((on / "report.json").read_text())["fidelity"]["figures"]
    assert figures["retraining_pairs"]["value"] is not None
    assert "training again" in (on / "report.html").read_text()
