"""A sample from a table beside its landmarks: one line per column, agreeing cells marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from krepes_ooc.rendering.data import Array, Column
from krepes_ooc.rendering.drawing.markup import Child, Markup, element, join, user_text
from krepes_ooc.rendering.drawing.sample_view import (
    AGREES_FROM,
    NAME_LIMIT,
    SampleView,
    cell,
    plain_cell,
)
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.rendering.landmark_links import NOTHING_REPELS, SIGNS, LandmarkLink

# What fits beside each other without scrolling on a wide screen
MAX_COLUMNS = 12
MAX_LANDMARKS = 8
MAX_REPELLING = 2


def row_table(explained: Explained) -> Markup:
    """A sample's table row beside the rows of its landmarks, attracting ones first."""
    columns = explained.audit.columns
    values = explained.landmarks.samples.values
    assert explained.sample.samples.values is not None
    assert explained.agreement is not None
    assert values is not None
    sample_values = explained.sample.samples.values[explained.row]
    # A stable sort: attracting landmarks first, each side by rank
    pairs = sorted(
        explained.beside(MAX_LANDMARKS, MAX_REPELLING), key=lambda pair: _repels(pair[1])
    )
    places = [place for place, _ in pairs]
    shown = [link for _, link in pairs]
    landmark_values = values[[link.row for link in shown]].reshape(len(shown), len(columns))
    agrees = explained.agreement[places]
    # Too many columns: those in which the landmarks agree most
    chosen = _most_agreeing(agrees)
    body = [
        element(
            "tr",
            element("th", user_text(columns[c].name, NAME_LIMIT), scope="row"),
            element(
                "td",
                cell(sample_values[c], columns[c]),
                class_="own",
                title=plain_cell(sample_values[c], columns[c]),
            ),
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
    further = "column, in which they agree less, is" if n_further == 1 else None
    further = further or "columns, in which they agree less, are"
    note = f"{n_further} further {further} left out." if n_further else None
    return join(
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


def _repels(link: LandmarkLink) -> bool:
    return link.kind == "repel"


def _most_agreeing(agrees: Array) -> list[int]:
    """The columns to show, in their own order; of many, those in which landmarks agree most."""
    # Chosen by agreement, shown in the order of the table
    means = agrees.mean(axis=0) if len(agrees) else np.zeros(agrees.shape[1])
    return sorted(int(c) for c in np.argsort(-means, kind="stable")[:MAX_COLUMNS])


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
            element("tr", element("th", name, scope="row"), element("td"), cells, class_="figures")
        )
    first = element(
        "tr",
        element("th", "column", scope="col"),
        element("th", "this sample", scope="col"),
        headings,
    )
    return element("thead", first, lines)
