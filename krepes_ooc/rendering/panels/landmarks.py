"""The landmarks themselves, by the length of their step row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData, Landmarks
from krepes_ooc.rendering.drawing.line_chart import bar
from krepes_ooc.rendering.drawing.markup import (
    Child,
    Markup,
    element,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.drawing.sample_view import LandmarkSamples, SampleView, cell
from krepes_ooc.rendering.panels.panel import Panel, absent

# Landmarks of the gallery, and columns of a landmark row
MAX_SHOWN = 24
MAX_COLUMNS = 6


@dataclass(frozen=True)
class Entry:
    """One landmark of a gallery: its row, size, weight, and size as a share of the largest."""

    row: int
    size: float
    weight: float | None
    share: float
    kind: str = "neutral"


def landmarks_panel(audit: AuditData) -> Panel:
    """The gallery: landmarks with the longest step rows; by weight if no step was computed."""
    key = "landmarks"
    title = "Landmarks"
    if audit.landmarks is None or not len(audit.landmarks.sample_id):
        return absent(key, title, "No landmarks were chosen.")
    landmarks = audit.landmarks
    sizes, words = _sizes(audit, landmarks)
    # One tile a landmark sample, whatever the number of its views
    rows = LandmarkSamples(landmarks).first_row
    # Stable, so that ties keep the order of the landmarks
    order = [int(i) for i in np.argsort(-sizes, kind="stable")[:MAX_SHOWN]]
    # Of equal zeros no bar is filled
    most = float(sizes[order[0]]) or 1.0
    weights = None if landmarks.weight is None else landmarks.weight[rows]
    entries = [
        Entry(
            int(rows[place]),
            float(sizes[place]),
            None if weights is None else weights[place].item(),
            float(sizes[place]) / most,
        )
        for place in order
    ]
    view = SampleView(landmarks, audit)
    records = [{**view.record(e.row), "size": e.size, "weight": e.weight} for e in entries]
    lead = join(
        "The ", number(len(order)), " of ", number(len(rows)),
        f" landmarks {words}; the bar compares them.",
    )  # fmt: skip
    figures = {"ranked_by": words, "shown": len(order), "total": len(rows), "landmarks": records}
    caption = "Landmarks and the beginning of their rows"
    return Panel(key, title, lead, gallery(view, entries, caption), figures)


def gallery(view: SampleView, entries: list[Entry], caption: str, measure: str = "size") -> Markup:
    """Landmarks as tiles if they are pictures or texts, as lines of a table if they are rows.

    Args:
        view: pictures and names.
        entries: in the order in which they are shown.
        caption: of the table.
        measure: name of the number that orders them.
    """
    # Pictures or texts as tiles, table rows as lines
    if view.samples.values is None or view.picture(entries[0].row) is not None:
        tiles = [_tile(view, entry, measure) for entry in entries]
        return element("ol", tiles, class_="gallery")
    head: list[Child] = ["landmark", measure]
    head += ["weight"] if entries[0].weight is not None else []
    head += [user_text(column.name, 24) for column in view.audit.columns[:MAX_COLUMNS]]
    lines = [_line(view, entry) for entry in entries]
    return table(head, lines, caption=caption, class_="lines")


def _sizes(audit: AuditData, landmarks: Landmarks) -> tuple[Array, str]:
    samples = LandmarkSamples(landmarks)
    if audit.newton is not None and audit.newton.step is not None:
        # |dA_l| of a sample with several views: the root of their summed squares
        squares = (audit.newton.step**2).sum(axis=1)
        return np.sqrt(samples.total(squares)), "that the step moves most (length of the step row)"
    if landmarks.weight is not None:
        weight = np.asarray(landmarks.weight[samples.first_row], dtype=np.float64)
        return weight, "nearest to most samples (no step was computed)"
    return np.zeros(len(samples.first_row)), "chosen first (neither step nor weight is known)"


def _tile(view: SampleView, entry: Entry, measure: str) -> Markup:
    return element(
        "li",
        view.picture(entry.row),
        view.caption(entry.row),
        bar(entry.share, entry.kind),
        element(
            "dl",
            element("div", element("dt", measure), element("dd", number(entry.size))),
            element("div", element("dt", "weight"), element("dd", number(entry.weight)))
            if entry.weight is not None
            else None,
        ),
    )


def _line(view: SampleView, entry: Entry) -> list[Child]:
    columns = view.audit.columns[:MAX_COLUMNS]
    values = view.samples.values
    cells = [] if values is None else list(values[entry.row])
    return [
        view.caption(entry.row),
        join(number(entry.size), bar(entry.share, entry.kind)),
        *([number(entry.weight)] if entry.weight is not None else []),
        *(cell(value, column) for value, column in zip(cells, columns, strict=False)),
    ]
