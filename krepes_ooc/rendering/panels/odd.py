"""Odd samples: novel ones, near duplicates, mixed ones, and landmarks without others near them."""

from __future__ import annotations

from typing import Any

from krepes_ooc.rendering.data import AuditData, OddSamples
from krepes_ooc.rendering.drawing.markup import (
    Child,
    Markup,
    element,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.drawing.sample_view import (
    NAME_LIMIT,
    SampleView,
    cell,
    explained_rows,
    plain_cell,
)
from krepes_ooc.rendering.overview import OddTable
from krepes_ooc.rendering.panels.panel import Panel, absent

KEY = "odd"
TITLE = "Odd samples"
# Columns of a table row that are shown, and lines of a table
MAX_COLUMNS = 4
MAX_ROWS = 4
# A pair takes two lines
MAX_PAIRS = 2
LEAD = "Look at these first for errors in the data. The full tables are in the store examples."
# Key, heading, and the name of the figure with its meaning
ODD_TABLES = {
    "novel": (
        "Novel samples",
        "closeness",
        "mean of the ten largest kernel values; small is novel",
    ),
    "copy": ("Near duplicates", "ratio", "difference of inputs, over that to the fifth nearest"),
    "duplicate": (
        "Near duplicates",
        "ratio",
        "distance in the network's embedding, over that to the fifth nearest",
    ),
    "mixed": ("Mixed samples", "mixing", "share of the weights outside the main class or concept"),
    "lonely": ("Isolated landmarks", "closeness", "to other landmarks; they explain themselves"),
}


def odd_panel(audit: AuditData) -> Panel:
    """A short list of every kind."""
    odd = audit.odd
    if odd is None or not any(len(table.rows) for table in odd.tables.values()):
        hidden = "This page shows no sample."
        return absent(KEY, TITLE, hidden if audit.hidden else "No sample was looked at.")
    view = SampleView(odd.samples, audit)
    cards = _cards(audit)
    parts = [_part(view, key, odd.tables[key], cards) for key in ODD_TABLES if key in odd.tables]
    figures = {key: _figures(odd, key) for key in ODD_TABLES if key in odd.tables}
    return Panel(KEY, TITLE, LEAD, element("div", parts, class_="odd"), figures)


def _cards(audit: AuditData) -> set[int]:
    """Positions in the source of the samples that have a card."""
    if audit.audited is None or audit.influence is None:
        return set()
    return {int(audit.audited.sample_id[row]) for row in explained_rows(audit.audited)}


def _figures(odd: OddSamples, key: str) -> dict[str, Any]:
    found = odd.tables[key]
    ids = odd.samples.sample_id
    return {
        "sample_id": [[int(ids[i]) for i in row] for row in found.rows],
        "values": found.values,
    }


def _part(view: SampleView, key: str, found: OddTable, cards: set[int]) -> Markup:
    title, figure, meaning = ODD_TABLES[key]
    lines = [
        _line(view, row.tolist(), value, cards)
        for row, value in zip(found.rows, found.values, strict=True)
    ]
    if view.samples.values is not None and view.samples.image is None:
        inside = _rows(view, found, title, figure, cards)
    else:
        inside = element("ol", lines, class_="thumbs odd-list")
    if not len(found.rows):
        inside = element("p", "None.", class_="quiet")
    words = element("p", f"{figure}: {meaning}", class_="quiet")
    return element("div", element("h3", title), words, inside)


def _line(view: SampleView, rows: list[int], value: Any, cards: set[int]) -> Markup:
    shown = [_link(view, row, cards) for row in rows]
    return element("li", shown, element("small", number(value, digits=2)))


def _link(view: SampleView, row: int, cards: set[int]) -> Markup:
    """A sample, as a link to its card if it has one."""
    title = f"{view.class_name(row)} {view.name(row)}".strip()
    position = int(view.samples.sample_id[row])
    inside = view.picture(row) or user_text(title, 24)
    if position in cards:
        return element("a", inside, href=f"#sample-{position}", title=title)
    return element("span", inside, title=title)


def _rows(view: SampleView, found: OddTable, title: str, figure: str, cards: set[int]) -> Markup:
    """Table rows: name, figure, audited columns and the first others; both rows of a pair."""
    values = view.samples.values
    assert values is not None
    audited = view.audit.audited_columns
    known = sorted(enumerate(view.audit.columns), key=lambda pair: pair[1].name not in audited)
    chosen = [c for c, _ in known[:MAX_COLUMNS]]
    columns = [view.audit.columns[c] for c in chosen]
    lines: list[list[Child]] = []
    most = MAX_PAIRS if found.rows.shape[1] > 1 else MAX_ROWS
    for rows, value in zip(found.rows[:most].tolist(), found.values, strict=False):
        for order, row in enumerate(rows):
            cells = [
                element("span", cell(v, column), title=plain_cell(v, column))
                for v, column in zip(values[row][chosen], columns, strict=True)
            ]
            # The second row of a pair stands under the first, without a line between them
            first = order == 0
            shown = number(value, digits=2) if first else ""
            name = _name(view, row, cards)
            if first and len(rows) > 1:
                name = element("span", name, class_="first-of-pair")
            lines.append([name if first else join("and ", name), shown, *cells])
    head: list[Child] = ["sample", figure]
    head += [element("span", user_text(c.name, NAME_LIMIT), title=c.name) for c in columns]
    return table(head, lines, caption=title, class_="lines dense")


def _name(view: SampleView, row: int, cards: set[int]) -> Markup:
    position = int(view.samples.sample_id[row])
    name = user_text(view.name(row), 24)
    if position in cards:
        return element("a", name, href=f"#sample-{position}")
    return element("span", name)
