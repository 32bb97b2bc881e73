"""Audits of other rows than those of the training, through the encoding of the training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from krepes_ooc.engine.run_control import Silent, StopFlag
from krepes_ooc.errors import Stopped, UsageError, WorkspaceError
from krepes_ooc.network import zoo
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.explanation.explain import explain_input, explain_sample
from krepes_ooc.runner.learn_encoding import learn_encoding
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences
from tests.runner.encoded_rows import (
    HEADER,
    SHIFTED,
    TRAINING,
    load,
    pipeline_inputs,
    write_csv,
    write_files,
    write_recipe,
)


class Notes(Silent):
    """A listener that keeps the notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit of the shifted rows through the encoding of the training table."""
    folder = tmp_path_factory.mktemp("encoded")
    write_files(folder)
    learn_encoding(load(folder, "training"), folder / "enc.json")
    run(load(folder), folder / "w", Options(workers=2))
    return folder


def seal(folder: Path, stage: str = "features", workspace: str = "w") -> dict[str, Any]:
    return Workspace(folder / workspace).record(stage, None).seal() or {}


def test_the_network_sees_what_it_saw_in_training(audited: Path) -> None:
    store = Workspace(audited / "w").reader("audited")
    rows = [SHIFTED[int(i)] for i in store.array("sample_id")]
    seen = store.array("network_embedding")
    np.testing.assert_allclose(seen, pipeline_inputs(rows), atol=1e-6, rtol=1e-6)
    # The rows lie three standard deviations above those of the training.
    assert seen[:, :2].mean() == pytest.approx(3, abs=0.3)


def test_the_origin_of_the_encoding_is_recorded(audited: Path) -> None:
    facts = seal(audited)["encoding"]
    digest = facts.pop("sha256")
    assert facts == {
        "origin": "file",
        "file": "enc.json",
        "layout": "7 = 2 numbers + 5 one-hot of 2 columns",
        "unseen": {},
        "filled": {},
    }
    inputs = seal(audited)["inputs"]["source"]
    assert inputs["encoding"] == digest
    report = json.loads((audited / "w" / "report.json").read_text())
    assert "learned from this table" not in json.dumps(report)
    assert "enc.json" in json.dumps(report)


def test_stored_and_new_rows_are_encoded_alike(audited: Path) -> None:
    recipe = str(audited / "own.yaml")
    sample = int(Workspace(audited / "w").reader("audited").array("sample_id")[0])
    stored = explain_sample(audited / "w", sample).record()
    (audited / "row.json").write_text(json.dumps(SHIFTED[sample]))
    new = explain_input(audited / "w", audited / "row.json", recipe=recipe)[0].record()
    for one, other in zip(stored["landmarks"], new["landmarks"], strict=True):
        assert one["sample_id"] == other["sample_id"]
        assert one["kernel"] == pytest.approx(other["kernel"], rel=1e-3, abs=1e-4)
    # A job that no audited row has, and that the network knows.
    (audited / "row.json").write_text(json.dumps(SHIFTED[sample] | {"job": "b"}))
    assert explain_input(audited / "w", audited / "row.json", recipe=recipe)[0].record()["ranked"]


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(audited: Path, tmp_path: Path) -> None:
    copy_files(audited, tmp_path)

    class Impatient(StopFlag):
        left = 12

        def check(self) -> None:
            self.left -= 1
            if self.left < 0:
                self.request("the test is impatient")
            super().check()

    with pytest.raises(Stopped):
        run(load(tmp_path), tmp_path / "w", Options(workers=1), stop=Impatient())
    run(load(tmp_path), tmp_path / "w", Options(workers=1))
    assert differences(audited / "w", tmp_path / "w") == []
    assert small.seals(tmp_path / "w") == small.seals(audited / "w")


def copy_files(audited: Path, folder: Path) -> None:
    for path in audited.iterdir():
        if path.is_file():
            shutil.copy(path, folder)


def test_another_encoding_makes_the_features_stale_by_name(audited: Path, tmp_path: Path) -> None:
    shutil.copytree(audited, tmp_path / "copy")
    folder = tmp_path / "copy"
    document = json.loads((folder / "enc.json").read_text())
    # The same content in another layout is no change.
    (folder / "enc.json").write_text(json.dumps(document, indent=3))
    assert run(load(folder), folder / "w", Options(workers=1)).ran == []
    document["columns"][0]["mean"] += 0.5
    (folder / "enc.json").write_text(json.dumps(document))
    with pytest.raises(WorkspaceError) as raised:
        run(load(folder), folder / "w", Options(workers=1))
    assert "stale: features," in str(raised.value)
    assert "; source.encoding changed (features, landmarks, audited" in str(raised.value)
    # Explanations of new rows are refused as well.
    (folder / "row.json").write_text(json.dumps(SHIFTED[0]))
    with pytest.raises(WorkspaceError, match=r"source\.encoding changed"):
        explain_input(folder / "w", folder / "row.json", recipe=str(folder / "own.yaml"))


def test_naming_a_file_later_is_named_as_the_change(audited: Path, tmp_path: Path) -> None:
    copy_files(audited, tmp_path)
    write_recipe(tmp_path, path="shifted.csv", audit_only=["job"])
    options = Options(workers=1, until="features")
    run(
        load(
            tmp_path,
            "own",
            "network.arguments.inputs=7",
            "source.path=training.csv",
            "source.audit_only=[]",
        ),
        tmp_path / "w",
        options,
    )
    named = ("source.path=training.csv", "source.audit_only=[]", "source.encoding=enc.json")
    with pytest.raises(WorkspaceError) as raised:
        run(load(tmp_path, "own", *named), tmp_path / "w", options)
    assert "stale: features; source.encoding changed" in str(raised.value)
    assert "samples" not in str(raised.value)


def test_an_encoding_learned_here_is_a_warning_and_a_fact(audited: Path, tmp_path: Path) -> None:
    copy_files(audited, tmp_path)
    recipe = load(tmp_path, "own", "source.encoding=''", "network.arguments.inputs=6")
    from safetensors.torch import save_file

    save_file(
        {f"0.{k}": v for k, v in zoo.nn.Linear(6, 6).state_dict().items()},
        tmp_path / "w.safetensors",
    )
    warning = "the encoding was learned from this table, not from the one that the network was"
    layout = "6 = 2 numbers + 4 one-hot of 2 columns"
    lines = make_plan(recipe, tmp_path / "w")["source"]
    assert f"inputs: {layout}" in lines
    assert any(line.startswith(f"warning: {warning}") and layout in line for line in lines)
    notes = Notes()
    run(recipe, tmp_path / "w", Options(workers=2), progress=notes)
    assert any(line.startswith(f"source: {warning}") for line in notes.lines)
    assert seal(tmp_path)["encoding"]["origin"] == "learned here"
    assert isinstance(seal(tmp_path)["inputs"]["source"], str)
    report = json.loads((tmp_path / "w" / "report.json").read_text())
    assert warning in json.dumps(report)
    assert warning in (tmp_path / "w" / "report.html").read_text()


def test_unseen_categories_of_a_run(audited: Path, tmp_path: Path) -> None:
    copy_files(audited, tmp_path)
    rows = [row | {"job": "z"} if i < 5 else row for i, row in enumerate(SHIFTED)]
    write_csv(tmp_path / "shifted.csv", rows)
    options = Options(workers=1, until="audited")
    with pytest.raises(Exception, match=r"enc\.json does not know 'z' \(5 rows\) in column 'job'"):
        run(load(tmp_path), tmp_path / "w", options)
    assert not (tmp_path / "w" / "audit.zarr" / "features").exists()
    notes = Notes()
    zero = load(tmp_path, "own", "source.unseen=zero", "stages.audited.sample_ids=[0, 1, 9]")
    run(zero, tmp_path / "w", options, progress=notes)
    counted = "source: enc.json does not know 'z' in column 'job': 5 rows encoded as zeros"
    assert counted in notes.lines
    assert seal(tmp_path)["encoding"]["unseen"] == {"job": 5}
    seen = Workspace(tmp_path / "w").reader("audited").array("network_embedding")[:3]
    want = pipeline_inputs([rows[0], rows[1], rows[9]])
    np.testing.assert_allclose(seen, want, atol=1e-6, rtol=1e-6)
    assert seen[0, 2:5].tolist() == [0, 0, 0]


def test_pretrain_keeps_the_encoding_with_the_network(tmp_path: Path) -> None:
    """The network is trained on one table and audited on another one, in two workspaces."""
    write_files(tmp_path)
    network = {"factory": "krepes_ooc.network.zoo:mlp"}
    values = yaml.safe_load((tmp_path / "training.yaml").read_text())
    values["network"] = network | {
        "arguments": {"inputs": "auto", "hidden": [8], "outputs": 4},
        "weights": "pretrain",
    }
    values["stages"] |= {"pretrain": {"epochs": 1}}
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(values))
    notes = Notes()
    options = Options(workers=1, until="audited")
    run(load(tmp_path, "training"), tmp_path / "trained", options, progress=notes)
    kept = tmp_path / "trained" / ".krepes" / "checkpoints" / "encoding.json"
    assert any("table encoding: " in line and str(kept) in line for line in notes.lines)
    assert not any("learned from this table" in line for line in notes.lines)
    assert seal(tmp_path, workspace="trained")["encoding"]["origin"] == "trained here"
    # krepes encode writes the same file.
    learn_encoding(load(tmp_path, "training"), tmp_path / "enc.json")
    assert kept.read_bytes() == (tmp_path / "enc.json").read_bytes()
    # The audit of other rows names both files of the trained network.
    values["source"] |= {"path": "shifted.csv", "encoding": str(kept)}
    values["network"]["weights"] = str(kept.with_name("network.safetensors"))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    run(load(tmp_path), tmp_path / "w", options)
    trained = Audit(load(tmp_path, "training"), Workspace(tmp_path / "trained")).inputs
    store = Workspace(tmp_path / "w").reader("audited")
    rows = [SHIFTED[int(i)] for i in store.array("sample_id")]
    want = zoo_outputs(trained.network, pipeline_inputs(rows))
    np.testing.assert_allclose(store.array("network_embedding"), want, atol=1e-5)


def zoo_outputs(network: Any, inputs: Any) -> Any:
    import torch

    with torch.no_grad():
        return network(torch.tensor(inputs, dtype=torch.float32)).numpy()


def test_a_damaged_kept_encoding_is_found_and_repaired(tmp_path: Path) -> None:
    write_files(tmp_path)
    changes = (
        "network.factory=krepes_ooc.network.zoo:mlp",
        "network.arguments={inputs: auto, hidden: [8], outputs: 4}",
        "network.weights=pretrain",
        "stages.pretrain.epochs=1",
    )
    recipe = load(tmp_path, "training", *changes)
    run(recipe, tmp_path / "w", Options(workers=1, until="pretrain"))
    from krepes_ooc.runner.status import verify_workspace

    kept = tmp_path / "w" / ".krepes" / "checkpoints" / "encoding.json"
    was = kept.read_bytes()
    kept.write_bytes(was.replace(b"mean", b"main"))
    damage = verify_workspace(tmp_path / "w", None).damage
    assert [Path(item.file).name for item in damage] == ["encoding.json"]
    run(recipe, tmp_path / "w", Options(workers=1, until="pretrain", repair=True))
    assert kept.read_bytes() == was


def test_auto_is_the_number_of_inputs_and_leaves_no_trace(audited: Path, tmp_path: Path) -> None:
    auto = "network.arguments={inputs: auto, hidden: [8], outputs: 4}"
    named = "network.arguments={inputs: 7, hidden: [8], outputs: 4}"
    shipped = ("network.factory=krepes_ooc.network.zoo:mlp", "network.weights=factory")
    states = [
        Audit(load(audited, "own", *shipped, given), Workspace(tmp_path)).states()
        for given in (auto, named)
    ]
    fingerprints = [
        Audit(load(audited, "own", *shipped, given), Workspace(tmp_path)).inputs.network_spec
        for given in (auto, named)
    ]
    assert fingerprints[0] == fingerprints[1]
    assert [s.digest for s in states[0].values()] == [s.digest for s in states[1].values()]
    # Images are flattened.
    digits = Recipe.load("digits", ("network.arguments.inputs=auto",))
    assert Audit(digits, Workspace(tmp_path)).inputs.network_spec.arguments["inputs"] == 64
    # A factory of the user's own takes its arguments as they are.
    own = Audit(load(audited, "own", "network.arguments.inputs=auto"), Workspace(tmp_path))
    assert own.inputs.network_spec.arguments["inputs"] == "auto"


def test_command(audited: Path, tmp_path: Path, capsys: Any) -> None:
    training = str(audited / "training.yaml")
    done = small.krepes(capsys, "encode", training, "--out", str(tmp_path / "e.json"))
    assert done.code == 0
    assert done.out.startswith("inputs: 7 = 2 numbers + 5 one-hot of 2 columns\nwrote ")
    assert (tmp_path / "e.json").read_bytes() == (audited / "enc.json").read_bytes()
    done = small.krepes(capsys, "encode", training, "--out", str(tmp_path / "e.json"))
    assert (done.code, "the file exists; expected a new file" in done.line) == (2, True)
    out = str(tmp_path / "none" / "e.json")
    done = small.krepes(capsys, "encode", training, "--out", out)
    assert (done.code, "e.json" in done.line) == (2, True)
    done = small.krepes(capsys, "encode", "digits", "--out", str(tmp_path / "d.json"))
    assert done.code == 2
    assert "a source of kind 'digits' has no encoding; expected table" in done.line
    # A recipe that already names the file that is to be written.
    changed = ("--set", "source.encoding=new.json", "--json")
    done = small.krepes(capsys, "encode", training, "--out", str(tmp_path / "n.json"), *changed)
    assert json.loads(done.out)["layout"] == "7 = 2 numbers + 5 one-hot of 2 columns"


def test_missing_numbers_of_the_training_are_learned_around(tmp_path: Path, capsys: Any) -> None:
    write_files(tmp_path)
    rows = [row | {"age": ""} if i < 3 else row for i, row in enumerate(TRAINING)]
    write_csv(tmp_path / "training.csv", rows)
    training = str(tmp_path / "training.yaml")
    done = small.krepes(capsys, "encode", training, "--out", str(tmp_path / "enc.json"))
    assert "column 'age': 3 missing, to be filled with the mean" in done.out
    age = json.loads((tmp_path / "enc.json").read_text())["columns"][0]
    assert age["mean"] == pytest.approx(np.mean([row["age"] for row in TRAINING[3:]]))
    assert age["fill"] == age["mean"]
    # The same table is audited through the file, and refused without it.
    with pytest.raises(Exception, match="column 'age'"):
        make_plan(load(tmp_path, "training"), tmp_path / "w")
    lines = make_plan(load(tmp_path, "training", "source.encoding=enc.json"), tmp_path / "w")
    assert "missing values: age 3" in lines["source"]


def test_a_file_that_is_not_there_names_the_key(tmp_path: Path) -> None:
    write_files(tmp_path)
    with pytest.raises(UsageError, match=r"enc\.json: no such file"):
        make_plan(load(tmp_path), tmp_path / "w")


def test_people_see_words_and_stores_keep_codes(audited: Path, tmp_path: Path, capsys: Any) -> None:
    copy_files(audited, tmp_path)
    header = [*HEADER, "rank"]
    rows = [row | {"rank": 1 + i % 3} for i, row in enumerate(SHIFTED)]
    lines = [",".join(header), *(",".join(str(row[name]) for name in header) for row in rows)]
    (tmp_path / "shifted.csv").write_text("\n".join(lines) + "\n")
    words = {
        "job": {"a": "apple picker", "c": "cherry picker"},
        "rank": {1: "low rank", 2: "mid rank", 3: "high rank"},
        "kind": {"p": "plus kind", "q": "minus kind"},
    }
    write_recipe(tmp_path, encoding="enc.json", audit_only=["rank"], decode=words)
    run(load(tmp_path), tmp_path / "w", Options(workers=2))
    # The network sees what it saw, and the codes are those of the audit without words.
    assert (
        seal(tmp_path)["inputs"]["source"]["encoding"]
        == (seal(audited)["inputs"]["source"]["encoding"])
    )
    store, plain = (Workspace(f / "w").reader("audited") for f in (tmp_path, audited))
    np.testing.assert_array_equal(store.array("values")[:, :4], plain.array("values"))
    np.testing.assert_array_equal(store.array("label"), plain.array("label"))
    np.testing.assert_array_equal(
        store.array("network_embedding"), plain.array("network_embedding")
    )
    assert set(store.array("values")[:, 4]) == {1.0, 2.0, 3.0}
    # Group tables: of categories, and of numbers that are codes.
    groups = Workspace(tmp_path / "w").reader("alignment").attributes["groups"]
    assert groups["job"]["categories"] == ["apple picker", "b", "cherry picker"]
    assert groups["rank"]["categories"] == ["low rank", "mid rank", "high rank"]
    audit = store.array("values")[store.array("role") == 0, 4]
    assert groups["rank"]["samples"] == [int((audit == code).sum()) for code in (1, 2, 3)]
    assert groups["label"]["categories"] == ["plus kind", "minus kind"]
    # The page, and the explanation of a stored and of a new row.
    page = (tmp_path / "w" / "report.html").read_text()
    for word in ("apple picker", "mid rank", "minus kind"):
        assert word in page
    sample = int(store.array("sample_id")[0])
    (tmp_path / "row.json").write_text(json.dumps(rows[sample]))
    recipe = str(tmp_path / "own.yaml")
    for given in (("--sample", str(sample)), ("--input", str(tmp_path / "row.json"))):
        shown = small.krepes(capsys, "explain", recipe, "-w", str(tmp_path / "w"), *given)
        assert shown.code == 0
        assert {"a": "apple picker", "c": "cherry picker"}[rows[sample]["job"]] in shown.out
        assert {1: "low rank", 2: "mid rank", 3: "high rank"}[rows[sample]["rank"]] in shown.out
        assert {"p": "plus kind", "q": "minus kind"}[rows[sample]["kind"]] in shown.out
