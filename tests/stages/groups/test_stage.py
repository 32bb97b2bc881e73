"""The store of groups against the source, and declarations that cannot be."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.errors import RecipeError, UsageError, WorkspaceError
from krepes_ooc.sources.base import Column
from krepes_ooc.stages.groups.declared import GroupsSettings, declare_partitions
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.stages import audits, group_audits


@pytest.fixture(scope="module")
def space():
    return group_audits.finished()


def names(space) -> list[str]:
    return list(space.reader("groups").attributes["names"])


def test_levels_are_those_of_the_source(space):
    rows = list(csv.DictReader((space.root.parent / "rows.csv").read_text().splitlines()))
    order = space.reader("groups").array("sample_id")
    wanted = {
        "town = x": lambda i, r: r["town"] == "x",
        "coin = h": lambda i, r: r["coin"] == "h",
        "a < 3": lambda i, r: float(r["a"]) < 3,
        "3 <= a < 6": lambda i, r: 3 <= float(r["a"]) < 6,
        "a >= 6": lambda i, r: float(r["a"]) >= 6,
        "few": lambda i, r: 5 <= i < 25,
        "one": lambda i, r: i == 7,
        "all": lambda i, r: True,
    }
    for name, belongs in wanted.items():
        found = group_audits.member(space, names(space).index(name))
        assert found.tolist() == [bool(belongs(i, rows[i])) for i in order], name
    assert "coin = t" not in names(space)


def test_the_cluster_is_that_of_the_nearest_landmark(space):
    nearest = group_audits.kernels(space).sum(axis=0).argmax(axis=1)
    reader = space.reader("groups")
    assert np.array_equal(reader.array("level")[:, 0], reader.array("landmark_cluster")[nearest])


def test_counts_and_order(space):
    reader = space.reader("groups")
    counts = [group_audits.member(space, g).sum() for g in range(len(names(space)))]
    assert reader.array("count").tolist() == counts
    assert np.array_equal(reader.array("sample_id"), space.reader("kernel").array("sample_id"))


def test_another_file_of_ids_makes_the_stage_stale(tmp_path: Path):
    space = group_audits.audit(tmp_path, until="groups")
    before = space.reader("groups").attributes["names"]
    (tmp_path / "ids.csv").write_text("group,sample\nother,3\n")
    recipe = audits.Recipe.load(str(tmp_path / "own.yaml"))
    from krepes_ooc.runner.audit import Audit

    state = Audit(recipe, space).states()["groups"]
    assert (state.kind, state.reasons) == ("stale", ("settings.ids.csv: sha256 changed",))
    assert len(before) > 1


class Source:
    """Columns and classes only."""

    n_samples = 10
    classes = ("p", "q")
    columns = (
        Column("a", "numeric"),
        Column("town", "categorical", categories=("x", "y")),
        Column("flat", "categorical", categories=("1",)),
        Column("many", "categorical", categories=tuple(map(str, range(51)))),
    )


def declare(tmp_path: Path, **given):
    return declare_partitions(GroupsSettings(**given), Source(), tmp_path, 6, 5)


def test_by_default_every_column_of_2_to_50_levels_and_the_label(tmp_path: Path):
    found = declare(tmp_path)
    assert [(p.kind, p.name, len(p.groups)) for p in found] == [
        ("landmarks", "landmarks", 6),
        ("label", "label", 2),
        ("column", "town", 2),
    ]


def test_concepts_are_groups_where_they_are_asked_for(tmp_path: Path):
    found = declare(tmp_path, concepts=True)[-1]
    assert (found.kind, found.groups) == ("concepts", tuple(f"concept {i}" for i in range(5)))
    assert "concepts" not in [p.kind for p in declare(tmp_path)]


def test_every_sample_is_in_the_group_of_the_concept_that_it_shows(tmp_path: Path):
    small.audit(tmp_path / "w", until="groups")
    before = small.seals(tmp_path / "w")
    only = ("stages.groups.concepts=true", "stages.groups.clusters=0", "stages.groups.columns={}")
    with pytest.raises(WorkspaceError, match=r"stale: groups; settings\.clusters was 3, is 0"):
        small.audit(tmp_path / "w", *only, until="groups")
    small.audit(tmp_path / "w", *only, until="group_moments", restart_stale=True)
    space = Workspace(tmp_path / "w")
    discovery, groups = space.reader("discovery"), space.reader("groups")
    assert groups.attributes["partitions"] == [{"kind": "concepts", "name": "concepts"}]
    assert names(space) == discovery.attributes["names"]
    assert groups.array("count").tolist() == discovery.array("count").tolist()
    K = space.reader("kernel").array("values")[0].astype(np.float64)
    activation = K @ discovery.array("weights") - discovery.array("const")
    assert np.array_equal(groups.array("level")[:, 0], activation.argmax(axis=1))
    # Another discovery makes the groups stale only where they are made of concepts.
    fewer = "stages.discovery.concepts=3"
    with pytest.raises(WorkspaceError, match="groups"):
        small.audit(tmp_path / "w", *only, fewer, until="groups")
    small.audit(tmp_path / "w", until="groups", restart_stale=True)
    assert small.seals(tmp_path / "w")["groups"] == before["groups"]
    found = small.audit(tmp_path / "w", fewer, until="groups", restart_stale=True)
    assert found.ran == ["discovery"]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"columns": {"city": ()}}, UsageError, "no categorical column 'city'; expected one of"),
        ({"columns": {"town": ("z",)}}, UsageError, "no level 'z'; expected one of x, y"),
        ({"columns": {"town": ("x", "x")}}, UsageError, "a level twice"),
        ({"columns": {"a": ()}}, UsageError, "no categorical column 'a'"),
        ({"ranges": {"town": (1.0,)}}, UsageError, "no numeric column 'town'"),
        ({"ranges": {"a": (2.0, 1.0)}}, RecipeError, "edges [2.0, 1.0]"),
        ({"ranges": {"a": ()}}, RecipeError, "at least one, ascending"),
        ({"clusters": 0, "columns": {}}, UsageError, "no group is declared"),
        ({"limit": 9}, UsageError, "10 groups; expected at most 9"),
        ({"file": "none.csv"}, UsageError, "cannot be read"),
    ],
)
def test_declarations_that_cannot_be(tmp_path: Path, given, error, said):
    with pytest.raises(error) as caught:
        declare(tmp_path, **given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,name\n", "another header"),
        ("group,sample\na,10\n", "no sample 10; expected 0 to 9"),
        ("group,sample\na,-1\n", "expected a name and a position"),
        ("group,sample\n,1\n", "expected a name and a position"),
        ("group,sample\na\n", "expected a name and a position"),
        ("group,sample\na,1\na,1\n", "sample 1 is twice in group 'a'"),
    ],
)
def test_files_of_ids_that_cannot_be(tmp_path: Path, text: str, said: str):
    (tmp_path / "ids.csv").write_text(text)
    with pytest.raises(UsageError) as caught:
        declare(tmp_path, file="ids.csv")
    assert said in str(caught.value)


def test_groups_of_a_file_may_overlap(tmp_path: Path):
    (tmp_path / "ids.csv").write_text("group,sample\na,1\nb,1\nb,2\n")
    found = declare(tmp_path, file="ids.csv", clusters=0, columns={})
    assert [(p.name, p.sample_id.tolist()) for p in found] == [("a", [1]), ("b", [1, 2])]


def test_five_thousand_groups_are_refused_with_the_number(tmp_path: Path):
    (tmp_path / "ids.csv").write_text(
        "group,sample\n" + "".join(f"g{i},{i % 10}\n" for i in range(5000))
    )
    with pytest.raises(UsageError, match="5002 groups; expected at most 1000") as caught:
        declare(tmp_path, file="ids.csv", clusters=0, columns={"town": ()})
    assert "limit=5002" in str(caught.value)
    found = declare(tmp_path, file="ids.csv", clusters=0, columns={}, limit=5000)
    assert len(found) == 5000


def test_a_range_without_samples_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"no sample has a >= 99"):
        audits.audit(tmp_path, "groups", groups={"ranges": {"a": [5, 99]}})
