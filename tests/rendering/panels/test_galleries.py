"""Galleries of landmarks, and tables of rows beside each other."""

import dataclasses

import numpy as np
import pytest

from krepes_ooc.rendering.data import (
    Column,
    Landmarks,
    Samples,
)
from krepes_ooc.rendering.drawing.sample_view import (
    SampleView,
    agreement,
    cell,
    class_name,
    column_spans,
)
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.rendering.landmark_links import LandmarkLink
from krepes_ooc.rendering.panels.landmarks import landmarks_panel
from krepes_ooc.rendering.panels.row_table import row_table
from tests.rendering.samples import Page, full_audit, table_audit

# --- table rows ----------------------------------------------------------------------------------


def test_agreement_by_the_formula():
    columns = (Column("a"), Column("b", "category", ("x", "y")), Column("c"), Column("d"))
    spans = np.array([10.0, 1.0, 0.0, 2.0])
    one, other = np.array([1.0, 0, 5, np.nan]), np.array([3.0, 1, 5, 1])
    assert agreement(one, other, columns, spans).tolist() == [0.8, 0.0, 1.0, 0.0]
    assert agreement(one, one, columns, spans).tolist() == [1, 1, 1, 0]
    assert agreement(one, one + 100, columns, spans)[0] == 0


def test_spans_are_robust_and_skip_what_is_missing():
    audit = table_audit()
    both = np.concatenate([audit.landmarks.values, audit.audited.values])
    low, high = np.nanquantile(both[:, 0], [0.01, 0.99])
    assert column_spans(audit)[0] == pytest.approx(high - low)
    assert column_spans(audit)[2] == 0
    assert column_spans(full_audit(columns=(Column("a"),))).tolist() == [0]


@pytest.mark.parametrize(
    ("value", "column", "shown"),
    [
        (3.0, Column("a"), "3"),
        (1234.0, Column("a"), "1,234"),
        (0.12345, Column("a"), "0.1235"),
        (1.0, Column("a", "category", ("x", "y")), "<bdi>y</bdi>"),
        (7.0, Column("a", "category", ("x", "y")), "<bdi>code 7</bdi>"),
        (np.nan, Column("a"), '<span class="none">missing</span>'),
    ],
)
def test_cell(value, column, shown):
    assert cell(value, column) == shown


def beside(audit, mine, theirs, links, spans):
    """The first audited sample, with this row, beside some landmarks."""
    values = np.tile(mine, (len(audit.audited.sample_id), 1))
    audited = dataclasses.replace(audit.audited, values=values)
    return Explained(dataclasses.replace(audit, audited=audited, landmarks=theirs), 0, links, spans)


def test_agreeing_cells_are_marked():
    audit = table_audit()
    mine = np.array([40.0, 1.0, 1.0])
    theirs = dataclasses.replace(audit.landmarks, values=np.tile(mine, (9, 1)))
    theirs.values[1] = [90.0, 0.0, 2.0]
    links = [LandmarkLink(0, 1, 2.0, -1.0, 0.5), LandmarkLink(1, 2, 1.0, 1.0, 0.5)]
    drawn, _ = row_table(beside(audit, mine, theirs, links, np.array([10.0, 1.0, 0.0])))
    page = Page(drawn)
    cells = [td.get("class") for td in page.all("td") if td.get("class") != "own"][9 + 3 :]
    # One cell a column holds the lift
    cells = [cell for i, cell in enumerate(cells) if i % 3]
    # The attracting landmark, which differs everywhere, comes first.
    assert cells == [None, "agrees"] * 3
    assert [th["class"] for th in page.all("th") if "class" in th] == ["attract", "repel"]


def test_a_wide_table_keeps_columns_of_high_lift_and_audited_ones():
    columns = tuple(Column(f"c{i}") for i in range(20))
    audit = table_audit(columns=columns, alignment=None, audited_columns=("c0",))
    n = len(audit.audited.sample_id)
    # All samples agree in c1 to c9; in the others the explained sample differs from all
    mine = np.r_[np.zeros(10), np.full(10, 50.0)]
    values = np.zeros((n, 20))
    values[0] = mine
    audited = dataclasses.replace(audit.audited, values=values)
    audit = dataclasses.replace(audit, audited=audited)
    theirs = Landmarks(np.arange(9), values=np.tile(mine, (9, 1)))
    theirs.values[:, 0] = 30.0
    one = Explained(
        dataclasses.replace(audit, landmarks=theirs), 0, [LandmarkLink(0, 1, 1.0, 1.0, 1.0)],
        np.full(20, 20.0),
    )  # fmt: skip
    drawn, lift = row_table(one)
    # Of five explained samples one agrees with itself: lift 5; the audited column has 0
    assert lift == {**{f"c{i}": 5.0 for i in range(10, 20)}, "c0": 0.0}
    page = Page(drawn)
    assert "c0 audited" in page.text
    assert page.text.index("c10") < page.text.index("c19") < page.text.index("c0 audited")
    assert "9 further columns of smaller lift are left out." in page.text


# --- gallery -------------------------------------------------------------------------------------


def test_gallery_is_ordered_by_the_step_row():
    audit = full_audit()
    panel = landmarks_panel(audit)
    norms = np.linalg.norm(audit.newton.step, axis=1)
    sizes = [entry["size"] for entry in panel.figures["landmarks"]]
    assert sizes == pytest.approx(sorted(norms, reverse=True))
    assert [e["sample_id"] for e in panel.figures["landmarks"]] == (
        100 + np.argsort(-norms)
    ).tolist()


def test_gallery_without_a_step_falls_back_on_the_weight():
    audit = full_audit(newton=None)
    panel = landmarks_panel(audit)
    assert [e["weight"] for e in panel.figures["landmarks"]] == sorted(
        audit.landmarks.weight, reverse=True
    )
    assert "no step was computed" in panel.render()


def test_table_landmarks_are_a_table():
    page = Page(landmarks_panel(table_audit()).render())
    assert len(page.all("tr")) == 10
    assert not page.all("ol")


@pytest.mark.parametrize(("given", "shown"), [("", "#7"), ("7", "#7"), (" a ", "a"), ("8", "8")])
def test_a_name_that_is_only_the_position_is_shown_as_one(given, shown):
    samples = Samples(np.array([7]), sample_name=np.array([given]))
    assert SampleView(samples, full_audit()).name(0) == shown


def test_class_names():
    assert [class_name(code, ("a",)) for code in (-1, 0, 3)] == ["", "a", "class 3"]
