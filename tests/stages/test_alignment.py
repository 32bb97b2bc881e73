from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.algebra.groups import group_table
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.alignment import group_note
from krepes_ooc.stages.words import alignment_lines, group_lines
from tests.stages import audits


@pytest.fixture(scope="module")
def store():
    return audits.finished().reader("alignment")


def column(store, name: str, array: str = "gap") -> float:
    return float(store.array(array)[store.attributes["columns"].index(name)])


def naive_gap(name: str, numeric: bool) -> float:
    """The gap of one column from the stores, by loops."""
    space = audits.finished()
    audited, landmarks = space.reader("audited"), space.reader("landmarks")
    top = space.reader("influence").array("top_landmark")
    described = audited.attributes["columns"]
    at = [c["name"] for c in described].index(name)
    span = described[at]["high"] - described[at]["low"]
    there = landmarks.array("values")[:, at]
    gaps = []
    for t in np.flatnonzero(audited.array("role") == 0):
        x = audited.array("values")[t, at]
        v = 1 - np.minimum(np.abs(x - there) / span, 1) if numeric else x == there
        gaps.append(np.mean(v[top[t]]) - np.mean(v))
    return float(np.mean(gaps))


@pytest.mark.parametrize(("name", "numeric"), [("a", True), ("c", True), ("town", False)])
def test_the_gap_is_that_of_the_stores(store, name: str, numeric: bool):
    assert column(store, name) == pytest.approx(naive_gap(name, numeric))


def test_a_column_of_noise_has_no_gap_and_the_shown_one_has(store):
    assert abs(column(store, "coin")) < 3 * column(store, "coin", "chance")
    assert column(store, "town") > 3 * column(store, "town", "chance")


def test_a_constant_column_is_a_note_and_no_nan(store):
    assert store.attributes["notes"] == {"flat": "the column is constant"}
    assert column(store, "flat", "defined") == 0
    assert column(store, "flat") == 0
    assert column(store, "a", "defined") == 1


def test_the_label_comes_last(store):
    assert store.attributes["columns"] == ["a", "b", "c", "town", "coin", "flat", "label"]


def test_the_group_tables_hold_all_small_categories(store):
    groups = store.attributes["groups"]
    assert sorted(groups) == ["coin", "label", "town"]
    share = np.array(groups["town"]["share"])
    assert share.sum(axis=1) == pytest.approx(np.ones(3))
    assert sum(groups["town"]["samples"]) == 60
    assert np.sum(groups["town"]["chance"]) == pytest.approx(1)
    assert np.all(np.diag(share) > groups["town"]["chance"])


def test_the_words_hold_every_column_and_group(store):
    arrays = {name: store.array(name) for name in ("gap", "stderr", "chance", "kernel_only")}
    arrays |= {
        name: store.array(name)
        for name in ("weighted", "repelling", "difference_stderr", "by_network", "by_inputs")
    }
    lines = alignment_lines(arrays, store.attributes)
    assert lines[2].split()[0] in {"label", "town"}
    assert any(line.startswith("flat") and "the column is constant" in line for line in lines)
    assert "the kernel alone gives the same gaps within" in lines[-1]
    words = "\n".join(group_lines(store.attributes["groups"]))
    assert "groups of town" in words
    assert "by chance" in words
    assert group_lines({"x": {"note": "no group is known"}}) == ["groups of x: no group is known"]


def test_a_group_without_landmarks_is_a_note():
    top, score = np.zeros((4, 1), dtype=np.int64), np.ones((4, 1))
    found = group_table(np.array([0, 0, 1, 2]), np.array([0, 0]), top, score, 4)
    assert group_note(found).startswith("2 of 3 groups have no landmark")
    whole = group_table(np.array([0, 1]), np.array([0, 1]), top[:2], score[:2], 2)
    assert group_note(whole) == ""


def test_an_unknown_group_column_is_refused(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        audits.audit(tmp_path, "alignment", alignment={"groups": ["a"]})
    assert str(caught.value) == (
        "stages.alignment.groups: 'a' is no column of groups; expected one of town, coin, label"
    )
