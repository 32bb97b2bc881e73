"""One audit of awkward groups: missing labels, more groups than landmarks, a category none has."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import yaml

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace
from tests.small import floats_that_are_not_finite
from tests.stages import audits

TOWNS = 40  # of 24 landmarks
RARE = (0, 1)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("awkward")
    path = audits.write_recipe(folder, alignment={"groups": ["town", "coin", "label"]})
    head, *rows = audits.table().splitlines()
    changed = [head]
    for i, row in enumerate(rows):
        a, b, c, _, coin, flat, kind = row.split(",")
        # Every third label is missing; two samples alone have the coin r.
        cells = (
            a,
            b,
            c,
            f"t{i % TOWNS:02d}",
            "r" if i in RARE else coin,
            flat,
            kind if i % 3 else "",
        )
        changed.append(",".join(cells))
    (folder / "rows.csv").write_text("\n".join(changed) + "\n")
    values = yaml.safe_load(path.read_text())
    values["source"]["audit_only"] = ["coin", "flat", "town"]
    values["network"] |= {"arguments": {"inputs": 3}, "weights": "factory"}
    values["stages"]["audited"] |= {"sample_ids": list(range(60))}
    path.write_text(yaml.safe_dump(values))
    run(Recipe.load(str(path)), folder / "w", Options(workers=2))
    return Workspace(folder / "w")


@pytest.fixture(scope="module")
def tables(space: Workspace) -> dict[str, Any]:
    return dict(space.reader("alignment").attributes["groups"])


def test_nothing_is_ever_nan(space: Workspace) -> None:
    assert floats_that_are_not_finite(space.root) == []
    json.loads((space.root / "report.json").read_text(), parse_constant=pytest.fail)


def test_more_groups_than_landmarks(tables: dict[str, Any]) -> None:
    table = tables["town"]
    assert len(table["categories"]) == TOWNS
    counts = np.array(table["landmarks"])
    assert counts.sum() == 24
    bare = int(np.sum((np.array(table["samples"]) > 0) & (counts == 0)))
    assert bare >= TOWNS - 24
    assert table["note"] == (
        f"{bare} of {TOWNS} groups have no landmark, so that their own share is 0; take more "
        "landmarks"
    )


def test_a_category_unseen_among_landmarks(space: Workspace, tables: dict[str, Any]) -> None:
    table = tables["coin"]
    rare = table["categories"].index("r")
    assert not set(RARE) & set(space.reader("landmarks").array("sample_id").tolist())
    assert table["samples"][rare] == 2
    assert table["landmarks"][rare] == 0
    assert table["chance"][rare] == 0
    assert table["share"][rare][rare] == 0
    assert np.sum(table["share"][rare]) == pytest.approx(1)
    assert table["note"].startswith("1 of 3 groups have no landmark")


def test_missing_labels_are_left_out(space: Workspace, tables: dict[str, Any]) -> None:
    audited = space.reader("audited")
    here = audited.array("role") == 0
    label = audited.array("label")[here]
    assert (label < 0).sum() == 20
    assert tables["label"]["samples"] == np.bincount(label[label >= 0]).tolist()
    figures = space.reader("fidelity").attributes["figures"]
    top = space.reader("influence").array("top_landmark")[here, 0]
    first = space.reader("landmarks").array("label")[top]
    known = (label >= 0) & (first >= 0)
    assert figures["precision_at_1"]["value"] == pytest.approx(
        np.mean(first[known] == label[known])
    )
    for name in ("kendall_tau", "accuracy_gap", "confidence_drop"):
        assert figures[name]["value"] is not None, figures[name]["note"]
