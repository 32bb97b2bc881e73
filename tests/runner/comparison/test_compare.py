"""Comparison of audits: no change against itself, a planted change, and what is refused."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.errors import UsageError
from krepes_ooc.rendering.comparison_page import build_comparison_page
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.comparison.compare import compare
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.alignment.gap import ColumnValues, agreement
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.small import krepes
from tests.stages import audits

# Whole audits in the fixtures.
pytestmark = pytest.mark.timeout(600)

SMALL = ("stages.groups.clusters=0", "stages.groups.columns={town: []}")


def own_audit(
    folder: Path, *changes: str, table: str | None = None, until: str = "influence"
) -> Path:
    """An audit of a user's own table and network."""
    recipe = small.own_recipe(folder / "files", audits.table() if table is None else table)
    source = "source.categorical=[town, coin]", "source.audit_only=[coin, flat]"
    arguments = "network.arguments={inputs: 6}"
    loaded = Recipe.load(str(recipe), (*source, arguments, *SMALL, *changes))
    run(loaded, folder / "w", Options(workers=2, until=until))
    return folder / "w"


@pytest.fixture(scope="module")
def first() -> Path:
    """A finished audit."""
    return audits.finished().root


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished audit with another seed, whose source, network and large stores are gone."""
    folder = tmp_path_factory.mktemp("seed")
    recipe = audits.write_recipe(folder, concepts={"sets": audits.CONCEPTS})
    run(Recipe.load(str(recipe), ("seed=1",)), folder / "w", Options(workers=2, until="examples"))
    for name in ("rows.csv", "net.py", "weights.safetensors", "own.yaml"):
        (folder / name).unlink()
    for store in ("features", "kernel"):
        shutil.rmtree(folder / "w" / "audit.zarr" / store)
    return folder / "w"


@pytest.fixture(scope="module")
def vicreg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same source under another objective, not run to its end."""
    return own_audit(tmp_path_factory.mktemp("vicreg"), "stages.newton.objective=vicreg")


def test_an_audit_against_itself_shows_exactly_no_change(first: Path, tmp_path: Path):
    shutil.copytree(first, tmp_path / "again")
    found = compare([first, tmp_path / "again"]).record()
    assert [audit["relation"] for audit in found["audits"]] == ["first", "same"]
    for figure in found["figures"].values():
        assert figure["values"][0] == figure["values"][1]
    for matrix in found["similarity"].values():
        assert matrix == [[1.0, 1.0], [1.0, 1.0]]
    (pair,) = found["pairs"]
    assert set(pair["change"].values()) == {0.0}
    assert pair["overlap"] == 1.0
    for kind in ("gaps", "effects", "concept_sets"):
        assert pair[kind], kind
        known = [one for one in pair[kind] if one["difference"] is not None]
        assert {one["difference"] for one in known} == {0.0}, kind
    assert {tuple(one["interval"]) for one in pair["effects"]} == {(0.0, 0.0)}
    for table in pair["groups"]:
        change = np.array(table["difference"], dtype=float)
        assert np.isfinite(change).any()
        assert not np.nan_to_num(change).any()
    concepts = pair["concepts"]
    assert all(one["first"] == one["other"] for one in concepts["pairs"])
    assert {one["correlation"] for one in concepts["pairs"]} == {1.0}
    assert {sample["change"] for sample in pair["samples"] + pair["landmarks"]} == {0.0}


def test_another_seed_is_the_floor_and_needs_neither_source_nor_network(
    first: Path, seed: Path, vicreg: Path
):
    found = compare([first, seed, vicreg]).record()
    assert [audit["relation"] for audit in found["audits"]] == ["first", "seed", "other"]
    assert found["audits"][1]["differs"] == {"seed": {"first": 0, "here": 1}}
    assert found["audits"][2]["differs"]["stages.newton.objective"] == {
        "first": "barlow-twins",
        "here": "vicreg",
    }
    of_seed, of_vicreg = found["pairs"]
    assert {sample["floor"] for sample in of_seed["samples"]} == {None}
    floors = [sample["floor"] for sample in of_vicreg["samples"]]
    assert any(floor is not None for floor in floors)
    # The network is the same one in all three.
    np.testing.assert_allclose(found["similarity"]["network"], 1.0, atol=1e-6)
    assert 0.1 < found["similarity"]["embedding"][0][2] < 1.0
    assert found["samples"] <= of_seed["common"]["samples"]
    # What was not measured in the unfinished audit is null there.
    assert found["figures"]["coverage"]["values"][2] is None


def test_gaps_are_those_of_every_sample_over_the_samples_that_both_have(first: Path, seed: Path):
    (pair,) = compare([first, seed]).record()["pairs"]
    sides = []
    for root in (first, seed):
        space = Workspace(root)
        audited, landmarks = space.reader("audited"), space.reader("landmarks")
        column = [str(one["name"]) for one in audited.attributes["columns"]].index("a")
        one = audited.attributes["columns"][column]
        span = float(one["high"] - one["low"])
        values = [store.array("values")[:, column] for store in (audited, landmarks)]
        agreed = agreement(ColumnValues(values[0], values[1], span))
        top = space.reader("influence").array("top_landmark")
        gaps = [agreed[t, top[t]].mean() - agreed[t].mean() for t in range(len(top))]
        kept = audited.array("role") < 2
        sides.append(
            {
                int(i): gap
                for i, gap, keep in zip(audited.array("sample_id"), gaps, kept, strict=True)
                if keep
            }
        )
    both = sorted(set(sides[0]) & set(sides[1]))
    change = np.array([sides[1][i] - sides[0][i] for i in both])
    (gap,) = [each for each in pair["gaps"] if each["name"] == "a"]
    assert gap["samples"] == len(both)
    assert gap["difference"] == pytest.approx(change.mean(), rel=1e-9)
    half = 1.959964 * change.std() / np.sqrt(len(both))
    assert gap["interval"] == pytest.approx([change.mean() - half, change.mean() + half], rel=1e-5)


def test_other_sources_are_matched_by_the_names_of_their_samples(tmp_path: Path):
    lines = audits.table().splitlines()
    named = [f"{line},{'name' if i == 0 else f's{i}'}" for i, line in enumerate(lines)]
    # The other source lacks the first rows and has its rows in another order.
    other = [named[0], *reversed(named[21:])]
    a = own_audit(tmp_path / "a", "source.name=name", table="\n".join(named) + "\n")
    b = own_audit(tmp_path / "b", "source.name=name", table="\n".join(other) + "\n")
    found = compare([a, b]).record()
    assert found["matched_by"] == "name"
    assert found["warnings"] == []
    (pair,) = found["pairs"]
    # The same rows in the same network, whatever their positions; each scaled by its own source.
    assert found["similarity"]["network"][0][1] > 0.999
    names = {sample["name"] for sample in pair["samples"]}
    assert names
    assert not names & {f"s{i}" for i in range(1, 21)}


def test_other_sources_without_names_are_refused(first: Path, tmp_path: Path, capsys: Any):
    head, *lines = audits.table().splitlines()
    reordered = "\n".join([head, *reversed(lines)]) + "\n"
    other = own_audit(tmp_path, table=reordered)
    refused = krepes(capsys, "compare", str(first), str(other))
    assert refused.code == 2
    assert "different sources, and their samples have no names" in refused.line
    assert "source.name" in refused.line


def test_too_few_common_samples_are_refused(first: Path, seed: Path, monkeypatch: Any):
    monkeypatch.setattr("krepes_ooc.runner.comparison.compare.FEWEST_SAMPLES", 10_000)
    with pytest.raises(UsageError, match="samples in common, matched by position") as refused:
        compare([first, seed])
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{first}"], "1 audits"),
        (["{first}", "nowhere"], "no workspace there"),
        (["{first}", "{first}", "--out", "page.pdf"], "a comparison is a page"),
        (["{first}", "{first}", "--out", "no/folder/page.html"], "cannot write"),
    ],
)
def test_bad_input_is_one_line(first: Path, arguments: list[str], words: str, capsys: Any):
    refused = krepes(capsys, "compare", *(each.format(first=first) for each in arguments))
    assert refused.code == 2
    assert words in refused.line
    assert refused.out == ""


def test_an_audit_without_influence_is_refused(first: Path, tmp_path: Path, capsys: Any):
    shutil.copytree(first, tmp_path / "w")
    (tmp_path / "w" / ".krepes" / "stages" / "influence" / "seal.json").unlink()
    refused = krepes(capsys, "compare", str(first), str(tmp_path / "w"))
    assert refused.code == 4
    assert "stage influence is not sealed" in refused.line


def test_a_damaged_store_is_named(first: Path, tmp_path: Path, capsys: Any):
    shutil.copytree(first, tmp_path / "w")
    chunks = (tmp_path / "w" / "audit.zarr" / "influence" / "kernel" / "c").rglob("0")
    file = next(path for path in chunks if path.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    refused = krepes(capsys, "compare", str(first), str(tmp_path / "w"))
    assert refused.code in (1, 5)
    assert "influence" in refused.line


def test_the_page_has_no_script_and_shows_what_the_json_has(
    first: Path, seed: Path, tmp_path: Path, capsys: Any
):
    target = tmp_path / "page.html"
    shown = krepes(capsys, "compare", str(first), str(seed), "--out", str(target))
    assert shown.code == 0
    assert "another seed: the variation by seed" in shown.out
    page = html.unescape(target.read_text())
    assert "script-src 'none'" in page
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    comparison = compare([first, seed])
    assert build_comparison_page(comparison) == target.read_text()
    printed = krepes(capsys, "compare", str(first), str(seed), "--json")
    assert json.loads(printed.out) == json.loads(json.dumps(comparison.record()))
    change = comparison.record()["pairs"][0]["change"]["largest"]
    assert repr(change) in page


def test_names_of_folders_are_escaped_in_the_page(first: Path, tmp_path: Path):
    shutil.copytree(first, tmp_path / "<b>w")
    page = build_comparison_page(compare([first, tmp_path / "<b>w"]))
    assert "<b>w" not in page
    assert "&lt;b&gt;w" in page
