"""Concepts found without labels: share, stability, controls, and the samples that show them."""

from __future__ import annotations

from typing import Any

import numpy as np

from krepes_ooc.rendering.data import AuditData, Audited, Landmarks
from krepes_ooc.rendering.drawing.markup import (
    Child,
    Markup,
    element,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.drawing.sample_view import SampleView, class_name, explained_rows
from krepes_ooc.rendering.drawing.sentence import percent
from krepes_ooc.rendering.overview import ColumnDifference, DiscoveredConcepts
from krepes_ooc.rendering.panels.panel import Panel, absent

KEY = "discovered"
TITLE = "Discovered concepts"
# Rows that stand in the page unasked; a line opens the others
UNFOLDED = 6
# With columns that differ a concept takes three lines
UNFOLDED_OF_TABLES = 4
MOST_PICTURES = 8
MOST_NAMES = 4
# Letters of a class before a small picture; the whole name is its title
CLASS_LETTERS = 8
CONTROLS = {"concepts": "concepts", "random": "random directions", "inputs": "k-means on inputs"}
FIGURES = {
    "average_precision": "average precision of the best class",
    "embedding_r_squared": "R² of the network's embedding from the concept alone",
    "view_agreement": "both views show the same concept",
}
VIEW_CONTROLS = {**CONTROLS, "chance": "chance"}


def discovered_panel(audit: AuditData) -> Panel:
    """The concepts by stability and share, the first ones unfolded."""
    found = audit.discovered
    if found is None:
        return absent(KEY, TITLE, "No concept was looked for: the stage discovery has not run.")
    if not found.names:
        return absent(KEY, TITLE, f"There are no concepts: {found.reason or 'none was found'}.")
    order = reading_order(found)
    head = _head(found)
    rows = [_row(audit, found, c) for c in order]
    count = UNFOLDED_OF_TABLES if any(found.differences) else UNFOLDED
    caption = "Discovered concepts"
    parts: list[Child] = [
        controls_table(found),
        table(head, rows[:count], caption=caption, class_="concepts"),
    ]
    rest = rows[count:]
    if rest:
        summary = element("summary", number(len(rest)), " more concepts")
        further = table(head, rest, caption="Further concepts", class_="concepts")
        parts.append(element("details", summary, further, class_="further"))
    return Panel(KEY, TITLE, _lead(found), join(parts), _figures(audit, found, order, len(rest)))


def reading_order(found: DiscoveredConcepts) -> list[int]:
    """Stable concepts first, each kind by descending share."""
    assert found.share is not None
    assert found.stable is not None
    return [int(c) for c in np.lexsort((-found.share, ~found.stable))]


def strongest(values: dict[str, float]) -> tuple[str, float] | None:
    """Control of the largest value among those of the concepts' figures."""
    controls = {key: value for key, value in values.items() if key != "concepts"}
    if not controls:
        return None
    key = max(controls, key=lambda name: controls[name])
    return VIEW_CONTROLS.get(key, key), controls[key]


def controls_table(found: DiscoveredConcepts) -> Markup | None:
    """Figures over all concepts beside those of the controls."""
    known = {key: values for key, values in found.figures.items() if values}
    if not known:
        return None
    names = [name for name in VIEW_CONTROLS if any(name in v for v in known.values())]
    rows: list[list[Child]] = [
        [
            FIGURES.get(key, key),
            *(number(known[key][n], digits=2) if n in known[key] else "" for n in names),
        ]
        for key in FIGURES
        if key in known
    ]
    head: list[Child] = ["over all concepts", *(VIEW_CONTROLS[name] for name in names)]
    return table(head, rows, caption="Concepts and their controls", class_="lines")


def _lead(found: DiscoveredConcepts) -> Markup:
    assert found.stable is not None
    return join(
        "Clusters of directions in the kernel's own space, found without labels. ",
        number(int(found.stable.sum())), " of ", number(len(found.names)),
        " are stable: found again on half of the samples with a cosine of at least ",
        number(found.stable_above), ". Unstable ones are grey.",
    )  # fmt: skip


def _head(found: DiscoveredConcepts) -> list[Child]:
    head: list[Child] = ["concept", "share", "stability", "views agree"]
    if _has_classes(found):
        head.append("best class (average precision)")
    if any(found.differences):
        head.append("columns that differ: concept (all samples)")
    if found.top_samples is not None:
        head.append("samples that show it most")
    return head


def _row(audit: AuditData, found: DiscoveredConcepts, c: int) -> list[Child]:
    assert found.share is not None
    assert found.stability is not None
    assert found.stable is not None
    assert found.view_agreement is not None
    name = user_text(found.names[c])
    row: list[Child] = [
        element("span", name, class_=None if found.stable[c] else "small-group"),
        percent(found.share[c]),
        number(found.stability[c], digits=2),
        percent(found.view_agreement[c]),
    ]
    if _has_classes(found):
        assert found.best_class is not None
        assert found.precision is not None
        words = class_name(int(found.best_class[c]), audit.classes)
        row.append(join(user_text(words, 24), " (", number(found.precision[c], digits=2), ")"))
    if any(found.differences):
        row.append([_difference(d) for d in found.differences[c]])
    if found.top_samples is not None:
        shown = [int(i) for i in found.top_samples[c] if i >= 0]
        row.append(_samples(audit, shown))
    return row


def _difference(d: ColumnDifference) -> Markup:
    """One column in words: the level's share or the mean, beside that of all samples."""
    show = percent if d.level else number
    named = join(
        user_text(d.column, 24), element("b", ": ", user_text(d.level, 24)) if d.level else None
    )
    values = join(" ", show(d.value), " (", show(d.overall), ")")
    return element("span", named, values, class_="differs")


def _samples(audit: AuditData, rows: list[int]) -> Markup | None:
    """Small links to the cards of some explained samples."""
    if audit.audited is None:
        return None
    view = SampleView(audit.audited, audit)
    explained = explained_rows(audit.audited)
    # Names take more room than pictures
    count = MOST_PICTURES if audit.audited.image is not None else MOST_NAMES
    return strip(view, [explained[i] for i in rows], count)


def strip(view: SampleView, rows: list[int], count: int = 8, *, with_class: bool = False) -> Markup:
    """Samples in a row: pictures, or names; audited ones link to their cards.

    Args:
        view: of the samples.
        rows: of the samples.
        count: how many are shown at most.
        with_class: whether the class of every sample stands before it.
    """
    samples = view.samples
    is_card = isinstance(samples, Audited)
    tiles: list[Child] = []
    for row in rows[:count]:
        inside = view.picture(row) if samples.image is not None else None
        title = f"{view.class_name(row)} {view.name(row)}".strip()
        shown = inside or user_text(view.name(row), 24)
        if is_card:
            shown = element("a", shown, href=f"#sample-{int(samples.sample_id[row])}", title=title)
        kind = "ring" if isinstance(samples, Landmarks) else None
        named = view.class_name(row) if with_class else ""
        badge = element("small", user_text(named, CLASS_LETTERS), class_="badge") if named else None
        tiles.append(element("li", badge, shown, class_=kind, title=None if is_card else title))
    return element("ol", tiles, class_="thumbs")


def _has_classes(found: DiscoveredConcepts) -> bool:
    return found.best_class is not None and bool((found.best_class >= 0).any())


def _figures(
    audit: AuditData, found: DiscoveredConcepts, order: list[int], folded: int
) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "names": list(found.names),
        "order": order,
        "folded": folded,
        "stable_above": found.stable_above,
        "stable_concepts": 0 if found.stable is None else int(found.stable.sum()),
        "concepts": len(found.names),
        "figures": {key: dict(values) for key, values in found.figures.items()},
        "differences": [[vars(d) for d in each] for each in found.differences],
    }
    for name in ("share", "stability", "stable", "view_agreement", "best_class", "precision"):
        figures[name] = getattr(found, name)
    if audit.audited is not None and found.top_samples is not None:
        explained = explained_rows(audit.audited)
        ids = audit.audited.sample_id
        figures["top_samples"] = [
            [int(ids[explained[i]]) for i in row if i >= 0] for row in found.top_samples
        ]
    return figures
