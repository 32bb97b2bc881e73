"""A hundred discovered concepts: list, names, export, explanation and report stay readable."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.rendering.samples import Page

# One whole audit, minutes on a busy machine
pytestmark = pytest.mark.timeout(600)
COUNT = 100
LINE = 100


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hundred")
    changes = ("source.limit=600", "stages.landmarks.count=160", "stages.groups.columns={}")
    small.audit(folder, f"stages.discovery.concepts={COUNT}", *changes)
    assert len(Workspace(folder).reader("discovery").array("share")) == COUNT
    return folder


def test_the_list_has_a_short_line_for_each(workspace: Path, capsys: Any) -> None:
    done = small.krepes(capsys, "concepts", "list", "-w", str(workspace))
    head, *lines = done.out.splitlines()
    assert done.code == 0
    assert head.split() == ["concept", "share", "stability", "view", "agreement", "kept", "as"]
    assert [line.split()[0] for line in lines] == [str(c) for c in range(COUNT)]
    assert max(map(len, [head, *lines])) <= LINE
    shares = [float(line.split()[1]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    found = json.loads(small.krepes(capsys, "concepts", "list", "-w", str(workspace), "--json").out)
    assert sum(each["share"] for each in found) == pytest.approx(1.0)


def test_a_concept_of_few_samples_is_refused_in_one_line(workspace: Path, capsys: Any) -> None:
    """The rarest of a hundred concepts shows itself in fewer than ten of 600 samples."""
    share = Workspace(workspace).reader("discovery").array("share")
    assert 0 < round(600 * share[-1]) < 10
    number = str(COUNT - 1)
    done = small.krepes(capsys, "concepts", "keep", number, "-w", str(workspace), "--as", "rare")
    assert done.code in (1, 2)
    assert f"concept {number}" in done.line
    assert "10" in done.line
    done = small.krepes(capsys, "concepts", "keep", str(COUNT), "-w", str(workspace), "--as", "x")
    assert done.code in (1, 2)
    assert str(COUNT) in done.line


def test_the_export_has_rows_for_each(workspace: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "concepts.csv"
    given = ("export", "-w", str(workspace), "--store", "discovery", "--dim", "concept")
    done = small.krepes(capsys, *given, "--format", "csv", "--out", str(out))
    assert done.code == 0, done.err
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows[:3]] == ["1", "2", "3"]
    assert len({row["concept"] for row in rows}) == COUNT
    assert len(rows) % COUNT == 0


def test_an_explanation_names_five(workspace: Path, capsys: Any) -> None:
    sample = int(Workspace(workspace).reader("audited").array("sample_id")[0])
    done = small.krepes(capsys, "explain", str(workspace), "--sample", str(sample))
    assert done.code == 0, done.err
    assert len(set(re.findall(r"\bconcept \d+", done.out))) == 5
    given = ("explain", str(workspace), "--sample", str(sample), "--json")
    document = json.loads(small.krepes(capsys, *given).out)
    document = document[0] if isinstance(document, list) else document
    assert len(document["sample"]["concepts"]) == COUNT


def test_the_page_shows_few_and_folds_the_others(workspace: Path) -> None:
    html = (workspace / "report.html").read_text(encoding="utf-8")
    panel = html.partition('<section id="discovered"')[2].partition("</section>")[0]
    open_rows = panel.partition("<details")[0].count("<tr")
    assert open_rows < 16
    text = Page(panel).text
    assert re.search(r"\d+ more concepts", text)
    assert len(re.findall(r"concept \d+", text)) >= COUNT
    findings = html.partition('<section id="findings"')[2].partition("</section>")[0]
    sentence = re.search(r"[^.]*of 100 discovered concepts are stable[^.]*\.", Page(findings).text)
    assert sentence
    assert len(sentence[0]) < 400
    figures = json.loads((workspace / "report.json").read_text())["discovered"]
    assert np.isfinite(figures["share"]).all()
    assert len(figures["names"]) == COUNT
