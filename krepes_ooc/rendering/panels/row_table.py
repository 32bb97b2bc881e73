"""A sample from a table beside its landmarks: one line per column, agreeing cells marked."""

from __future__ import annotations

from collections.abc import Sequence

from krepes_ooc.rendering.data import Column
from krepes_ooc.rendering.drawing.markup import Child, Markup, element, join, number, user_text
from krepes_ooc.rendering.drawing.sample_view import (
    AGREES_FROM,
    NAME_LIMIT,
    SampleView,
    cell,
    plain_cell,
)
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.rendering.landmark_links import MEANINGS, NOTHING_REPELS, SIGNS, LandmarkLink
from krepes_ooc.rendering.lift import card_columns, column_lift

LIFT = (
    "lift: share of the landmarks that agree in the column, over the share of all audited samples "
    "that do"
)


def row_table(explained: Explained) -> tuple[Markup, dict[str, float]]:
    """A sample's table row beside the rows of its landmarks, attracting ones first; its lifts."""
    columns = explained.audit.columns
    values = explained.landmarks.samples.values
    assert explained.sample.samples.values is not None
    assert explained.agreement is not None
    assert values is not None
    places = [place for place, _ in explained.drawn]
    shown = [link for _, link in explained.drawn]
    landmark_values = values[[link.row for link in shown]].reshape(len(shown), len(columns))
    agrees = explained.agreement[places]
    # Columns in which the agreement is more than the data give, and audited ones
    lift = column_lift(explained, places)
    chosen = card_columns(explained.audit, lift)
    body = [
        _line(
            explained,
            c,
            float(lift[c]),
            [
                _cell(other[c], columns[c], bool(agree >= AGREES_FROM))
                for other, agree in zip(landmark_values, agrees[:, c], strict=True)
            ],
        )
        for c in chosen
    ]
    head = _head(shown, explained.landmarks)
    table = element("table", head, element("tbody", body), class_="beside")
    n_further = len(columns) - len(chosen)
    further = "column of smaller lift is" if n_further == 1 else "columns of smaller lift are"
    note = f"{n_further} further {further} left out." if n_further else None
    drawn = join(
        element(
            "div",
            table,
            class_="scroll",
            tabindex="0",
            role="region",
            aria_label="Its row beside the rows of its landmarks",
        ),
        element("p", note, class_="quiet") if note else None,
        element("p", NOTHING_REPELS, class_="quiet") if explained.nothing_repels else None,
    )
    return drawn, {columns[c].name: float(lift[c]) for c in chosen}


def _line(explained: Explained, c: int, lift: float, cells: list[Markup]) -> Markup:
    """One column of the table: its lift, the sample's cell, and those of the landmarks."""
    column = explained.audit.columns[c]
    values = explained.sample.samples.values
    assert values is not None
    value = values[explained.row, c]
    is_audited = column.name in explained.audit.audited_columns
    head = element(
        "th",
        user_text(column.name, NAME_LIMIT),
        element("small", " audited") if is_audited else None,
        scope="row",
    )
    title = plain_cell(value, column)
    sample_cell = element("td", cell(value, column), class_="own", title=title)
    return element("tr", head, element("td", number(lift, digits=2)), sample_cell, cells)


def _cell(value: float, column: Column, agrees: bool) -> Markup:
    words = cell(value, column)
    title = plain_cell(value, column)
    if not agrees:
        return element("td", words, title=title)
    # The mark is a colour; screen readers get a word
    marked = element("span", " agrees", class_="unseen")
    return element("td", words, marked, class_="agrees", title=title)


def _head(shown: Sequence[LandmarkLink], view: SampleView) -> Markup:
    headings = [
        element(
            "th",
            element("span", SIGNS[link.kind], class_="sign") if SIGNS[link.kind] else None,
            view.caption(link.row),
            scope="col",
            class_=link.kind,
        )
        for link in shown
    ]
    lines: list[Child] = []
    # Figures that any landmark has, in their order
    figures = [dict(link.figures()) for link in shown]
    for name in dict.fromkeys(name for known in figures for name in known):
        cells = [element("td", known.get(name)) for known in figures]
        lines.append(
            element(
                "tr",
                element("th", name, scope="row", title=MEANINGS[name]),
                element("td"),
                element("td"),
                cells,
                class_="figures",
            )
        )
    first = element(
        "tr",
        element("th", "column", scope="col"),
        element("th", "lift", scope="col", title=LIFT),
        element("th", "this sample", scope="col"),
        headings,
    )
    return element("thead", first, lines)
