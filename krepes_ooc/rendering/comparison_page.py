"""The page of a comparison: audits, figures, similarity, and what changed; self-contained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from krepes_ooc.rendering.comparison import (
    FIRST,
    RELATIONS,
    SPACES,
    ChangedSample,
    Comparison,
    ConceptMatches,
    Difference,
    GroupDifferences,
    PairOfAudits,
)
from krepes_ooc.rendering.data import Array
from krepes_ooc.rendering.drawing.line_chart import Scale, fit_scale
from krepes_ooc.rendering.drawing.markup import (
    DASH,
    Child,
    Markup,
    element,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.rendering.page import POLICY
from krepes_ooc.rendering.panels.panel import Panel

WIDTH = 300
ROW = 16
# Rows of a table that are drawn; the JSON has all.
MOST_ROWS = 40
LEADS = {
    "audits": "The first audit is what the others are compared with. An audit that differs by its "
    "seed alone gives the variation by seed: a difference no larger than that is not evidence.",
    "figures": "As each audit measured them; RankMe is measured on the samples that all have.",
    "similarity": "Debiased CKA over the samples that two audits have: 1 is the same geometry up "
    "to rotation and scale, 0 what unrelated ones give.",
}


def build_comparison_page(comparison: Comparison) -> str:
    """One HTML page without script; the same comparison gives the same bytes.

    Args:
        comparison: of two or more audits.
    """
    panels = [
        _audits_panel(comparison),
        _figures_panel(comparison),
        _similarity_panel(comparison),
        *(_pair_panel(comparison, pair) for pair in comparison.pairs),
    ]
    style = files("krepes_ooc.rendering").joinpath("report.css").read_text(encoding="utf-8")
    names = ", ".join(audit.folder for audit in comparison.audits)
    links = [element("li", element("a", panel.title, href=f"#{panel.key}")) for panel in panels]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # No script at all: the page has none
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content=POLICY.format(script="'none'"),
        ),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{names} {DASH} krepes comparison"),
        # The style sheet is ours and holds no "<"; it must not be escaped.
        element("style", Markup(style)),
    )
    masthead = element(
        "header",
        element("p", "krepes comparison", class_="kicker"),
        element("h1", user_text(names)),
        element("p", f"{len(comparison.audits)} audits of one source", class_="under")
        if comparison.matched_by == "position"
        else element("p", "audits of several sources, matched by name", class_="under"),
    )
    body = element(
        "body",
        element("a", "Skip to the comparison", href="#comparison", class_="skip"),
        masthead,
        element("nav", element("ol", links), aria_label="Contents"),
        element("main", join([join(panel.render(), "\n") for panel in panels]), id="comparison"),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _audits_panel(comparison: Comparison) -> Panel:
    """The audits, and how each differs from the first one."""
    rows: list[list[Child]] = []
    for audit in comparison.audits:
        keys = ", ".join(audit.differs)
        differs: Child = RELATIONS[audit.relation] or user_text(keys, 200)
        rows.append(
            [
                audit.label,
                user_text(audit.folder, 40),
                user_text(audit.recipe, 40),
                audit.objective,
                differs,
                "trusted" if audit.trusted else "not trusted",
                audit.verdict or "not measured",
            ]
        )
    head: list[Child] = ["", "folder", "recipe", "objective", "differs in", "step", "verdict"]
    body: list[Child] = [table(head, rows, caption="Audits", class_="wide")]
    # Values of what differs, which may be long, one click away
    for audit in comparison.audits:
        if audit.relation != FIRST and audit.differs:
            cells: list[list[Child]] = [
                [user_text(key, 60), _value(first), _value(here)]
                for key, (first, here) in audit.differs.items()
            ]
            values = table(["key", comparison.audits[0].label, audit.label], cells, caption="Keys")
            summary = element("summary", f"What differs in {audit.label}")
            body.append(element("details", summary, values))
    if comparison.warnings:
        items = [element("li", user_text(text, 400)) for text in comparison.warnings]
        body.append(element("div", element("ul", items), class_="warnings"))
    return Panel("audits", "The audits", LEADS["audits"], join(body))


def _value(value: object) -> Markup:
    """A recipe value; None: the default."""
    return element("span", "default", class_="none") if value is None else user_text(str(value), 60)


def _figures_panel(comparison: Comparison) -> Panel:
    """Figures side by side, with their intervals."""
    rows: list[list[Child]] = []
    for values in comparison.figures().values():
        cells: list[Child] = []
        for each in values:
            shown = number(each.value)
            if each.interval is not None and each.is_defined:
                low, high = (number(end, digits=2) for end in each.interval)
                interval = element("span", " (", low, " to ", high, ")", class_="quiet")
                shown = join(shown, interval)
            cells.append(shown)
        rows.append([user_text(values[0].label), *cells])
    head: list[Child] = ["figure", *(audit.label for audit in comparison.audits)]
    lead = f"{LEADS['figures']} Samples that all have: {comparison.samples}."
    body = table(head, rows, caption="Figures, with 95 % intervals", class_="wide")
    return Panel("figures", "Figures side by side", lead, body)


def _similarity_panel(comparison: Comparison) -> Panel:
    """CKA of each two audits, in three spaces."""
    labels = [audit.label for audit in comparison.audits]
    tables = []
    for space, words in SPACES.items():
        rows: list[list[Child]] = [
            [label, *(_shade(value) for value in row)]
            for label, row in zip(labels, comparison.similarity[space], strict=True)
        ]
        caption = f"CKA of {words}"
        tables.append(element("div", table(["", *labels], rows, caption=caption, class_="shares")))
    body = element("div", tables, class_="charts")
    return Panel("similarity", "Similarity of the audits", LEADS["similarity"], body)


def _shade(value: float) -> Markup:
    """A share from 0 to 1 on a shaded ground."""
    step = 0 if not math.isfinite(value) else min(5, max(0, int(value * 6)))
    return element("span", number(value, digits=2), class_=f"shade shade-{step}")


def _pair_panel(comparison: Comparison, pair: PairOfAudits) -> Panel:
    """Everything that changed from the first audit to another one."""
    first = comparison.audits[0].label
    other = comparison.audits[pair.other].label
    common = pair.counts
    lead = join(
        "A sample's explanation is its profile of cosines with all other samples that both have; "
        "its change is 1 minus the correlation of both profiles: 0 is none, 1 as much as if the "
        "two had nothing to do with each other. Median ", number(pair.change["median"]),
        ", largest ", number(pair.change["largest"]), " of ", number(common["samples"]),
        " samples. Of the ten first landmarks, among the ", number(common["landmarks"]),
        " that both have, they share ", number(pair.overlap), ".",
    )  # fmt: skip
    gap_words = "alignment gap"
    parts: list[Child] = [
        _samples("Samples whose explanation changed most", pair.samples, (first, other)),
        _samples("Landmarks whose explanation changed most", pair.landmarks, (first, other)),
        _differences("Alignment gaps", gap_words, pair.gaps, (first, other)),
        *(_groups(each, (first, other)) for each in pair.groups),
        _differences("Effect of leaving a group out", "effect", pair.effects, (first, other)),
        _concepts(pair.concepts, (first, other)),
        _differences("Given concepts", "held-out accuracy", pair.concept_sets, (first, other)),
    ]
    title = f"{other} against {first}: {comparison.audits[pair.other].folder}"
    return Panel(f"pair-{other}", title, lead, join(parts))


def _differences(
    title: str, what: str, differences: Sequence[Difference], labels: tuple[str, str]
) -> Markup | None:
    """Paired differences, largest first, with their intervals drawn against 0."""
    if not differences:
        return None
    size = [abs(each.difference) if math.isfinite(each.difference) else -1 for each in differences]
    order = np.argsort(-np.array(size), kind="stable")[:MOST_ROWS]
    chosen = [differences[i] for i in order]
    ends = np.array([[each.low, each.high] for each in chosen])
    scale = fit_scale([ends.reshape(-1), [0.0]], False, 0, WIDTH)
    rows: list[list[Child]] = []
    for each in chosen:
        interval: Child = None
        if math.isfinite(each.low):
            low, high = (number(end, signed=True, digits=2) for end in (each.low, each.high))
            interval = join(low, " to ", high)
        elif each.note:
            interval = element("span", user_text(each.note), class_="none")
        rows.append(
            [
                user_text(each.name, 40),
                _drawing(each, scale) if scale is not None else None,
                number(each.first),
                number(each.other),
                number(each.difference, signed=True),
                interval,
            ]
        )
    head: list[Child] = [
        *("", "change, 95 % interval", *(f"{what}, {label}" for label in labels)),
        *("change", "95 % interval, paired over samples"),
    ]
    further = len(differences) - len(chosen)
    return join(
        element("h3", title),
        table(head, rows, caption=title, class_="wide"),
        element("p", f"{further} smaller ones are in the JSON.", class_="quiet")
        if further
        else None,
    )


def _drawing(each: Difference, scale: Scale) -> Markup | None:
    """Interval and value of a difference, with a line at 0."""
    if not math.isfinite(each.low):
        return None
    middle = ROW / 2
    zero = f"{scale.at(0.0):.1f}"
    low, high = (f"{scale.at(end):.1f}" for end in (each.low, each.high))
    parts: list[Child] = [
        element("line", x1=zero, x2=zero, y1=0, y2=ROW, class_="base"),
        element("line", x1=low, x2=high, y1=middle, y2=middle, class_="error"),
        element("circle", cx=f"{scale.at(each.difference):.1f}", cy=middle, r=3, class_="dot"),
    ]
    return element("svg", parts, viewBox=f"0 0 {WIDTH} {ROW}", class_="gap", aria_hidden="true")


def _groups(one: GroupDifferences, labels: tuple[str, str]) -> Markup | None:
    """Change of a group table; a change whose interval excludes 0 is marked."""
    if not one.categories:
        return None
    change = one.other - one.first
    beyond = (one.low > 0) | (one.high < 0)
    rows: list[list[Child]] = [
        [
            user_text(name, 30),
            *(_change(change[g], beyond[g], column) for column in range(len(one.categories))),
        ]
        for g, name in enumerate(one.categories)
    ]
    caption = (
        f"{labels[1]} minus {labels[0]}: share of the landmarks' mass, from the sample's group "
        "(row) to that of the landmark (column); bold where the interval excludes 0"
    )
    head: list[Child] = ["", *(user_text(name, 30) for name in one.categories)]
    return join(
        element("h3", "Groups by ", user_text(one.column, 40)),
        table(head, rows, caption=caption, class_="shares"),
    )


def _change(row: Array, beyond: Array, column: int) -> Markup:
    """One change, bold where it is beyond its error."""
    shown = number(row[column], signed=True, digits=2)
    return element("b", shown) if beyond[column] else shown


def _concepts(matches: ConceptMatches, labels: tuple[str, str]) -> Markup | None:
    """Discovered concepts, matched one to one."""
    title = element("h3", "Discovered concepts, matched one to one")
    if not matches.pairs:
        return join(title, element("p", matches.note, class_="quiet")) if matches.note else None
    words = join(
        "Mean correlation of their activations ", number(matches.mean_correlation),
        ", with shuffled samples ", number(matches.chance), ". Unmatched: ",
        f"{_numbers(matches.unmatched_first)} of {labels[0]}, "
        f"{_numbers(matches.unmatched_other)} of {labels[1]}.",
    )  # fmt: skip
    rows: list[list[Child]] = [
        [
            join("concept ", number(pair.first)),
            join("concept ", number(pair.other)),
            number(pair.correlation),
            number(pair.shared),
            number(pair.share_first),
            number(pair.share_other),
            "stable" if pair.stable else "unstable in one of them",
        ]
        for pair in matches.pairs[:MOST_ROWS]
    ]
    head: list[Child] = [
        *(labels[0], labels[1], "correlation", "samples in common"),
        *(f"share, {label}" for label in labels),
        "",
    ]
    caption = "Matched concepts"
    return join(title, element("p", words, class_="legend"), table(head, rows, caption=caption))


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values) or "none"


def _samples(
    title: str, changed: Sequence[ChangedSample], labels: tuple[str, str]
) -> Markup | None:
    """Samples of largest change, each with its first landmarks in either audit."""
    if not changed:
        return None
    cards = [_card(one, labels) for one in changed]
    return join(element("h3", title), element("div", cards, class_="cards"))


def _card(one: ChangedSample, labels: tuple[str, str]) -> Markup:
    """One changed sample: what it is, how much changed, its landmarks on either side."""
    figures: list[Child] = [element("span", "change ", number(one.change))]
    if math.isfinite(one.floor):
        figures.append(element("span", "another seed ", number(one.floor)))
    if math.isfinite(one.overlap):
        figures.append(element("span", "landmarks in common ", number(one.overlap)))
    header = element(
        "header",
        one.view.picture(one.row),
        element("p", one.view.caption(one.row)),
        element("p", figures, class_="quiet"),
    )
    sides = [
        element("div", element("h4", f"first landmarks in {label}"), _strip(explained))
        for label, explained in zip(labels, one.explanations, strict=False)
    ]
    return element("article", header, element("div", sides, class_="links"), class_="card")


def _strip(explained: Explained) -> Markup:
    """The first landmarks of a sample as a strip of pictures or names."""
    view = explained.landmarks
    code = explained.sample.code(explained.row)
    items = [
        element("li", view.picture(link.row), view.caption(link.row, code), link.describe())
        for link in explained.links
    ]
    return element("ul", items, class_="strip")
