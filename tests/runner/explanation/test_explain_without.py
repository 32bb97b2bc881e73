"""Neighbourhoods without a group against dense float64 embeddings from the stores alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.errors import UsageError
from krepes_ooc.rendering.explanation_card import draw_card
from krepes_ooc.rendering.explanation_without import HEADINGS
from krepes_ooc.runner.explanation.explain_without import explain_without, find_group
from krepes_ooc.sources.open import open_source
from tests import small
from tests.runner.conftest import FinishedAudit


def dense_cosines(audit: FinishedAudit, k: np.ndarray, group: int | None) -> np.ndarray:
    """Cosine of one sample's embedding with every landmark's [landmark], all moments by hand."""
    influence, moments = audit.reader("group_influence"), audit.reader("group_moments")
    A = influence.array("coefficients_full")
    n, mean = int(moments.attributes["n_samples"]), moments.array("total_mean")
    pairs = [tuple(pair) for pair in moments.attributes["pairs"]]
    own = [index for index, (a, b) in enumerate(pairs) if a == b]
    # Raw second moments add up: n S = n C + n mu mu^T.
    second = moments.array("total_second")[own]
    raw = [n * (C + np.outer(mu, mu)) for C, mu in zip(second, mean, strict=True)]
    if group is not None:
        A = influence.array("coefficients")[group]
        n_g, mean_g = int(moments.array("count")[group]), moments.array("mean")[group]
        C_g = moments.array("second")[group][own]
        raw = [S - n_g * (C + np.outer(mu, mu)) for S, C, mu in zip(raw, C_g, mean_g, strict=True)]
        mean = (n * mean - n_g * mean_g) / (n - n_g)
        n -= n_g
    mean = mean.mean(axis=0)
    if influence.attributes["objective"] == "barlow-twins":
        S = sum(raw) / (n * len(raw))
        A = A / np.sqrt(np.diag(A.T @ (S - np.outer(mean, mean)) @ A))
    f = A.T @ (k - mean)
    cosines = []
    for row in audit.landmark_kernel:
        g = A.T @ (row - mean)
        cosines.append(f @ g / np.linalg.norm(f) / np.linalg.norm(g))
    return np.array(cosines)


def rounding(audit: FinishedAudit, k: np.ndarray, group: int) -> float:
    """Relative error of A^T (k - mean) for a row k of float32: eps |A|^T |k| / |A^T (k - mean)|."""
    influence, moments = audit.reader("group_influence"), audit.reader("group_moments")
    mean = moments.array("total_mean").mean(axis=0)
    worst = 0.0
    for A in (influence.array("coefficients_full"), influence.array("coefficients")[group]):
        size = np.linalg.norm(np.abs(A).T @ np.abs(k))
        worst = max(worst, float(size / np.linalg.norm(A.T @ (k - mean))))
    return worst * float(np.finfo(np.float32).eps)


def groups_left_out(audit: FinishedAudit) -> list[str]:
    attributes = audit.reader("group_influence").attributes
    return [name for name in attributes["names"] if name not in attributes["reasons"]]


@pytest.mark.parametrize("kind", ["explained_digits", "explained_table", "explained_streamed"])
def test_neighbours_on_either_side(kind: str, request: pytest.FixtureRequest) -> None:
    audit: FinishedAudit = request.getfixturevalue(kind)
    names = list(audit.reader("group_influence").attributes["names"])
    landmark_ids = audit.reader("landmarks").array("sample_id")
    kernel, effect = (
        audit.reader("influence").array("kernel"),
        audit.reader("group_influence").array("effect"),
    )
    changed = 0
    for name in groups_left_out(audit):
        group = names.index(name)
        found = explain_without(audit.path, group=name, sample=audit.audited[:6], top=5)
        for row, one in enumerate(found):
            sides = {}
            # Rows are stored in float32, and the mean is taken off: that is what rounding leaves.
            atol = max(1e-6, rounding(audit, kernel[row], group))
            for side, which in (("before", None), ("after", group)):
                cosine = dense_cosines(audit, kernel[row], which)
                cosine[landmark_ids == audit.audited[row]] = -np.inf
                near = getattr(one, side)
                np.testing.assert_allclose(
                    [n.cosine for n in near], np.sort(cosine)[::-1][:5], atol=atol
                )
                np.testing.assert_allclose(
                    [cosine[n.row] for n in near], [n.cosine for n in near], atol=atol
                )
                sides[side] = {n.row for n in near}
            assert {n.row for n in one.left} == sides["before"] - sides["after"]
            assert {n.row for n in one.entered} == sides["after"] - sides["before"]
            changed += len(one.left)
            assert one.effect == pytest.approx(effect[group, row], abs=1e-12)
            assert one.effect_quantile == pytest.approx(np.mean(effect[group] < effect[group, row]))
    # A first-order change may be too small to move a neighbour.
    assert changed > 0 or kind == "explained_streamed"


def test_a_new_sample_has_the_effect_of_the_stored_one(
    explained_digits: FinishedAudit, tmp_path: Path
) -> None:
    audit = explained_digits
    source = open_source(small.recipe().source, Path(), tmp_path)
    for name in groups_left_out(audit):
        x = audit.audited[1]
        np.save(tmp_path / "new.npy", source.read(np.array([x]))[0])
        known = explain_without(audit.path, group=name, sample=x)[0]
        new = explain_without(audit.path, group=name, file=tmp_path / "new.npy")[0]
        assert new.effect == pytest.approx(known.effect, rel=1e-2, abs=1e-5)
        assert new.record()["sample"]["sample_id"] is None
        # The stored one may be a landmark itself, the new one has no position.
        known_rows = [n.row for n in known.before if n.cosine < 0.999]
        assert known_rows[:3] == [n.row for n in new.before if n.row in known_rows][:3]


def test_members_are_told_by_label_column_and_range(
    explained_digits: FinishedAudit, explained_table: FinishedAudit
) -> None:
    digits = explained_digits
    one = explain_without(digits.path, group="label = 3", sample=digits.audited[0])[0]
    for near in one.record()["before"]:
        assert near["in_group"] == (near["class"] == "3")
    assert one.in_group == (one.record()["sample"]["class"] == "3")
    cluster = next(name for name in groups_left_out(digits) if name.startswith("cluster"))
    clusters = digits.reader("groups").array("landmark_cluster")
    one = explain_without(digits.path, group=cluster, sample=digits.audited[0])[0]
    assert [n.in_group for n in one.before] == [
        clusters[n.row] == int(cluster.split()[1]) for n in one.before
    ]
    assert one.in_group is None
    table = explained_table
    levels = table.reader("landmarks").attributes["columns"]
    place = [column["name"] for column in levels].index("town")
    for name in groups_left_out(table):
        one = explain_without(table.path, group=name, sample=table.audited[0])[0]
        for near in one.before:
            record = one.landmarks.record(near.row)["values"]
            town = levels[place]["categories"][int(record["town"])]
            if name.startswith("town"):
                assert near.in_group == (town == name[-1])
            else:
                assert near.in_group == ((record["a"] < 3.5) == (name == "a < 3.5"))


def test_groups_that_cannot_be_left_out(explained_digits: FinishedAudit) -> None:
    path, x = explained_digits.path, explained_digits.audited[0]
    with pytest.raises(UsageError, match=r"no group 'label=3'; .*did you mean 'label = 3'"):
        explain_without(path, group="label=3", sample=x)
    reasons = explained_digits.reader("group_influence").attributes["reasons"]
    assert reasons, "the small audit has a group that leaves too few anchors"
    name, reason = next(iter(reasons.items()))
    with pytest.raises(UsageError, match=f"group '{name}' cannot be left out: {reason}"):
        explain_without(path, group=name, sample=x)


def test_a_name_that_several_groups_have() -> None:
    class Twice:
        attributes = {"names": ["a", "b", "a"], "reasons": {}}  # noqa: RUF012

        def reader(self, store: str) -> Twice:
            return self

    stores: Any = Twice()
    assert find_group(stores, "b") == 1
    with pytest.raises(UsageError, match="2 groups are named 'a'; expected a name that one group"):
        find_group(stores, "a")


def test_command(capsys: Any, explained_digits: FinishedAudit, tmp_path: Path) -> None:
    x, y = map(str, explained_digits.audited[:2])
    w = ("explain", "-w", str(explained_digits.path), "--without", "label = 3", "--sample", x)
    shown = small.krepes(capsys, *w, "--top", "4", "--png", str(tmp_path / "card.png"))
    assert shown.code == 0
    assert "without group label = 3" in shown.out
    assert "of its 4 nearest landmarks" in shown.out
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")
    documents = json.loads(small.krepes(capsys, *w, "--sample", y, "--json").out)
    assert [one["sample"]["sample_id"] for one in documents] == [int(x), int(y)]
    assert all(len(one["before"]) == len(one["after"]) == 10 for one in documents)


def test_a_table_row_is_drawn(explained_table: FinishedAudit) -> None:
    name = groups_left_out(explained_table)[0]
    one = explain_without(explained_table.path, group=name, sample=explained_table.audited[0])[0]
    assert draw_card(one.explained(), one.sentences(), HEADINGS).startswith(b"\x89PNG")
