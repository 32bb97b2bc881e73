"""Names of discovered concepts: what they make stale, what they become, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.kept_concepts import keep_concept, read_kept
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences
from tests.small import krepes
from tests.stages import audits

NAME = "round strokes"


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    shutil.copytree(audits.finished().root, tmp_path / "w")
    return Workspace(tmp_path / "w")


def states(space: Workspace) -> dict[str, str]:
    """State of every stage that is not sealed."""
    found = Audit(audits.recipe_of(audits.finished()), space).states()
    return {name: state.kind for name, state in found.items() if state.kind != "sealed"}


def again(space: Workspace) -> list[str]:
    recipe = audits.recipe_of(audits.finished())
    return run(recipe, space.root, Options(workers=2, restart_stale=True)).ran


def test_a_kept_concept_is_a_concept_set_and_nothing_else_is_stale(
    space: Workspace, capsys: Any
) -> None:
    assert states(space) == {}
    seals = small.seals(space.root)
    kept = krepes(capsys, "concepts", "keep", "1", "--as", f"  {NAME} ", "-w", str(space.root))
    assert kept.code == 0, kept.err
    assert f"kept concept 1 as '{NAME}'" in kept.out
    assert states(space) == {"concepts": "stale", "report": "stale"}
    assert again(space) == ["concepts", "report"]
    store = Workspace(space.root).reader("concepts")
    assert set(store.attributes["names"]) == {*audits.CONCEPTS, NAME}
    assert NAME in (space.root / "report.html").read_text()
    # Its samples are those that show the concept most.
    discovery, kernel = space.reader("discovery"), space.reader("kernel")
    activation = kernel.array("values")[0].astype(float) @ discovery.array("weights")
    activation -= discovery.array("const")
    shows = activation.argmax(axis=1) == 1
    ids = kernel.array("sample_id")
    (found,) = read_kept(space)
    top = np.argsort(-activation[shows, 1], kind="stable")[:200]
    assert sorted(found.positive) == sorted(ids[shows][top].tolist())
    assert set(found.negative) == set(ids[~shows][:200].tolist())
    # Without the name everything is as it was.
    assert krepes(capsys, "concepts", "drop", NAME, "-w", str(space.root)).code == 0
    assert again(space) == ["concepts", "report"]
    assert small.seals(space.root) == seals
    assert differences(audits.finished().root, space.root) == []


def test_the_list_shows_figures_and_names(space: Workspace, capsys: Any) -> None:
    root = str(space.root)
    assert krepes(capsys, "concepts", "keep", "0", "--as", "a", "-w", root).code == 0
    assert krepes(capsys, "concepts", "keep", "0", "--as", "b", "-w", root).code == 0
    found = json.loads(krepes(capsys, "concepts", "list", "-w", root, "--json").out)
    discovery = space.reader("discovery")
    assert [each["share"] for each in found] == discovery.array("share").tolist()
    assert [each["stable"] for each in found] == [bool(v) for v in discovery.array("stable")]
    assert found[0]["kept_as"] == ["a", "b"]
    table = krepes(capsys, "concepts", "list", "-w", root).out
    assert "a, b" in table
    assert ("(unstable)" in table) == (not discovery.array("stable").all())


@pytest.mark.parametrize(
    ("number", "name", "said"),
    [
        ("99", "x", "no concept 99; expected 0 to "),
        ("-1", "x", "no concept -1; expected 0 to "),
        ("0", " ", "--as: '' is no name; expected 1 to 80 printable characters"),
        ("0", "a\x07b", "is no name"),
        ("0", "x" * 81, "is no name"),
        ("0", "east", "the recipe has a concept set 'east' already"),
        ("0", "taken", "there is a kept concept 'taken' already"),
    ],
)
def test_what_cannot_be_kept(
    space: Workspace, capsys: Any, number: str, name: str, said: str
) -> None:
    root = str(space.root)
    krepes(capsys, "concepts", "keep", "1", "--as", "taken", "-w", root)
    before = (space.root / "concepts.json").read_bytes()
    found = krepes(capsys, "concepts", "keep", "-w", root, "--as", name, "--", number)
    assert found.code == 2
    assert said in found.line
    assert (space.root / "concepts.json").read_bytes() == before


def test_a_concept_of_three_samples_is_too_small(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krepes_ooc.runner.kept_concepts.SEARCHED_ROWS", 20)
    number = int(np.argmin(space.reader("discovery").array("share")))
    with pytest.raises(UsageError, match=rf"samples show concept {number}, .*at least 10"):
        keep_concept(space, number, "few", {})


def test_without_discovery_there_is_nothing_to_keep(tmp_path: Path, capsys: Any) -> None:
    small.audit(tmp_path / "w", until="landmarks")
    for command in (["keep", "0", "--as", "x"], ["list"]):
        found = krepes(capsys, "concepts", *command, "-w", str(tmp_path / "w"))
        assert found.code == 4
        assert "stage discovery has not run" in found.line
    dropped = krepes(capsys, "concepts", "drop", "x", "-w", str(tmp_path / "w"))
    assert dropped.code == 2
    assert "no kept concept 'x'" in dropped.line
    assert krepes(capsys, "concepts", "list").code == 2


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"a": 1}',
        '{"a": {"concept": 1}}',
        '{"a": {"concept": 1, "positive": ["x"], "negative": [2]}}',
        '{"a": {"concept": "one", "positive": [1], "negative": [2]}}',
        '{"a": {"concept": 1, "positive": [], "negative": [2]}}',
        "\udcff",
    ],
)
def test_a_file_that_somebody_changed_is_named(space: Workspace, text: str) -> None:
    (space.root / "concepts.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WorkspaceError) as caught:
        states(space)
    assert "the named concepts cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_takes_a_kept_name_is_refused(space: Workspace) -> None:
    keep_concept(space, 0, "east", {})
    with pytest.raises(UsageError, match="the recipe has a concept set 'east' already"):
        states(space)
