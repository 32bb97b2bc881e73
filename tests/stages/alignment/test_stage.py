from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from krepes_ooc import rendering
from krepes_ooc.errors import UsageError
from krepes_ooc.rendering.panels.groups import same_group_share
from krepes_ooc.stages.alignment.groups import group_table
from krepes_ooc.stages.alignment.stage import group_note
from krepes_ooc.stages.alignment.summary import MAX_LINES, alignment_lines, group_lines
from tests import dense
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


def rankings() -> dict[str, np.ndarray]:
    """Top landmarks of every audit sample [audited, rank] under every control, by loops."""
    from krepes_ooc.runner.audit import Audit

    space = audits.finished()
    recipe = audits.recipe_of(space)
    inputs = Audit(recipe, space).inputs
    audited, influence = space.reader("audited"), space.reader("influence")
    here = audited.array("role") == 0
    ids = audited.array("sample_id")[here], space.reader("landmarks").array("sample_id")
    K, f = influence.array("kernel")[here], influence.array("embedding")[here]
    step = influence.array("step")
    signed = [[k * (dA @ u) / np.linalg.norm(u) for k, dA in zip(row, step, strict=True)]
              for row, u in zip(K, f, strict=True)]  # fmt: skip
    rows = [inputs.encode(part, -1)[0].astype(np.float64) for part in ids]
    with torch.no_grad():
        nets = [inputs.network.inner(torch.as_tensor(x).float()).double().numpy() for x in rows]
    mean = nets[0].mean(axis=0)
    scores = {
        "kernel_only": np.abs(K),
        "repelling": -np.array(signed),
        "repelling_kernel": -K,
        "network_gap": cosines(nets[0] - mean, nets[1] - mean),
        "input_gap": cosines(*rows),
    }
    return {
        name: np.argsort(-score, axis=1, kind="stable")[:, :10] for name, score in scores.items()
    }


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in y] for a in x])


@pytest.mark.parametrize("name", ["a", "town"])
def test_every_control_is_the_gap_under_its_ranking(store, name: str):
    space = audits.finished()
    audited, landmarks = space.reader("audited"), space.reader("landmarks")
    at = store.attributes["columns"].index(name)
    described = audited.attributes["columns"][at]
    span = None if name == "town" else described["high"] - described["low"]
    here = audited.array("role") == 0
    x, y = audited.array("values")[here, at], landmarks.array("values")[:, at]
    v = np.array([[dense.agreement(a, b, span) for b in y] for a in x])
    for control, top in rankings().items():
        gaps = [row[best].mean() - row.mean() for row, best in zip(v, top, strict=True)]
        assert column(store, name, control) == pytest.approx(np.mean(gaps), abs=1e-6), control
    K = np.abs(space.reader("influence").array("kernel")[here])
    top = space.reader("influence").array("top_landmark")[here]
    weighted = [
        w[t] @ r[t] / w[t].sum() - w @ r / w.sum() for r, w, t in zip(v, K, top, strict=True)
    ]
    assert column(store, name, "weighted") == pytest.approx(np.mean(weighted))
    paper = [(w * r)[t].mean() - (w * r).mean() for r, w, t in zip(v, K, top, strict=True)]
    assert column(store, name, "paper") == pytest.approx(np.mean(paper))
    own = [r[t].mean() - r.mean() for r, t in zip(v, top, strict=True)]
    assert column(store, name, "stderr") == pytest.approx(np.std(own) / np.sqrt(len(own)))
    alone = [r[t].mean() - r.mean() for r, t in zip(v, rankings()["kernel_only"], strict=True)]
    expected = np.std(np.subtract(own, alone)) / np.sqrt(len(own))
    assert column(store, name, "difference_stderr") == pytest.approx(expected)


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
        for name in ("weighted", "repelling", "difference_stderr", "network_gap", "input_gap")
    }
    lines = alignment_lines(arrays, store.attributes)
    assert lines[1].startswith("column ")
    assert lines[2].split()[0] in {"label", "town"}
    assert any(line.startswith("flat") and "the column is constant" in line for line in lines)
    assert "plain kernel gives the same gaps within" in lines[-1]
    tables = store.attributes["groups"]
    town = next(line for line in group_lines(tables) if line.startswith("groups of town"))
    own, chance = same_group_share(rendering.Groups.from_attributes(tables["town"]))
    assert f" {100 * own:.0f} % of the influence" in town
    assert f"by chance {100 * chance:.0f} %" in town
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


def test_only_the_largest_gaps_are_told_and_the_rest_is_counted():
    names = [f"column {i}" for i in range(MAX_LINES + 3)]
    gaps = np.linspace(0.1, 0.8, len(names))
    arrays = {"gap": gaps, "kernel_only": gaps, "difference_stderr": np.full(len(names), 0.1)}
    attributes = {"columns": names, "notes": {}, "top": 10, "measure": "score"}
    told = alignment_lines(arrays, attributes)
    shown = [name for name in names if any(line.startswith(f"{name} ") for line in told)]
    assert shown == names[-MAX_LINES:]
    assert "and 3 columns with smaller gaps; the report has every control" in told
    assert "plain kernel gives the same gaps within 0.000; 0 of 8 differ" in told[-1]
    exact = alignment_lines(
        {name: values[:MAX_LINES] for name, values in arrays.items()},
        {**attributes, "columns": names[:MAX_LINES]},
    )
    assert not any(line.startswith("and ") for line in exact)
