"""Group tables: influence between the groups of samples and of landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData
from krepes_ooc.rendering.drawing.markup import (
    Child,
    Markup,
    element,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.measured import Groups
from krepes_ooc.rendering.panels.panel import Panel, absent

MAX_GROUPS = 24
NAME = 24
SHADES = 6


def groups_panel(audit: AuditData) -> Panel:
    """One table a column of groups, each with its control and its chance level."""
    key = "groups"
    title = "Whose landmarks speak for whom"
    if not audit.groups:
        sentence = "There is no such table: it needs labels or a column of few categories."
        return absent(key, title, sentence)
    parts = [_part(name, groups) for name, groups in audit.groups.items()]
    lead = (
        "Each line is a group of audited samples; the influence of their top landmarks is shared "
        "out over the landmarks' own groups. In brackets the control: the same table with "
        "landmarks ranked by the kernel alone. The last line is what landmarks drawn at random "
        "would give: a group that is rare among landmarks can hold up few samples."
    )
    figures = {name: _figures(groups) for name, groups in audit.groups.items()}
    return Panel(key, title, lead, join(parts), figures)


def _part(name: str, groups: Groups) -> Markup:
    """The heading, the sentence and the table of one column."""
    if not len(groups.categories):
        note = groups.note or "not defined"
        return join(element("h3", user_text(name)), element("p", user_text(note), class_="quiet"))
    lines, heads = _shown(groups)
    # A wider table could not be read
    if len(heads) > MAX_GROUPS:
        words = f"There are {len(heads)} groups; a table is drawn for at most {MAX_GROUPS}."
        return join(element("h3", user_text(name)), element("p", words, class_="quiet"))
    share, chance = same_group_share(groups)
    summary = join(
        "On average ", _percent(share), " of the influence on a sample lies on its own group; "
        "random landmarks would give ", _percent(chance), ".",
        join(" ", user_text(groups.note, 400)) if groups.note else None,
    )  # fmt: skip
    # One row a group of samples, then the chance level of every group of landmarks
    rows: list[list[Child]] = [
        [
            join(user_text(groups.categories[g], NAME), " (", number(int(groups.samples[g])), ")"),
            *(_cell(groups.share[g, to], groups.kernel_only[g, to], g == to) for to in heads),
        ]
        for g in lines
    ]
    rows.append([element("i", "by chance"), *(_cell(groups.chance[to]) for to in heads)])
    head: list[Child] = ["samples of", *(user_text(groups.categories[to], NAME) for to in heads)]
    caption = f"Share of influence by {name}: from the group of the landmark to that of the sample"
    return join(
        element("h3", user_text(name)),
        element("p", summary, class_="quiet"),
        table(head, rows, caption=caption, class_="shares"),
    )


def same_group_share(groups: Groups) -> tuple[float, float]:
    """Mean share of the sample's own group over samples, and its chance level."""
    if not len(groups.categories):
        return float("nan"), float("nan")
    # Groups without an audited sample have no row
    weight = np.where(np.isfinite(np.diagonal(groups.share)), groups.samples, 0)
    if not weight.sum():
        return float("nan"), float("nan")
    share = np.nan_to_num(np.diagonal(groups.share))
    return tuple(float(np.average(values, weights=weight)) for values in (share, groups.chance))  # type: ignore[return-value]


def _shown(groups: Groups) -> tuple[list[int], list[int]]:
    """Groups with audited samples, and groups with audited samples or landmarks."""
    # A group without samples still has a column if it has landmarks
    lines = np.flatnonzero(groups.samples > 0)
    heads = np.flatnonzero((groups.samples > 0) | (groups.landmarks > 0))
    return lines.tolist(), heads.tolist()


def _figures(groups: Groups) -> dict[str, Any]:
    if not len(groups.categories):
        return {"note": groups.note}
    share, chance = same_group_share(groups)
    names = ("samples", "landmarks", "share", "stderr", "kernel_only", "chance")
    return {
        "categories": list(groups.categories),
        **{name: getattr(groups, name) for name in names},
        "own_mean": share,
        "own_chance": chance,
        "note": groups.note,
    }


def _percent(value: float) -> Markup:
    return number(float(value), words=f"{100 * value:.0f} %" if np.isfinite(value) else "")


def _cell(share: Array, control: Array | None = None, is_same: bool = False) -> Markup:
    # The shade repeats the number for the eye
    shade = 0 if not np.isfinite(share) else min(SHADES - 1, int(share * SHADES))
    beside = None
    # The control in brackets, without the percent sign
    if control is not None and np.isfinite(control):
        figure = number(float(control), words=f"{100 * control:.0f}")
        beside = element("small", " (", figure, ")")
    classes = f"shade shade-{shade}{' own' if is_same else ''}"
    return element("span", _percent(float(share)), beside, class_=classes)
