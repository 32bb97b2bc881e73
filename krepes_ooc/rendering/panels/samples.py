"""One card per audited sample: which landmarks attract its embedding and which repel it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.line_chart import bar
from krepes_ooc.rendering.drawing.markup import MINUS, Child, Markup, element, join, number
from krepes_ooc.rendering.drawing.sample_view import class_name
from krepes_ooc.rendering.explanation import Explained, explain_rows
from krepes_ooc.rendering.landmark_links import NOTHING_REPELS
from krepes_ooc.rendering.panels.panel import Panel, absent
from krepes_ooc.rendering.panels.row_table import row_table
from krepes_ooc.rendering.search_data import embed_search_index, search_index

# Cards that stand in the page unasked; a line opens the others.
UNFOLDED = 8
UNFOLDED_ROWS = 3
KEY = "samples"
TITLE = "Sample by sample"
# The measure that ranks, in one phrase for the legend
MEASURES = {
    "is": "the paper's influence score, |kernel| times the length of the landmark's step row",
    "aligned": "kernel times the cosine between the step's changes to sample and landmark",
    "unique": "the leave-one-out kernel: what this landmark alone adds",
    "kernel": "the kernel alone (a control)",
}
HEADINGS = {"attract": "+ attracting", "repel": f"{MINUS} repelling", "neutral": "strongest"}


def samples_panel(audit: AuditData) -> Panel:
    """Cards of the first audited samples."""
    if audit.audited is None or audit.landmarks is None or audit.influence is None:
        return absent(KEY, TITLE, "No influence was computed, so no sample is explained here.")
    # Samples that fit probes are not explained
    role = audit.audited.role
    chosen = np.arange(len(audit.audited.sample_id)) if role is None else np.flatnonzero(role == 0)
    if not audit.cards or not len(chosen):
        return absent(KEY, TITLE, "No sample was chosen to be shown.")
    samples = explain_rows(audit, [int(row) for row in chosen])
    cards = [_card(one, place) for place, one in enumerate(samples[: max(0, audit.cards)])]
    # Every explained sample can be searched, cards or not
    index = search_index(audit, samples)
    measure = audit.influence.measure
    lead = join(
        "The landmarks that weigh most on a sample's embedding. ",
        element("b", "Attracting", class_="attract"), " ones pull it their way, ",
        element("b", "repelling", class_="repel"), " ones push it off. Shown are ",
        number(len(cards)), " of ", number(len(chosen)), " audited samples.",
    )  # fmt: skip
    figures = {
        "measure": measure,
        "shown": len(cards),
        "total": len(chosen),
        "samples": [figures for _, figures in cards],
        "deck": index,
    }
    # The script fills the empty elements; without it they stay empty
    legend = _legend(MEASURES.get(measure, measure), table=audit.audited.values is not None)
    body = join(
        legend,
        search_form(audit, index),
        element("div", _folded([card for card, _ in cards]), id="cards"),
        element("div", class_="cards", id="found"),
        element("button", "Show more", id="more", type="button", hidden=""),
        embed_search_index(index, audit, samples),
    )
    return Panel(KEY, TITLE, lead, body, figures)


def _folded(cards: list[Markup]) -> Markup:
    """The first cards, and the others behind one line."""
    # A page of cards would hide the panels behind it
    rest = len(cards) - UNFOLDED
    if rest <= 0:
        return element("div", cards, class_="cards")
    return join(
        element("div", cards[:UNFOLDED], class_="cards"),
        element(
            "details",
            element("summary", number(rest), " more samples" if rest > 1 else " more sample"),
            element("div", cards[UNFOLDED:], class_="cards"),
            class_="further",
        ),
    )


def search_form(audit: AuditData, index: dict[str, Any]) -> Markup:
    """Search over all audited samples; hidden where no script runs."""
    # Options for what occurs among the samples; a field without options is left out
    codes = sorted({sample["label"] for sample in index["samples"]} - {-1})
    labels = [(str(code), class_name(code, audit.classes)) for code in codes]
    signs = [("attract", "attracting ones ranked"), ("repel", "repelling ones ranked")]
    # Values are matched by column number, names may repeat
    columns = [(str(c), column.name) for c, column in enumerate(audit.columns)]
    return element(
        "form",
        _field("number or name", element("input", name="query", type="search", size=18)),
        _field("class", _select("label", "any", labels)) if labels else _hidden("label"),
        _field("landmarks", _select("pull", "any", signs)),
        _field("column", _select("column", "any", columns)) if columns else None,
        _field("value", element("input", name="value", size=14)) if columns else None,
        element("button", "Clear", type="reset"),
        element("output", id="told", aria_live="polite"),
        id="find",
        class_="find",
        hidden="",
        role="search",
        aria_label="Search the audited samples",
    )


def _field(words: str, control: Markup) -> Markup:
    return element("label", element("span", words), control)


def _hidden(name: str) -> Markup:
    return element("input", name=name, type="hidden", value="")


def _select(name: str, empty: str, options: list[tuple[str, str]]) -> Markup:
    shown = [element("option", words[:60], value=value) for value, words in options]
    return element("select", element("option", empty, value=""), shown, name=name)


def _card(explained: Explained, place: int) -> tuple[Markup, dict[str, Any]]:
    figures = explained.record()
    anchor = f"sample-{explained.row}"
    title = element("h3", explained.sample.caption(explained.row), id=anchor)
    description = _description(explained)
    picture = explained.sample.picture(explained.row)
    # Table rows: the sample beside its landmarks
    if picture is None and explained.agrees is not None:
        head = join(title, element("span", description, class_="quiet"))
        # An empty attribute is a set one
        unfolded = "" if place < UNFOLDED_ROWS else None
        main = element("details", element("summary", head), row_table(explained), open=unfolded)
        return element("article", main, class_="card rows", aria_labelledby=anchor), figures
    # Pictures: one strip for each sign
    strips = [_strip(sign, explained) for sign in HEADINGS]
    head = element(
        "header", picture, element("div", title, element("p", description, class_="quiet"))
    )
    main = element("div", strips, class_="links")
    return element("article", head, main, class_="card", aria_labelledby=anchor), figures


def _description(explained: Explained) -> Child:
    ranked = len(explained.links)
    same = explained.same_class
    counts = explained.counts
    if not ranked:
        return "No landmark weighs on it."
    parts: list[Child] = []
    # Without labels there is no class to share
    if same is not None:
        parts = [element("span", number(same), " of ", number(ranked), " share its class"), " "]
    if sum(counts.values()):
        attract, repel = number(counts["attract"]), number(counts["repel"])
        parts.append(element("span", attract, " attract, ", repel, " repel"))
    if explained.repelling_only:
        parts += [" ", element("span", number(len(explained.repelling_only)), " more push it away")]
    return join(parts)


def _strip(kind: str, explained: Explained) -> Markup | None:
    heading = element("h4", HEADINGS[kind], class_=kind)
    if kind == "repel" and explained.nothing_repels:
        none = element("p", NOTHING_REPELS, class_="quiet")
        return element("div", heading, none, class_="pull")
    # Ranked landmarks of this sign, then those outside the ranking
    chosen = [link for link in explained.displayed if link.kind == kind]
    if not chosen:
        return None
    landmarks = explained.landmarks
    label = explained.sample.code(explained.row)
    # Landmarks outside the ranking have no score, so bars of repelling ones compare contributions
    name = "contribution" if kind == "repel" else "score"
    sizes = [abs(getattr(link, name)) for link in explained.displayed]
    # A card of zeros has empty bars
    most = max(size for size in sizes if math.isfinite(size)) or 1.0
    tiles = [
        element(
            "li",
            landmarks.picture(link.row),
            landmarks.caption(link.row, label),
            bar(abs(getattr(link, name)) / most, kind),
            link.describe(),
        )
        for link in chosen
    ]
    return element("div", heading, element("ol", tiles, class_="strip"), class_="pull")


def _legend(measure: str, table: bool) -> Markup:
    return element(
        "p",
        element("b", "score"), f" ranks the landmarks: {measure}; bars compare it within a card. ",
        element("b", "pull"), " is the signed share along the sample's own embedding. ",
        element("b", "k"), " is the kernel value. ",
        "Repelling are the ranked landmarks with a pull below 0, and those that push most of all, ",
        "which have no score; their bars compare the pull. ",
        "A number behind # is a sample's position in the data.",
        join(" ", element("span", "Marked", class_="agrees"), " cells agree with the sample's own.")
        if table else None,
        class_="legend",
    )  # fmt: skip
