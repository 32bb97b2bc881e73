"""Explaining reads small stores only, and a new sample gets what a stored one would."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc import rendering
from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.rendering.explanation_card import draw_card
from krepes_ooc.runner.explanation.explain import explain_input, explain_sample
from krepes_ooc.storage.workspace import Workspace
from tests import small

KINDS = ("aligned", "is", "unique", "kernel")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit whose n-sized stores are gone."""
    folder = tmp_path_factory.mktemp("explained")
    small.audit(folder, until="influence")
    for store in ("features", "kernel"):
        shutil.rmtree(folder / "audit.zarr" / store)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of a table with the user's own network."""
    folder = tmp_path_factory.mktemp("own")
    recipe = small.own_recipe(folder / "files")
    from krepes_ooc.runner.audit import Options
    from krepes_ooc.runner.recipe import Recipe
    from krepes_ooc.runner.run import run

    run(Recipe.load(str(recipe)), folder / "w", Options(workers=2, until="influence"))
    return folder


def named(own: Path) -> str:
    return str(own / "files" / "own.yaml")


def audited(workspace: Path) -> list[int]:
    return [int(i) for i in Workspace(workspace).reader("audited").array("sample_id")]


def same(one: Explained, other: Explained) -> None:
    mine, theirs = one.audit.influence, other.audit.influence
    assert mine is not None
    assert theirs is not None
    np.testing.assert_array_equal(mine.top_landmark, theirs.top_landmark)
    np.testing.assert_array_equal(mine.repelling_landmark, theirs.repelling_landmark)
    for name in ("score", "contribution", "kernel", "repelling"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-3, atol=1e-4)


def test_a_new_sample_gets_what_the_stored_one_has(digits: Path, tmp_path: Path) -> None:
    source = small.recipe().source
    from krepes_ooc.sources.open import open_source

    opened = open_source(source, Path(), tmp_path)
    for sample in audited(digits)[:3]:
        np.save(tmp_path / "new.npy", opened.read(np.array([sample]))[0])
        stored, new = explain_sample(digits, sample), explain_input(digits, tmp_path / "new.npy")[0]
        same(stored, new)
        assert (stored.record()["sample_id"], new.record()["sample_id"]) == (sample, None)
        assert new.record()["name"] == "new.npy"


def test_a_landmark_attracts_itself_most(digits: Path) -> None:
    landmarks = Workspace(digits).reader("landmarks").array("sample_id")
    sample = next(int(i) for i in landmarks if int(i) not in audited(digits))
    record = explain_sample(digits, sample, top=3).record()
    assert record["ranked"] == 3
    assert record["landmarks"][0]["sample_id"] == sample
    assert record["landmarks"][0]["kernel"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("measure", KINDS[1:])
def test_every_measure(tmp_path: Path, digits: Path, measure: str) -> None:
    shutil.copytree(digits, tmp_path / "w")
    small.audit(tmp_path / "full", f"stages.influence.measure={measure}", until="influence")
    sample = audited(tmp_path / "full")[0]
    from krepes_ooc.sources.open import open_source

    opened = open_source(small.recipe().source, Path(), tmp_path)
    np.save(tmp_path / "new.npy", opened.read(np.array([sample]))[0])
    same(
        explain_sample(tmp_path / "full", sample),
        explain_input(tmp_path / "full", tmp_path / "new.npy")[0],
    )


def test_table_rows_and_agreeing_columns(own: Path) -> None:
    workspace, rows = own / "w", small.rows_csv().splitlines()
    sample = audited(workspace)[0]
    given = dict(zip(rows[0].split(","), rows[1 + sample].split(","), strict=True))
    path = own / "row.json"
    numbers = {key: float(value) for key, value in given.items() if key in "abc"}
    path.write_text(json.dumps(given | numbers))
    stored, new = (
        explain_sample(workspace, sample),
        explain_input(workspace, path, recipe=named(own))[0],
    )
    same(stored, new)
    record = new.record()
    assert record["class"] == given["kind"]
    for landmark in record["landmarks"]:
        assert ("town" in landmark["agrees"]) == (
            landmark["values"]["town"] == record["values"]["town"]
        )


def pushed(workspace: Path) -> int:
    """A sample that some landmark pushes away without being ranked."""
    return next(i for i in audited(workspace) if explain_sample(workspace, i).repelling_only)


def test_what_pushes_is_named_beside_what_is_ranked(digits: Path) -> None:
    one = explain_sample(digits, pushed(digits), top=2)
    record, influence = one.record(), one.audit.influence
    assert influence is not None
    assert influence.repelling is not None
    ranked = {landmark["sample_id"] for landmark in record["landmarks"]}
    assert record["further_repel"] == len(record["repelling"]) > 0
    for landmark in record["repelling"]:
        assert landmark["sample_id"] not in ranked
        assert (landmark["rank"], landmark["score"]) == (None, None)
        assert landmark["contribution"] in influence.repelling[0]
    # A store of a development version, which does not say.
    old = replace(influence, repelling_landmark=None, repelling=None)
    silent = rendering.explain_rows(replace(one.audit, influence=old), [0])[0]
    assert silent.record()["repelling"] is None
    assert not silent.nothing_repels


def test_where_nothing_pushes_it_is_said(digits: Path, capsys: Any) -> None:
    from krepes_ooc.cli.explain import _show

    one = explain_sample(digits, pushed(digits))
    influence = one.audit.influence
    assert influence is not None
    none = replace(
        influence,
        contribution=np.abs(influence.contribution),
        repelling_landmark=np.full((1, 3), -1),
        repelling=np.zeros((1, 3)),
    )
    calm = rendering.explain_rows(replace(one.audit, influence=none), [0])[0]
    assert calm.nothing_repels
    assert draw_card(calm).startswith(b"\x89PNG")
    _show(calm)
    assert "no landmark repels it" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["digits", "own"])
def test_card_is_a_picture(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    workspace = folder / "w" if kind == "own" else folder
    png = draw_card(explain_sample(workspace, pushed(workspace)))
    assert png.startswith(b"\x89PNG")
    assert len(png) < 200_000


def test_what_cannot_be_explained(digits: Path, own: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sample 300; expected 0 to 299"):
        explain_sample(digits, 300)
    with pytest.raises(UsageError, match="11 landmarks; expected at most 10"):
        explain_sample(digits, audited(digits)[0], top=11)
    np.save(tmp_path / "many.npy", np.zeros((101, 8, 8)))
    with pytest.raises(UsageError, match="101 samples; expected at most 100"):
        explain_input(digits, tmp_path / "many.npy")
    small.audit(tmp_path / "w", until="landmarks")
    with pytest.raises(WorkspaceError, match="stage audited is not sealed"):
        explain_sample(tmp_path / "w", 1)
    shutil.copytree(own, tmp_path / "own")
    record = next((tmp_path / "own" / "w" / ".krepes").glob("recipe-text.json"))
    record.unlink()
    with pytest.raises(WorkspaceError, match="the recipe is not recorded"):
        explain_input(tmp_path / "own" / "w", own / "files" / "rows.csv")


def test_changed_weights_are_named(own: Path, tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text('{"a": 1, "b": 2, "c": 3, "town": "x"}')
    assert explain_input(own / "w", path, recipe=named(own))
    small.write_weights(own / "files", scale=2.0)
    try:
        with pytest.raises(WorkspaceError, match=r"stage landmarks is stale: network\.weights"):
            explain_input(own / "w", path, recipe=named(own))
    finally:
        small.write_weights(own / "files", scale=1.0)


# --- the command ---------------------------------------------------------------------------------


def test_command(capsys: Any, digits: Path, own: Path, tmp_path: Path) -> None:
    sample = str(pushed(digits))
    shown = small.krepes(capsys, "explain", "-w", str(digits), "--sample", sample, "--top", "2")
    assert shown.code == 0
    assert "rank" in shown.out
    assert "further ones repel" in shown.out
    record = explain_sample(digits, int(sample), top=2).record()
    # Below the landmarks the discovered concepts, under a head of their own
    concepts = 1 + len(record["concepts"])
    assert len(shown.out.splitlines()) == 4 + record["further_repel"] + concepts
    given = ("explain", "-w", str(own / "w"), "--sample", str(audited(own / "w")[0]))
    table = small.krepes(capsys, *given)
    assert "= agrees, + attracts, - repels" in table.out
    assert " =" in table.out
    again = str(audited(own / "w")[1])
    several = json.loads(small.krepes(capsys, *given, "--sample", again, "--json").out)
    assert [one["sample"]["sample_id"] for one in several] == audited(own / "w")[:2]
    asked = small.krepes(capsys, *given, "--json", "--png", str(tmp_path / "card.png"))
    document = json.loads(asked.out)[0]
    assert document["sample"]["ranked"] == 10
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")


def test_command_that_cannot_be(capsys: Any, digits: Path, own: Path, tmp_path: Path) -> None:
    w = ("explain", "-w", str(digits))
    neither = small.krepes(capsys, *w)
    assert (neither.code, "one of --sample NUMBER and --input FILE" in neither.line) == (2, True)
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b,c,town\n1,2,3,x\n3,4,5,y\n")
    given = ("explain", named(own), "-w", str(own / "w"), "--input", str(rows), "--png")
    several = small.krepes(capsys, *given, str(tmp_path / "c.png"))
    assert (several.code, "2 samples; expected one" in several.line) == (2, True)
    folder = small.krepes(capsys, *w, "--sample", "1", "--png", str(tmp_path))
    assert (folder.code, "cannot write: Is a directory" in folder.line) == (2, True)
