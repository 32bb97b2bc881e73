"""The Python interface takes what the command line takes, and everything raises KrepesError."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import krepes_ooc as ko
from krepes_ooc.runner.coordinates import with_coordinates
from krepes_ooc.storage import workspace as storage
from tests import small


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.finished_copy(tmp_path_factory.mktemp("api") / "w")


@pytest.fixture
def ws(sealed: Path) -> ko.Workspace:
    return ko.Workspace(sealed)


def test_run_takes_a_name_settings_and_the_grammar_of_the_command_line(
    tmp_path: Path, capsys: Any
) -> None:
    summary = ko.run(
        "digits",
        tmp_path / "w",
        settings=list(small.SETTINGS),
        memory="2GiB",
        max_time="45m",
        workers=1,
        until="landmarks",
    )
    assert summary.ran[-1] == "landmarks"
    assert capsys.readouterr().out == ""
    # The same recipe with values instead of texts is the same audit; it goes on from there.
    typed = {"stages.landmarks.count": np.int64(24), "source.path": Path("x")}
    recipe = ko.Recipe.load("digits", small.SETTINGS)
    assert ko.Recipe.load("digits", typed).settings["landmarks"] == recipe.settings["landmarks"]
    again = ko.run(recipe, ko.Workspace(tmp_path / "w"), until="kernel", progress=True)
    assert again.ran == ["audited", "kernel"]
    assert "kernel: sealed in" in capsys.readouterr().out


def test_settings_of_a_recipe_are_changed_without_its_file(tmp_path: Path) -> None:
    recipe = ko.Recipe.load("digits", small.SETTINGS)
    planned = ko.plan(recipe, tmp_path / "none", settings={"stages.landmarks.count": 20})
    assert planned["shape"]["n_landmarks"] == 20
    with pytest.raises(ko.KrepesError, match=r"stages.landmarks: unknown key"):
        ko.plan(recipe, tmp_path / "none", settings={"stages.landmarks.cuont": 20})


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"memory": "2 fathoms"}, "is no size in bytes"),
        ({"max_time": "soon"}, "is no time; expected such as 90s"),
        ({"shard": "3 of 16"}, "is no part; expected such as 3/16"),
        ({"cluster": "nearby"}, "expected local, a scheduler"),
        ({"until": "kernle"}, "kernle"),
        ({"untill": "kernel"}, "no option 'untill'; expected one of again, allow_mixed_numerics"),
        ({"options": ko.Options(), "memory": "1GiB"}, "one object, or keywords"),
        ({"with_stages": ["landmarks"]}, "is part of every run"),
        ({"settings": ["stages"]}, "expected key.key=value"),
        ({"settings": {"stages..count": 1}}, "expected key.key=value"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_options_are_refused_in_one_line(
    tmp_path: Path, keywords: dict[str, Any], words: str
) -> None:
    with pytest.raises(ko.KrepesError) as caught:
        ko.run("digits", tmp_path / "w", **keywords)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_options_read_texts() -> None:
    options = ko.Options(memory="2GiB", max_seconds="45m", shard="3/16")  # type: ignore[arg-type]
    assert (options.memory, options.max_seconds, options.shard) == (2**31, 2700.0, (3, 16))
    assert options.device == "auto"


def test_functions_take_a_workspace_its_folder_or_its_recipe(
    ws: ko.Workspace, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ko.Recipe.load("digits", small.SETTINGS)
    for named in (ws, sealed, str(sealed)):
        assert {row["state"] for row in ko.status(named)["stages"]} == {"sealed"}
        assert ko.verify(named).damage == ()
        assert ko.verdict(named).status
        assert len(ko.explain(named, sample=[3, 19])) == 2
    assert {row["state"] for row in ko.status(ws, recipe)["stages"]} == {"sealed"}
    # By name, where `krepes run` puts it.
    monkeypatch.chdir(sealed.parent)
    Path("krepes-workspace").mkdir()
    os.symlink(sealed, "krepes-workspace/digits")
    os.symlink(sealed, "krepes-workspace/mine")
    for name in ("digits", "mine"):
        assert ko.status(name)["workspace"] == str(sealed.resolve())
    with pytest.raises(ko.KrepesError, match="no recipe 'other'"):
        ko.status("other")


def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ko.KrepesError, match="no workspace there; expected a folder that"):
            ko.Workspace(folder)


def test_workspace_is_a_mapping_of_sealed_stores(ws: ko.Workspace, sealed: Path) -> None:
    assert "influence" in ws
    assert "pretrain" not in ws
    assert list(ws) == list(ws.keys())
    assert len(ws) == len(list(ws))
    assert ws.get("nothing") is None
    assert ws.recipe == "digits"
    with pytest.raises(KeyError, match="no store 'nothing'; expected alignment") as caught:
        ws["nothing"]
    assert isinstance(caught.value, ko.KrepesError)
    text = repr(ws)
    assert "audited 110" in text
    assert "<td>influence</td>" in ws._repr_html_()
    assert not {"claim", "create", "lock", "writer", "consolidate", "record"} & set(dir(ws))
    assert list(pickle.loads(pickle.dumps(ws))) == list(ws)
    # An unfinished store is no key.
    names = set(ws)
    (sealed / ".krepes/stages/influence/seal.json").rename(sealed / "seal.json")
    try:
        assert set(ko.Workspace(sealed)) == names - {"influence"}
    finally:
        (sealed / "seal.json").rename(sealed / ".krepes/stages/influence/seal.json")


def test_sample_is_the_position_in_the_source(ws: ko.Workspace) -> None:
    stored = ws["kernel"]["sample_id"].values
    f = ws.embedding()
    assert not np.array_equal(stored, np.arange(len(stored)))
    row = int(np.flatnonzero(stored == 17)[0])
    assert np.array_equal(f.sel(sample=17).values, f.values[:, row])
    assert ws.embedding(order="source")["sample"].values.tolist() == list(range(len(stored)))
    assert np.array_equal(ws.embedding(order="source").values[:, 17], f.values[:, row])
    with pytest.raises(ko.KrepesError, match="expected stored or source"):
        ws.embedding(order="random")  # type: ignore[arg-type]
    # Stores of audited and of explained samples have it as well.
    audited = ws["audited"]["sample_id"].values
    for store, ids in (("influence", audited), ("examples", ws["examples"]["sample_id"].values)):
        name = "sample" if store == "influence" else "explained_sample"
        chosen = ws[store].sel({name: int(ids[5])})
        array = "score" if store == "influence" else "mixing"
        assert np.array_equal(chosen[array].values, ws[store][array].values[5])
    one = ws.influence(17)
    assert one.dims == ("view", "sample", "landmark")
    assert one.attrs["measure"] == "aligned"
    assert one.sel(sample=17).shape == (2, 24)


def test_texts_stand_beside_positions(ws: ko.Workspace) -> None:
    influence, landmarks = ws["influence"], ws["landmarks"]
    codes = landmarks["label"].values
    texts = landmarks["label"].attrs["categories"]
    assert influence["landmark_label"].values.tolist() == [texts[code] for code in codes]
    assert landmarks["label"].attrs["flag_values"] == list(range(10))
    assert landmarks["label"].attrs["flag_meanings"] == " ".join(texts)
    roles = influence["sample_role"].values.tolist()
    assert roles == ["audit"] * 30 + ["fit"] * 80
    assert ws["group_influence"]["effect"].sel(group="label = 3").dims == ("audited",)
    assert ws["alignment"]["gap"].sel(column="label").ndim == 0
    assert influence["score"].attrs["units"] == "1"
    assert "units" not in landmarks["image"].attrs
    assert "units" not in landmarks["sample_id"].attrs


def test_every_store_opens_with_coordinates_and_unchanged_values(sealed: Path) -> None:
    space, plain = ko.Workspace(sealed), storage.Workspace(sealed)
    for name in space:
        opened, stored = space[name], plain[name]
        assert set(opened.data_vars) == set(stored.data_vars)
        for array in stored.data_vars:
            assert np.array_equal(opened[array].values, stored[array].values, equal_nan=True)
            assert opened[array].dims == stored[array].dims


def test_coordinates_need_their_stores(tmp_path: Path) -> None:
    small.audit(tmp_path, until="landmarks")
    space = storage.Workspace(tmp_path)
    assert "landmark_label" in with_coordinates(space["landmarks"], "landmarks", space).coords
    assert "sample" in with_coordinates(space["features"], "features", space).coords


def test_an_explanation_is_one_line_and_a_table(ws: ko.Workspace) -> None:
    one = ko.explain(ws, sample=3, top=4)[0]
    assert repr(one).startswith("Explained(sample #3: ")
    assert len(repr(one)) < 100
    assert one._repr_html_().count("<tr>") == 1 + len(one.record()["landmarks"])
    for question in ({"against": 19}, {"probe": "3"}, {"without": "label = 3"}):
        if "without" not in question:
            assert ko.explain(ws, sample=3, **question)[0].record()["question"]
    with pytest.raises(ko.KrepesError, match="against and probe were given"):
        ko.explain(ws, sample=3, against=19, probe="3")
    with pytest.raises(ko.KrepesError):
        ko.explain(ws)


def test_version_and_a_light_import() -> None:
    assert ko.__version__
    code = "import sys, krepes_ooc; print('numpy' in sys.modules or 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "False"


def test_every_line_of_the_documents_runs(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python of docs/explain.md in order, on a small audit that is there already."""
    text = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    changes = '{"stages.landmarks.count": 128}'
    assert changes in code
    shutil.copytree(sealed, tmp_path / "my-audit")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(code.replace(changes, repr(list(small.SETTINGS))), space)
    assert space["f"].sizes["sample"] == 300
    assert (tmp_path / "influence.parquet").is_file()
    assert len(space["one"].record()["landmarks"]) == 10
