"""Classes and groups: where the influence on each group lies, with every control."""

from __future__ import annotations

from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData
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
from krepes_ooc.rendering.drawing.sample_view import LandmarkSamples, SampleView
from krepes_ooc.rendering.drawing.sentence import percent
from krepes_ooc.rendering.measured import Groups
from krepes_ooc.rendering.panels.discovered import strip
from krepes_ooc.rendering.panels.panel import Panel, absent

KEY = "groups"
TITLE = "Classes and groups"
LABEL = "label"
MAX_GROUPS = 24
NAME = 24
SHADES = 6
THUMBNAILS = 5
# Pictures beside names of classes
NAMED_THUMBNAILS = 3
# Where names have more letters than this, two of them
SHORT_NAME = 5
# Figures of fewer samples are grey
LEAST_SAMPLES = 10
# Rankings that the share is compared with: field of ``Groups``, head of the column
CONTROLS = {
    "kernel_only": "plain kernel",
    "by_network": "by network",
    "by_inputs": "by inputs",
    "random_weights": "random weights",
}
LEAD = (
    "Share of the influence on a group's samples that lies on landmarks of the same group, and on "
    "the other group that gets most of it. Beside it the same share when landmarks are ranked by "
    "the plain kernel, by the network's embedding, by its inputs and by networks with random "
    "weights; by chance it is the group's share among the landmarks. Groups of fewer than "
)


def groups_panel(audit: AuditData) -> Panel:
    """A summary of every group, one table a column, and the table of all pairs behind a line."""
    if not audit.groups:
        sentence = "There is no such table: it needs labels or a column of few categories."
        return absent(KEY, TITLE, sentence)
    # The label first, then audited columns, then the others
    first = [LABEL, *audit.audited_columns]
    names = sorted(
        audit.groups, key=lambda name: first.index(name) if name in first else len(first)
    )
    unfolded = {name for name in names if name in first} or set(names[:1])
    parts = [_part(audit, name, name in unfolded) for name in names]
    lead = join(LEAD, number(LEAST_SAMPLES), " samples are grey: too few to quote.")
    figures: dict[str, Any] = {name: _figures(groups) for name, groups in audit.groups.items()}
    figures |= {"least_samples": LEAST_SAMPLES, "classes": _class_figures(audit)}
    return Panel(KEY, TITLE, lead, join(parts), figures)


def _class_figures(audit: AuditData) -> dict[str, Any] | None:
    """Prototypes and confusing landmarks of every class, by position in the source."""
    found = audit.class_figures
    if found is None:
        return None
    figures: dict[str, Any] = {"samples": found.samples, "first_same": found.first_same}
    known = np.maximum(found.samples, 1)
    figures["first_same_share"] = np.where(found.samples > 0, found.first_same / known, np.nan)
    if audit.landmarks is not None:
        ids = audit.landmarks.sample_id[LandmarkSamples(audit.landmarks).first_row]
        for name in ("prototypes", "confusing"):
            rows = getattr(found, name)
            if rows is not None:
                figures[name] = [[int(ids[i]) for i in row if i >= 0] for row in rows]
    return figures


def _part(audit: AuditData, name: str, unfolded: bool) -> Markup:
    """The heading, the sentence and the tables of one column."""
    groups = audit.groups[name]
    head = element("h3", user_text(name))
    if not len(groups.categories):
        return join(head, element("p", user_text(groups.note or "not defined"), class_="quiet"))
    share, chance = same_group_share(groups)
    summary = join(
        "On average ", percent(share), " of the influence on a sample lies on its own group; by "
        "chance ", percent(chance), ".",
        join(" ", user_text(groups.note, 400)) if groups.note else None,
    )  # fmt: skip
    lines, heads = _shown(groups)
    inside = join(
        element("p", summary, class_="quiet beside-name"),
        _summary(audit, name, groups, lines),
        _pairs(name, groups, lines, heads),
    )
    if unfolded:
        return join(head, inside)
    return element("details", element("summary", user_text(name)), inside, class_="further")


def _summary(audit: AuditData, name: str, groups: Groups, lines: list[int]) -> Markup:
    """One line a group: its own share with interval and controls, the largest other share."""
    controls = {key: words for key, words in CONTROLS.items() if getattr(groups, key) is not None}
    classes = audit.class_figures if name == LABEL else None
    head: list[Child] = ["samples of", "audited", "own group ± 2 s.e."]
    head += [*controls.values(), "by chance", "most of another group"]
    head += ["first landmark of own group"] if classes is not None else []
    pictured = classes is not None and audit.landmarks is not None
    head += ["prototypes", "confused with"] if pictured else []
    rows = [_line(audit, groups, list(controls), g, classes is not None) for g in lines]
    caption = f"Influence on groups of {name}"
    return table(head, rows, caption=caption, class_="lines groups")


def _share_with_error(groups: Groups, g: int, other: int) -> Child:
    """Share with two standard errors; one sample has no error, which is not an error of 0."""
    share = percent(groups.share[g, other])
    if groups.samples[g] < 2:
        return share
    return join(share, " ± ", percent(2 * groups.stderr[g, other]))


def _line(
    audit: AuditData, groups: Groups, controls: list[str], g: int, has_classes: bool
) -> list[Child]:
    count = int(groups.samples[g])
    name = user_text(groups.categories[g], NAME)
    other = largest_other(groups, g)
    row: list[Child] = [
        element("span", name, class_="small-group" if count < LEAST_SAMPLES else None),
        number(count),
        _share_with_error(groups, g, g),
        *(percent(getattr(groups, key)[g, g]) for key in controls),
        percent(groups.chance[g]),
        DASH
        if other is None
        else join(
            user_text(groups.categories[other], NAME), ": ", _share_with_error(groups, g, other)
        ),
    ]
    if has_classes:
        row += _class_cells(audit, g)
    return row


def _class_cells(audit: AuditData, g: int) -> list[Child]:
    """Share of first landmarks of the class, its prototypes, and the landmarks it is taken for."""
    found = audit.class_figures
    assert found is not None
    if g >= len(found.samples) or not found.samples[g]:
        share: Child = DASH
    else:
        share = percent(float(found.first_same[g] / found.samples[g]))
    cells: list[Child] = [share]
    if audit.landmarks is None or found.prototypes is None or found.confusing is None:
        return cells
    view = SampleView(audit.landmarks, audit)
    first = LandmarkSamples(audit.landmarks).first_row
    for rows in (found.prototypes, found.confusing):
        chosen = [int(first[i]) for i in rows[g] if i >= 0] if g < len(rows) else []
        # Prototypes are of the class itself
        named = rows is found.confusing
        count = THUMBNAILS
        if named:
            longest = max((len(view.class_name(row)) for row in chosen), default=0)
            count = NAMED_THUMBNAILS - (longest > SHORT_NAME)
        cells.append(strip(view, chosen, count, with_class=named) if chosen else DASH)
    return cells


def _pairs(name: str, groups: Groups, lines: list[int], heads: list[int]) -> Markup | None:
    """Shares between all pairs of groups, folded; a wider table could not be read."""
    if len(heads) > MAX_GROUPS:
        words = f"There are {len(heads)} groups; a table of pairs has at most {MAX_GROUPS}."
        return element("p", words, class_="quiet")
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
    caption = f"Share of influence by {name}: landmarks of a group (column) on samples (line)"
    return element(
        "details",
        element(
            "summary",
            "All pairs of groups, in brackets by plain kernel; outlined: a group with itself",
        ),
        table(head, rows, caption=caption, class_="shares"),
    )


def largest_other(groups: Groups, g: int) -> int | None:
    """The other group with the largest share of the influence on a group; None without one."""
    shares = np.array(groups.share[g], dtype=np.float64)
    shares[g] = np.nan
    if not np.isfinite(shares).any() or not np.nanmax(shares) > 0:
        return None
    return int(np.nanargmax(shares))


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
    names = ("samples", "landmarks", "share", "stderr", "chance", *CONTROLS)
    return {
        "categories": list(groups.categories),
        **{name: getattr(groups, name) for name in names},
        # Half widths of the intervals, as they are printed
        "two_stderr": 2 * groups.stderr,
        "own_mean": share,
        "own_chance": chance,
        "note": groups.note,
    }


def _cell(share: Array, control: Array | None = None, is_same: bool = False) -> Markup:
    # The shade repeats the number for the eye
    shade = 0 if not np.isfinite(share) else min(SHADES - 1, int(share * SHADES))
    beside = None
    # The control in brackets, without the percent sign
    if control is not None and np.isfinite(control):
        figure = number(float(control), words=f"{100 * control:.0f}")
        beside = element("small", " (", figure, ")")
    classes = f"shade shade-{shade}{' own' if is_same else ''}"
    return element("span", percent(float(share)), beside, class_=classes)
