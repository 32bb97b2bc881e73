"""Figures in README and docs are those of the recorded results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.document_figures import (
    DOCUMENTS,
    PRINTED,
    QUOTED,
    figures_of,
    is_among,
    marked_blocks,
    printed_figures,
    prose_figures,
    prose_without_mark,
    tables_without_mark,
)

ROOT = Path(__file__).parents[1]


def test_quoted_verdicts_are_those_of_the_recorded_audits() -> None:
    from krepes_ooc.stages.verdict.criteria import learned_figures

    value = {"label": "a figure", "value": 1.0, "most": 2.0}
    figures = {str(i): {**value, "learned": i > 3} for i in range(7)}
    title = learned_figures(figures).title
    for name, page in (("bias-adult", "bias.md"), ("audit-digits", "verdict.md")):
        recorded = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
        assert title in recorded["verdict"], name
        text = " ".join((ROOT / "docs" / page).read_text().split())
        assert title in text or page == "verdict.md"
        assert recorded["verdict"].lower().partition(":")[0] in text


def test_plans_are_compared_with_runs_in_one_way() -> None:
    """README and limits say of plans what the table of whole runs says."""
    text = (ROOT / "docs/scale.md").read_text()
    table = text.partition("Whole runs beside their plans:")[2].partition("\n\nThe third")[0]
    rows = [line.split("|") for line in table.splitlines() if re.match(r"\| \d", line)]
    longer = sorted(int(cells[5].strip(" %")) for cells in rows)
    # The slowest ran with half to all of the machine's time in use by others
    words = f"took {longer[0]} to {longer[-2]} % longer than planned"
    assert longer[-1] < 51
    for page in (ROOT / "README.md", ROOT / "docs/limits.md"):
        assert words in " ".join(page.read_text().split()), page.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_figures_are_those_of_their_results_file(path: Path) -> None:
    assert tables_without_mark(path) == []
    assert prose_without_mark(path) == []
    for block in marked_blocks(path):
        assert block.files or block.reason or block.is_settings, (path.name, block.text[:60])
        assert block.wrong() == [], (path.name, block.text[:60])
        # What is excused stands there
        assert block.beside <= set(figures_of(block.text)), path.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_figures_are_the_recorded_ones(path: Path) -> None:
    recorded = json.loads(PRINTED.read_text()).get(path.name, {})
    assert printed_figures(path) == recorded, "meant? python -m tests.document_figures"


def test_every_changed_digit_of_a_page_is_found(tmp_path: Path) -> None:
    """All figures of two pages, one after the other, in tables and in sentences."""
    recorded = json.loads(PRINTED.read_text())
    for name in ("bias.md", "compare-audits.md"):
        text = (ROOT / "docs" / name).read_text()
        copy = tmp_path / name
        changed = 0
        for block in marked_blocks(ROOT / "docs" / name):
            for figure in figures_of(block.text):
                other = figure[:-1] + str((int(figure[-1]) + 1) % 10)
                copy.write_text(text.replace(block.text, block.text.replace(figure, other, 1)))
                assert printed_figures(copy) != recorded[name], (name, figure)
                changed += 1
        assert changed > 30


def test_figures_copied_by_hand_say_their_command_and_are_used() -> None:
    quoted = json.loads(QUOTED.read_text())
    used = {name for path in DOCUMENTS for block in marked_blocks(path) for name in block.files}
    assert {f"{QUOTED.name}#{key}" for key in quoted} <= used
    printed = {
        key: {
            figure
            for path in DOCUMENTS
            for block in marked_blocks(path)
            if f"{QUOTED.name}#{key}" in block.files
            for figure in figures_of(block.text)
        }
        for key in quoted
    }
    for key, part in quoted.items():
        assert part["command"], key
        assert set(part["figures"]) <= printed[key], key


def test_a_sentence_with_figures_and_without_their_origin_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\nIt takes 12 to 14 s on two cores in 2026.\n\nSee section 12.\n")
    assert prose_without_mark(page) == ["It takes 12 to 14 s on two cores in 2026."]
    page.write_text("<!-- figures: settings; 12, 14 -->\n\n" + page.read_text()[5:])
    assert prose_without_mark(page) == []
    assert [block.wrong() for block in marked_blocks(page)] == [[]]
    page.write_text(page.read_text().replace("12 to", "13 to"))
    assert [block.wrong() for block in marked_blocks(page)] == [["13"]]
    assert prose_figures("62 % of .5 and 7 things, 3 CPU-seconds") == ["62", ".5", "3"]


def test_a_changed_figure_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "scale.md"
    text = (ROOT / "docs/scale.md").read_text()
    for figure, other in (("137.8", "138.8"), ("82.7 %", "83.7 %"), ("1,310 MiB", "1,327 MiB")):
        assert figure in text
        copy.write_text(text.replace(figure, other))
        assert other.split()[0] in [found for b in marked_blocks(copy) for found in b.wrong()]
    copy.write_text(re.sub(r"<!-- figures: engine.*?-->", "", text))
    assert tables_without_mark(copy) == ["| figure | ratio | goal |"]


def test_figures_are_compared_as_they_are_printed() -> None:
    assert is_among("42,800", [42757.2])
    assert not is_among("42,757", [42758.0])
    assert is_among("82.7", [0.82671])
    assert not is_among(".85", [0.8446])
    assert figures_of("| a | b |\n|---|---|\n| `x` 12 | −.5 to 1e6, 3 |") == ["12", "−.5"]


def test_tables_of_scale_are_the_generated_ones() -> None:
    from benchmarks.scale_table import run_table, stage_table

    text = (ROOT / "docs/scale.md").read_text()
    assert stage_table() in text
    assert run_table() in text


def test_figures_of_the_bias_guide_are_the_recorded_ones() -> None:
    recorded = json.loads((ROOT / "benchmarks/results/bias-adult.json").read_text())
    text = (ROOT / "docs/bias.md").read_text()
    assert recorded["command"] in text
    gender = recorded["alignment"]["gender"]
    draws = gender["random_weights"]
    expected = [
        f"| gap | {short(gender['gap'])} ± {short(2 * gender['stderr'])} ",
        f"| chance | {short(gender['chance'])} |",
        f"| by inputs | {short(gender['input_gap'])} |",
        f"| random weights | {short(min(draws))} to {short(max(draws))} |",
        f"| plain kernel | {short(gender['kernel_only'])} |",
        f"| by network embedding | {short(gender['network_gap'])} |",
    ]
    for name in ("gender = Female", "gender = Male", "race = White", "race = Black"):
        one = recorded["group_influence"][name]
        sign = "−" if one["beyond_size"] < 0 else "+"
        effect, beyond = short(one["mean_effect"]), short(abs(one["beyond_size"]))
        expected.append(f"{name.split()[-1]} {effect} ({sign}{beyond})")
    assert [words for words in expected if words not in text] == []


def short(value: float) -> str:
    """Three decimals without the zero before the point."""
    return f"{value:.3f}".removeprefix("0")
