"""Panels of what the last stages measured: alignment, groups, concepts."""

import dataclasses
import re

import numpy as np
import pytest

from krepes_ooc.rendering.measured import Groups
from krepes_ooc.rendering.panels.alignment import alignment_panel, kernel_says_the_same
from krepes_ooc.rendering.panels.concepts import TOP_LANDMARKS, concepts_panel
from krepes_ooc.rendering.panels.groups import groups_panel, same_group_share
from tests.rendering.samples import N_LANDMARKS, Page, full_audit, numbers_in, table_audit


def shown(panel) -> list[float]:
    """Every figure that a panel prints."""
    return [float(data["data-value"]) for data in Page(panel.render()).all("data")]


@pytest.mark.parametrize("panel", [alignment_panel, groups_panel, concepts_panel])
def test_every_figure_of_a_panel_is_in_its_json(panel):
    drawn = panel(table_audit())
    from krepes_ooc.rendering.drawing.markup import to_plain

    known = numbers_in(to_plain(dict(drawn.figures)))
    assert len(shown(drawn)) > 10
    assert set(shown(drawn)) <= known


def test_alignment_shows_every_control_largest_gap_first():
    page = Page(alignment_panel(table_audit()).render())
    rows = page.text[page.text.index("random weights colour audited") :]
    # The audited column first
    assert rows.index("colour") < rows.index("age") < rows.index("label") < rows.index("constant")
    for words in (
        "chance",
        "plain kernel",
        "by network",
        "random weights",
        "by inputs",
        "weighted",
        "repelling",
    ):
        assert words in page.text
    assert "the column is constant" in page.text
    found = table_audit().alignment
    printed = shown(alignment_panel(table_audit()))
    two = 2 * found.stderr
    assert set(two[np.isfinite(two)].tolist()) <= set(printed)
    for name in (
        "gap",
        "random_most",
        "chance",
        "kernel_only",
        "network_gap",
        "input_gap",
        "repelling",
    ):
        values = getattr(found, name)
        assert set(values[np.isfinite(values)].tolist()) <= set(printed), name


def test_a_control_that_was_not_measured_has_no_column():
    found = dataclasses.replace(table_audit().alignment, input_gap=None, chance=None)
    text = Page(alignment_panel(table_audit(alignment=found)).render()).text
    assert "by inputs" not in text
    assert "chance" not in text.replace("by chance", "")


def test_the_kernel_alone_is_compared_in_words():
    found = table_audit().alignment
    told = kernel_says_the_same(found)
    beyond = np.abs(found.gap - found.kernel_only) > 2 * found.difference_stderr
    assert told == {
        "largest_difference": pytest.approx(0.1), "columns": 3, "beyond_two_standard_errors": 2,
        "larger": (beyond & (found.gap > found.kernel_only)).sum(),
        "smaller": (beyond & (found.gap < found.kernel_only)).sum(),
    }  # fmt: skip
    assert told["larger"] + told["smaller"] == 2
    text = Page(alignment_panel(table_audit()).render()).text
    assert "More than 2 s.e. from plain kernel: 2 of 3 gaps (one is the label's)" in text
    sides = f"{told['larger']} larger, {told['smaller']} smaller"
    assert f"{sides}; largest difference 0.1 ." in text.replace(" ,", ",")
    silent = dataclasses.replace(found, difference_stderr=None)
    assert "beyond_two_standard_errors" not in kernel_says_the_same(silent)
    nothing = dataclasses.replace(found, gap=np.full(4, np.nan))
    assert kernel_says_the_same(nothing) == {}
    assert "from plain kernel:" not in alignment_panel(table_audit(alignment=nothing)).render()


@pytest.mark.parametrize("largest", [0.04, 0.3, 0.62, 0.97])
def test_the_axis_of_the_gaps_reaches_every_mark(largest):
    found = table_audit().alignment
    known = {
        name: np.where(np.isfinite(value), value / 0.36 * largest, np.nan)
        for name in ("gap", "stderr", "kernel_only", "chance", "input_gap", "random_most")
        if (value := getattr(found, name)) is not None
    }
    html = (
        alignment_panel(table_audit(alignment=dataclasses.replace(found, **known)))
        .render()
        .partition("Definitions")[0]
    )
    axis, *drawings = re.findall(r'<svg viewBox[^>]*class="gap".*?</svg>', html)
    ticks = [float(x) for x in re.findall(r'<text x="([-\d.]+)"', axis)]
    marks = [float(x) for d in drawings for x in re.findall(r' (?:cx|x1|x2)="([-\d.]+)"', d)]
    assert len(drawings) == 3
    for kind in ("by-inputs", "random", "ring", "dot", "error"):
        assert sum(f'class="{kind}"' in drawing for drawing in drawings) == 3, kind
    # A mark just below the first tick has no tick of its own
    assert min(marks) >= min(ticks) - (ticks[1] - ticks[0]) / 2
    assert max(marks) <= max(ticks) + 0.1
    # The end of the axis is the most there can be, where gaps come near it
    assert (">1</text>" in axis) == (largest > 0.5)


def test_many_columns_are_cut():
    found = table_audit().alignment
    many = {
        name: np.tile(value, 12)
        for name, value in vars(found).items()
        if isinstance(value, np.ndarray)
    }
    wide = dataclasses.replace(found, **many, names=tuple(f"c{i}" for i in range(48)))
    text = Page(alignment_panel(table_audit(alignment=wide)).render()).text
    assert "8 columns with smaller gaps are in the JSON only." in text


def test_a_group_table_shows_shares_control_and_chance():
    page = Page(groups_panel(table_audit()).render())
    assert "samples of red blue green by chance" not in page.text
    assert "samples of red blue green grey" not in page.text  # neither samples nor landmarks
    assert "red 3 70 % ± 6 % 68 % 44 % blue : 20 % ± 6 %" in page.text
    assert "red ( 3 ) 70 % ( 68 )" in page.text
    assert "by chance 44 % 44 % 11 %" in page.text
    assert "1 of 2 groups have no landmark" in page.text
    assert "no group is known" in page.text


def test_a_group_of_one_sample_has_no_error():
    groups = table_audit().groups["colour"]
    alone = dataclasses.replace(groups, samples=np.array([3, 1, 0, 0]), stderr=np.zeros((4, 4)))
    text = Page(groups_panel(table_audit(groups={"colour": alone})).render()).text
    assert "red 3 70 % ± 0 % 68 %" in text
    assert "blue 1 55 % 60 %" in text


def test_same_group_share_is_the_mean_over_samples():
    groups = table_audit().groups["colour"]
    own, chance = same_group_share(groups)
    assert own == pytest.approx((3 * 0.7 + 2 * 0.55) / 5)
    assert chance == pytest.approx(4 / 9)
    empty = dataclasses.replace(groups, samples=np.zeros(4, dtype=int))
    assert np.isnan(same_group_share(empty)).all()


def test_too_many_groups_are_not_drawn():
    n = 30
    ones = np.ones(n, dtype=int)
    crowded = Groups(
        tuple(map(str, range(n))), ones, ones, *(np.eye(n) for _ in range(3)), ones / n
    )
    text = Page(groups_panel(table_audit(groups={"town": crowded})).render()).text
    assert "There are 30 groups; a table of pairs has at most 24." in text


def test_small_groups_are_grey_and_classes_have_prototypes():
    html = groups_panel(table_audit()).render()
    assert html.count("small-group") == 2
    groups = table_audit().groups["colour"]
    large = dataclasses.replace(groups, samples=np.array([10, 9, 0, 0]))
    assert groups_panel(table_audit(groups={"colour": large})).render().count("small-group") == 1
    by_label = dataclasses.replace(
        groups,
        categories=("cat", "dog", "hen", "owl"),
        by_inputs=groups.kernel_only + 0.01,
        random_weights=groups.kernel_only + 0.02,
    )
    panel = groups_panel(full_audit(groups={"label": by_label}))
    page = Page(panel.render())
    assert "by inputs random weights by chance" in page.text
    assert "first landmark of own group prototypes confused with" in page.text
    assert "75 %" in page.text
    assert panel.figures["classes"]["prototypes"] == [[100, 103], [101], []]
    assert panel.figures["classes"]["first_same_share"][0] == 0.75


def test_without_tables_the_panel_says_what_is_needed():
    assert "it needs labels or a column" in groups_panel(full_audit()).render()


def test_concepts_stand_beside_their_controls():
    panel = concepts_panel(table_audit())
    text = Page(panel.render()).text
    assert "old recognised 0.9" in text
    assert "noise no better than by chance" in text
    assert "nothing is scored" in text
    scores = table_audit().concepts.score[:5, 0]  # the last two rows are not audited
    assert panel.figures["mean_score"][0] == pytest.approx(scores.mean())
    assert "noise" not in panel.figures["landmarks"]


def test_carriers_are_the_landmarks_of_largest_score():
    audit = table_audit()
    found = concepts_panel(audit).figures["landmarks"]["old"]
    scores = audit.concepts.landmark_score[0]
    assert [one["row"] for one in found["towards"]] == [
        j for j in np.argsort(-scores) if scores[j] > 0
    ][:TOP_LANDMARKS]
    assert [one["row"] for one in found["away"]] == [
        j for j in np.argsort(scores) if scores[j] < 0
    ][:TOP_LANDMARKS]
    assert all(0 <= one["row"] < N_LANDMARKS for one in found["towards"])


def test_concepts_without_controls_are_still_shown():
    audit = table_audit()
    plain = dataclasses.replace(audit.concepts, trusted=None, controls={}, landmark_score=None)
    text = Page(concepts_panel(table_audit(concepts=plain)).render()).text
    assert "displace samples" not in text
    assert "noise recognised 0.52" in text
