"""One card per audited sample: which landmarks attract its embedding and which repel it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.line_chart import bar
from krepes_ooc.rendering.drawing.markup import (
    MINUS,
    Child,
    Markup,
    element,
    join,
    number,
    user_text,
)
from krepes_ooc.rendering.drawing.sample_view import class_name
from krepes_ooc.rendering.explanation import Explained, explain_rows
from krepes_ooc.rendering.landmark_links import MEANINGS, NOTHING_NEAR, NOTHING_REPELS
from krepes_ooc.rendering.panels.panel import Panel, absent
from krepes_ooc.rendering.panels.row_table import LIFT, row_table
from krepes_ooc.rendering.search_data import embed_search_index, search_index

# Cards that stand in the page unasked; a line opens the others.
UNFOLDED = 6
KEY = "samples"
TITLE = "Samples"
# Figures of a card: key in the search index, name, meaning
FIGURES = {
    "top": ("score", "score of the first landmark"),
    "agree": ("agreement", "share of landmarks of its class, or of columns that agree"),
    "near": ("closeness", "mean of the ten largest kernel values; small is novel"),
    "mix": ("mixing", "share of the weights outside the main class or concept"),
}
# Orders: value of the form, words
ORDERS = (
    ("top", "highest score first"),
    ("agree", "least agreement first"),
    ("near", "most novel first"),
    ("mix", "most mixed first"),
)
# The measure that ranks, in one phrase for the legend
MEASURES = {
    "is": "the paper's influence score, |kernel| times the length of the landmark's step row",
    "aligned": "kernel times the cosine between the step's changes to sample and landmark",
    "unique": "the leave-one-out kernel: what this landmark alone adds",
    "kernel": "plain kernel (a control)",
}
# Concepts of a card, and the letters of a name
MOST_CONCEPTS = 3
MOST_TITLE = 32
DRAWN = "landmarks on this card: the first ranked ones, and the most repelling ones"
CONCEPTS = "how far the step moves it along a concept, summed over all landmarks"
HEADINGS = {"attract": "+ attracting", "repel": f"{MINUS} repelling", "neutral": "strongest"}


def samples_panel(audit: AuditData) -> Panel:
    """Cards of the first audited samples."""
    if audit.audited is None or audit.landmarks is None or audit.influence is None:
        hidden = "This page shows no sample: report.samples is hidden."
        missing = "No influence was computed, so no sample is explained here."
        return absent(KEY, TITLE, hidden if audit.hidden else missing)
    # Samples that fit probes are not explained
    role = audit.audited.role
    chosen = np.arange(len(audit.audited.sample_id)) if role is None else np.flatnonzero(role == 0)
    if not audit.cards or not len(chosen):
        return absent(KEY, TITLE, "No sample was chosen to be shown.")
    rows = [int(row) for row in chosen]
    concepts = [*audit.sample_concepts[: len(rows)]]
    # Samples without a card have none.
    samples = explain_rows(audit, rows, [*concepts, *[None] * (len(rows) - len(concepts))])
    # Every explained sample can be searched, cards or not
    index = {**search_index(audit, samples), "meanings": _meanings()}
    count = max(0, audit.cards)
    cards = [
        _card(one, known)
        for one, known in zip(samples[:count], index["samples"][:count], strict=True)
    ]
    measure = audit.influence.measure
    lead = join(
        "The landmarks with most influence on each of ", number(len(chosen)), " audited samples: ",
        element("b", "attracting", class_="attract"), " (positive contribution) and ",
        element("b", "repelling", class_="repel"), " (negative). ",
        number(len(cards)), " cards stand here; sort, search and links reach all.",
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


def _meanings() -> dict[str, str]:
    """Meanings of the figures of a card, by their key in the search index."""
    of_card = {key: meaning for key, (_, meaning) in FIGURES.items()}
    return {**of_card, **MEANINGS, "lift": LIFT, "drawn": DRAWN}


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
    signs = [("attract", "attracting in the ranking"), ("repel", "repelling in the ranking")]
    orders = [(key, words) for key, words in ORDERS if _is_known(index, key)]
    # Values are matched by column number, names may repeat
    columns = [(str(c), column.name) for c, column in enumerate(audit.columns)]
    return element(
        "form",
        _field("order", _select("order", "as stored", orders)),
        _field("number or name", element("input", name="query", type="search", size=18)),
        _field("class", _select("label", "any", labels)) if labels else _hidden("label"),
        _field("landmarks", _select("sign", "any", signs)),
        _field("column", _select("column", "any", columns)) if columns else None,
        _field("value", element("input", name="value", size=14)) if columns else None,
        element("button", "Clear", type="reset"),
        element("output", id="matched", aria_live="polite"),
        id="find",
        class_="find",
        hidden="",
        role="search",
        aria_label="Search the audited samples",
    )


def _is_known(index: dict[str, Any], key: str) -> bool:
    return any(sample.get(key) is not None for sample in index["samples"])


def _field(words: str, control: Markup) -> Markup:
    return element("label", element("span", words), control)


def _hidden(name: str) -> Markup:
    return element("input", name=name, type="hidden", value="")


def _select(name: str, empty: str, options: list[tuple[str, str]]) -> Markup:
    shown = [element("option", words[:60], value=value) for value, words in options]
    return element("select", element("option", empty, value=""), shown, name=name)


def _card(explained: Explained, index: dict[str, Any]) -> tuple[Markup, dict[str, Any]]:
    """One closed card: its summary in one line, its landmarks behind it."""
    figures = {**explained.record(), **{name: index[name] for name in FIGURES if name in index}}
    position = int(explained.sample.samples.sample_id[explained.row])
    anchor = f"sample-{position}"
    picture = explained.sample.picture(explained.row)
    summary = element(
        "summary",
        picture,
        element("h3", explained.sample.caption(explained.row)),
        element("span", _description(explained), class_="quiet"),
        element("span", _figures(index), class_="quiet figs"),
    )
    link = element("a", "link", href=f"#{anchor}", class_="permalink", title="Link to this card")
    figures["drawn"] = explained.drawn_counts
    if explained.is_table_row:
        main, lift = row_table(explained)
        figures["lift"] = lift
    else:
        main = element("div", [_strip(sign, explained) for sign in HEADINGS], class_="links")
    card = element(
        "details",
        [summary, _concepts(explained), main, link],
        class_="card",
        id=anchor,
        data_id=position,
    )
    return card, figures


def _concepts(explained: Explained) -> Markup | None:
    """The concept that it shows, and those along which its landmarks move it furthest."""
    if explained.concepts is None or not explained.concepts.scores:
        return None
    parts: list[Child] = []
    for each in explained.concepts.first(MOST_CONCEPTS):
        before = "; " if parts else "Concepts: "
        parts += [before, "shows " if each.shows else "", user_text(each.title, MOST_TITLE), " "]
        parts.append(number(each.score, signed=True, digits=2))
    return element("p", parts, class_="quiet", title=CONCEPTS)


def _figures(index: dict[str, Any]) -> list[Markup]:
    """Figures that cards are sorted by."""
    return [
        element("span", name, " ", number(index[key], digits=2), " ", title=meaning)
        for key, (name, meaning) in FIGURES.items()
        if index.get(key) is not None
    ]


def _description(explained: Explained) -> Child:
    ranked = len(explained.links)
    same = explained.same_class
    counts = explained.drawn_counts
    if not ranked:
        return "No landmark has influence on it."
    if explained.is_far:
        return NOTHING_NEAR
    parts: list[Child] = []
    # What the card draws, ranked or not
    if sum(counts.values()):
        attract, repel = number(counts["attract"]), number(counts["repel"])
        parts.append(element("span", attract, " attract, ", repel, " repel", title=DRAWN))
    # Without labels there is no class to share
    if same is not None:
        shared = [number(same), " of the ", number(ranked), " ranked share its class"]
        parts += [" ", element("span", shared)]
    return join(parts)


def _strip(kind: str, explained: Explained) -> Markup | None:
    heading = element("h4", HEADINGS[kind], class_=kind)
    if kind == "repel" and explained.nothing_repels:
        none = element("p", NOTHING_REPELS, class_="quiet")
        return element("div", heading, none, class_="contributions")
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
    return element("div", heading, element("ol", tiles, class_="strip"), class_="contributions")


def _legend(measure: str, table: bool) -> Markup:
    return element(
        "details",
        element("summary", "What the figures of a card mean"),
        element(
            "p",
            element("b", "score"), f" ranks the landmarks: {measure}; bars compare it within a "
            "card. ",
            element("b", "contribution"), " is the signed contribution, the projection of the "
            "landmark's term on the sample's own embedding. ",
            element("b", "k"), " is the kernel value. The most repelling landmarks are added even "
            "if they are not ranked; they have no score, and bars of repelling ones compare the "
            "contribution. Numbers behind concepts are concept scores: displacement of the sample "
            "along the concept by the step, summed over all landmarks. A number behind # is a "
            "sample's position in the data.",
            join(
                " ", element("b", "lift"), " is the share of landmarks that agree in a column over "
                "the share of all audited samples that do. ",
                element("span", "Marked", class_="agrees"), " cells agree with the sample's own.",
            )
            if table else None,
            class_="legend",
        ),
        class_="about-cards",
    )  # fmt: skip
