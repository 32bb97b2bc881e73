"""Group influence: change of the embedding when one group of samples is left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import AuditData
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
from krepes_ooc.rendering.overview import GroupEffects
from krepes_ooc.rendering.panels.panel import Panel, absent

KEY = "group_influence"
TITLE = "Group influence"
LANDMARKS = "landmarks"
SHADES = 6
# Groups of a table, and lines of the list of the strongest groups
MOST_GROUPS = 24
UNFOLDED = 6
# Letters of a name in the tables of pairs; with more groups than FULL_NAMES those of a column
NAME = 24
FULL_NAMES = 8
NAME_OF_MANY = 10
KEY_OF_TABLES = (
    " Outlined in the tables: effect on the group's own samples; the darker, the larger."
)
LEAD = (
    "Each group of samples is left out and the kernel model solved again; the network is not "
    "trained again. Effect on an audited sample: 1 minus the correlation of its cosines to anchor "
    "samples with and without the group; 0 is no change."
)


def group_effects_panel(audit: AuditData) -> Panel:
    """Groups by their mean effect, and the effect of every group on every other one."""
    effects = audit.group_effects
    if effects is None or not len(effects.names):
        return absent(KEY, TITLE, "No group was left out: the audit has no groups.")
    order = strongest_groups(effects)
    named = _partitions(effects)
    # Audited columns stand first and open; without any, the first column
    opened = {name for name in named if name in audit.audited_columns} or set(named[:1])
    named = sorted(named, key=lambda name: name not in opened)
    drawn = (_matrix(effects, name, name in opened) for name in named)
    tables = [each for each in drawn if each is not None]
    lead = join(
        LEAD,
        _tolerance(effects),
        KEY_OF_TABLES if tables else None,
        _left_out(effects),
    )
    body = element(
        "div",
        element("div", _ranking(effects, order)),
        element("div", tables, class_="tables"),
        class_="pair",
    )
    figures = {
        "names": list(effects.names),
        "partition": list(effects.partition),
        "count": effects.count,
        "mean": effects.mean,
        "stderr": effects.stderr,
        "two_stderr": 2 * effects.stderr,
        "residual": effects.residual,
        "by_group": effects.by_group,
        "reasons": dict(effects.reasons),
        "converged": effects.converged,
        "left_out": dict(effects.left_out),
        "gradient_norm": effects.gradient_norm,
        "tolerance": effects.tolerance,
        "above_tolerance": len(effects.above_tolerance),
        "floor": effects.floor if math.isfinite(effects.floor) else None,
        "groups": len(effects.names),
        "folded": max(0, len(order) - UNFOLDED),
    }
    return Panel(KEY, TITLE, lead, body, figures)


def _tolerance(effects: GroupEffects) -> Markup | None:
    """Number of solutions above the tolerance, and those farthest from it."""
    above = effects.above_tolerance
    if not above:
        words = " The solution of all samples ended above its tolerance."
        return None if effects.converged else join(words)
    assert effects.gradient_norm is not None
    worst = above[0]
    return join(
        " ", number(len(above)), " of ", number(len(effects.names)),
        " solutions ended above the tolerance of ", number(effects.tolerance),
        " (gradient relative to the start); farthest from it is ",
        user_text(effects.display_names[worst], 32), " with ",
        number(float(effects.gradient_norm[worst]), digits=2), ".", _floor(effects),
    )  # fmt: skip


def _floor(effects: GroupEffects) -> Markup | None:
    """The effect that remains of solving, beside which the effects of groups are to be seen."""
    if not math.isfinite(effects.floor):
        return None
    return join(
        " Solving on with all samples has a mean effect of ", number(effects.floor, digits=2),
        ": differences of that size between groups mean nothing.",
    )  # fmt: skip


def _left_out(effects: GroupEffects) -> Markup | None:
    """Columns whose levels are no groups, and the key that makes them groups."""
    if not effects.left_out:
        return None
    columns = [
        join(user_text(name), " (", number(count), " levels)")
        for name, count in effects.left_out.items()
    ]
    listed = [part for column in columns for part in (", ", column)][1:]
    return join(
        " Not among the groups: ", *listed, "; name them in ",
        element("code", "stages.groups.columns"), ".",
    )  # fmt: skip


def strongest_groups(effects: GroupEffects) -> list[int]:
    """Groups with a mean effect, largest first."""
    rank = np.argsort(-np.nan_to_num(effects.mean, nan=-np.inf), kind="stable")
    return [int(g) for g in rank if np.isfinite(effects.mean[g])]


def _ranking(effects: GroupEffects, order: list[int]) -> Markup:
    if not order:
        return element("p", "No group could be left out.", class_="quiet")
    most = float(effects.mean[order[0]]) or 1.0
    names = effects.display_names
    rows: list[list[Child]] = [
        [
            user_text(names[g], 32),
            number(int(effects.count[g])),
            join(
                number(effects.mean[g], digits=2), " ± ",
                number(2 * effects.stderr[g], digits=1),
                bar(float(effects.mean[g]) / most, "attract"),
            ),
            number(effects.residual[g], signed=True, digits=2),
        ]
        for g in order
    ]  # fmt: skip
    head: list[Child] = ["left out", "samples", "mean effect ± 2 s.e.", "beyond its size"]
    caption = "Groups by mean effect"
    shown = table(head, rows[:UNFOLDED], caption=caption, class_="lines")
    rest = rows[UNFOLDED:]
    if not rest:
        return shown
    summary = element("summary", number(len(rest)), " more groups")
    further = table(head, rest, caption="Further groups by mean effect", class_="lines")
    return join(shown, element("details", summary, further, class_="further"))


def _partitions(effects: GroupEffects) -> list[str]:
    """Partitions with a table: all but the clusters of landmarks, which have no meaning by name."""
    names = list(dict.fromkeys(effects.partition))
    named = [name for name in names if name != LANDMARKS]
    return named or names


def _matrix(effects: GroupEffects, partition: str, is_open: bool) -> Markup | None:
    """Mean effect of leaving out a group (line) on the samples of another (column)."""
    groups = [g for g, name in enumerate(effects.partition) if name == partition]
    if not 1 < len(groups) <= MOST_GROUPS:
        return None
    block = effects.by_group[np.ix_(groups, groups)]
    if not np.isfinite(block).any():
        return None
    most = float(np.nanmax(np.abs(block))) or 1.0
    # Without the name of the column, which stands in the caption
    short = [effects.display_names[g].removeprefix(f"{partition} = ") for g in groups]
    limit = NAME if len(groups) <= FULL_NAMES else NAME_OF_MANY
    rows: list[list[Child]] = [
        [
            _name(short[i], NAME),
            *(_cell(value, most, i == j) for j, value in enumerate(block[i])),
        ]
        for i in range(len(groups))
    ]
    head: list[Child] = ["without", *(_name(name, limit) for name in short)]
    caption = f"Effect of leaving out a group (line) on samples of a group (column): {partition}"
    drawn = table(head, rows, caption=caption, class_="shares dense")
    summary = element("summary", user_text(partition))
    return element("details", summary, drawn, open="" if is_open else None)


def _name(name: str, limit: int) -> Markup:
    return element("span", user_text(name, limit), title=name)


def _cell(value: Any, most: float, is_same: bool) -> Markup:
    shade = 0 if not np.isfinite(value) else min(SHADES - 1, int(abs(value) / most * (SHADES - 1)))
    classes = f"shade shade-{shade}{' own' if is_same else ''}"
    return element("span", number(float(value), digits=2), class_=classes)
