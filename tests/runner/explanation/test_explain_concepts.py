"""Concept scores of explained samples: sums over landmarks, stored and new samples, cards."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from krepes_ooc.errors import WorkspaceError
from krepes_ooc.rendering.explanation_card import draw_card
from krepes_ooc.runner.explanation.explain import explain
from krepes_ooc.runner.kept_concepts import keep_concept
from krepes_ooc.stages.report.known_concepts import discovered_directions
from krepes_ooc.storage.workspace import Workspace
from tests.small import krepes
from tests.stages import audits

# Whole audits in the fixtures.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished audit with given, discovered and kept concepts."""
    folder = tmp_path_factory.mktemp("concepts")
    shutil.copytree(audits.finished().root, folder / "w")
    space = Workspace(folder / "w")
    keep_concept(space, 0, "mine", {})
    return space


def sample_of(space: Workspace, row: int) -> int:
    return int(space.reader("audited").array("sample_id")[row])


def test_scores_are_sums_over_landmarks_of_given_and_discovered_concepts(space: Workspace):
    row = 7
    (one,) = explain(space.root, sample=sample_of(space, row))
    assert one.concepts is not None
    influence, concepts = space.reader("influence"), space.reader("concepts")
    k = influence.array("kernel")[row]
    step = influence.array("step")
    # Given concepts: the stored score, which is the sum over landmarks
    names = list(concepts.attributes["names"])
    given = {each.name: each for each in one.concepts.scores if each.kind == "given"}
    assert list(given) == names
    stored = concepts.array("score")[row]
    np.testing.assert_allclose([given[name].score for name in names], stored, atol=1e-12)
    assert [given[name].reliable for name in names] == concepts.array("trusted").astype(
        bool
    ).tolist()
    # Discovered ones, by their definition, one sum at a time
    discovery, f = space.reader("discovery"), influence.array("embedding")
    a = influence.array("kernel") @ discovery.array("weights") - discovery.array("const")
    found = [each for each in one.concepts.scores if each.kind == "discovered"]
    assert len(found) == a.shape[1]
    for c, each in enumerate(found):
        v = sum((f[t] - f.mean(axis=0)) * (a[t, c] - a[:, c].mean()) for t in range(len(f)))
        v /= np.linalg.norm(v)
        terms = [k[m] * float(step[m] @ v) for m in range(len(k))]
        assert each.score == pytest.approx(sum(terms), rel=1e-8, abs=1e-12)
        assert each.activation == pytest.approx(a[row, c], rel=1e-8)
        assert each.shows == (c == int(np.argmax(a[row])))
        for link in one.displayed:
            assert link.concepts[each.name] == pytest.approx(terms[link.row], rel=1e-8, abs=1e-14)
    assert found[0].kept_as == ("mine",)


def test_directions_point_to_where_the_activation_rises():
    draw = np.random.default_rng(0)
    f = draw.normal(size=(400, 3))
    activation = np.stack([f @ [2.0, 0.0, 0.0] + 5.0, -f[:, 2], np.ones(400)], axis=1)
    found = discovered_directions(f, activation)
    np.testing.assert_allclose(found[0] @ [1, 0, 0], 1.0, atol=0.02)
    np.testing.assert_allclose(found[1] @ [0, 0, -1], 1.0, atol=0.02)
    assert not found[2].any()


def test_a_new_sample_has_the_concepts_of_the_stored_one(space: Workspace, tmp_path: Path):
    row = int(np.flatnonzero(space.reader("audited").array("role") == 0)[0])
    (stored,) = explain(space.root, sample=sample_of(space, row))
    values = stored.sample.record(stored.row)["values"]
    columns = {column.name: column for column in stored.audit.columns}
    written = {
        name: columns[name].categories[int(value)] if columns[name].categories else value
        for name, value in values.items()
    }
    file = tmp_path / "row.json"
    file.write_text(json.dumps(written))
    recipe = str(audits.finished().root.parent / "own.yaml")
    (new,) = explain(space.root, file=file, recipe=recipe)
    assert stored.concepts is not None
    assert new.concepts is not None
    for one, other in zip(stored.concepts.scores, new.concepts.scores, strict=True):
        assert (one.name, one.shows) == (other.name, other.shows)
        assert other.score == pytest.approx(one.score, rel=1e-2, abs=1e-4)


def test_text_json_and_card_show_them(space: Workspace, tmp_path: Path, capsys: Any):
    sample = sample_of(space, 3)
    root = ("-w", str(space.root))
    shown = krepes(capsys, "explain", *root, "--sample", str(sample))
    assert shown.code == 0, shown.err
    assert "moved along it" in shown.out
    assert "shown" in shown.out
    (document,) = json.loads(
        krepes(capsys, "explain", *root, "--sample", str(sample), "--json").out
    )
    concepts = document["sample"]["concepts"]
    assert {each["kind"] for each in concepts} == {"given", "discovered"}
    assert sum(each["shows"] for each in concepts) == 1
    first = document["sample"]["landmarks"][0]
    assert set(first["concepts"]) == {each["name"] for each in concepts}
    (one,) = explain(space.root, sample=sample)
    with_concepts = Image.open(io.BytesIO(draw_card(one)))
    object.__setattr__(one, "concepts", None)
    without = Image.open(io.BytesIO(draw_card(one)))
    assert with_concepts.height > without.height


def test_an_audit_that_has_none_yet_is_explained_without(space: Workspace, tmp_path: Path):
    shutil.copytree(space.root, tmp_path / "w")
    for stage in ("concepts", "discovery"):
        (tmp_path / "w" / ".krepes" / "stages" / stage / "seal.json").unlink()
    (one,) = explain(tmp_path / "w", sample=sample_of(space, 3))
    assert one.concepts is None
    assert "concepts" not in one.record()


def test_concepts_of_another_audit_are_left_out(space: Workspace, monkeypatch: pytest.MonkeyPatch):
    from krepes_ooc.runner.explanation.explain_stores import AuditStores

    read = AuditStores.reader

    def refuses(stores: AuditStores, store: str) -> Any:
        if store == "concepts":
            raise WorkspaceError("stage concepts was computed from another influence")
        return read(stores, store)

    monkeypatch.setattr(AuditStores, "reader", refuses)
    (one,) = explain(space.root, sample=sample_of(space, 3))
    assert one.concepts is not None
    assert {each.kind for each in one.concepts.scores} == {"discovered"}
