"""Columns whose levels are groups by default, within a limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from krepes_ooc.core.settings import digest_mapping
from krepes_ooc.runner.audit import Audit
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.stages.groups import declared
from krepes_ooc.stages.groups.declared import GroupsSettings
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.stages import audits

# Levels of the categorical columns of Adult, in its order.
ADULT = {
    "workclass": 9,
    "education": 16,
    "marital-status": 7,
    "occupation": 15,
    "relationship": 6,
    "race": 5,
    "gender": 2,
    "native-country": 42,
}


def source(levels: dict[str, int], classes: int = 0) -> Any:
    """A source of categorical columns, and labels."""
    columns = [
        SimpleNamespace(name=name, kind="categorical", categories=tuple(map(str, range(count))))
        for name, count in levels.items()
    ]
    return SimpleNamespace(columns=columns, classes=tuple(map(str, range(classes))), n_samples=99)


def groups(settings: GroupsSettings, of: Any) -> int:
    """Number of groups that are declared."""
    found = declared.declare_partitions(settings, of, Path(), 100, 0)
    return sum(len(partition.groups) for partition in found)


def test_the_smallest_columns_are_taken_up_to_the_limit() -> None:
    adult = source(ADULT, classes=2)
    assert groups(GroupsSettings(), adult) == 116
    chosen = declared.choose_columns(GroupsSettings(), adult)
    assert chosen.columns == {"label": (), "race": (), "gender": ()}
    assert groups(chosen, adult) == 21
    left = declared.columns_left_out(chosen, adult)
    assert left == {name: n for name, n in ADULT.items() if name not in ("race", "gender")}
    line = declared.left_out_line(left)
    assert "education (16 levels)" in line
    assert "stages.groups.columns" in line
    assert "stages.groups.auto_limit" in line


def test_where_all_columns_are_within_the_limit_nothing_changes() -> None:
    few = source({"town": 3}, classes=9)
    settings = GroupsSettings()
    assert declared.choose_columns(settings, few) == settings
    assert declared.columns_left_out(settings, few) == {}
    assert declared.left_out_line({}) == ""
    # One level more, and a column is left out.
    over = declared.choose_columns(settings, source({"town": 3}, classes=10))
    assert over.columns == {"town": ()}
    # The limit itself is in no digest: a raised one gives the settings of earlier versions.
    raised = replace(settings, auto_limit=116)
    assert declared.choose_columns(raised, source(ADULT, classes=2)) == settings


def test_named_columns_are_taken_whatever_they_cost() -> None:
    settings = GroupsSettings(columns={"native-country": ()})
    assert declared.choose_columns(settings, source(ADULT)) is settings
    assert groups(settings, source(ADULT)) == 12 + 42


def test_without_clusters_one_column_at_least_is_taken() -> None:
    settings = GroupsSettings(clusters=0)
    chosen = declared.choose_columns(settings, source({"a": 42, "b": 30}))
    assert chosen.columns == {"b": ()}


def test_columns_that_never_were_groups_are_not_listed() -> None:
    many = source({"flat": 1, "town": 30, "id": 51})
    chosen = declared.choose_columns(GroupsSettings(), many)
    assert declared.columns_left_out(chosen, many) == {"town": 30}


def test_the_limit_is_not_in_the_digest() -> None:
    assert "auto_limit" not in digest_mapping(GroupsSettings())
    assert digest_mapping(GroupsSettings())["columns"] == "auto"


@pytest.mark.parametrize("limit", [8, 24])
def test_the_audit_names_its_columns_and_the_plan_lists_the_others(
    tmp_path: Path, capsys: Any, limit: int
) -> None:
    # Levels: label 2, coin 2, town 3.
    path = audits.write_recipe(tmp_path, groups={"clusters": 5, "auto_limit": limit})
    audit = Audit(Recipe.load(str(path)), Workspace(tmp_path / "w"))
    found = audit.settings["groups"].columns
    outcome = small.krepes(capsys, "plan", str(path), "-w", str(tmp_path / "w"))
    assert outcome.code == 0
    if limit == 24:
        assert found == "auto"
        assert "no groups of" not in outcome.out
    else:
        assert found == {"label": ()}
        assert "groups: 7; no groups of town (3 levels), coin (2 levels)" in outcome.out
