"""Alignment gaps: which columns the influence follows, beside every control."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.line_chart import Scale, fit_scale
from krepes_ooc.rendering.drawing.markup import (
    Child,
    Markup,
    element,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.measured import ALIGNMENT_CONTROLS, Alignment
from krepes_ooc.rendering.panels.panel import Panel, absent

WIDTH = 300
ROW = 16
# More rows than this are in the JSON only
MAX_COLUMNS = 40
LEAD = (
    "The gap says how much more a sample agrees with its top landmarks in this column than with "
    "landmarks drawn at random; 0 is no preference, 1 the most there can be. The ring is the "
    "control: ranked by the kernel alone. Where ring and dot coincide, the kernel's geometry "
    "explains the gap, not the step."
)


def alignment_panel(audit: AuditData) -> Panel:
    """Alignment gaps, largest first, with standard errors and all controls."""
    key = "alignment"
    title = "Which columns the influence follows"
    alignment = audit.alignment
    names = alignment_names(audit)
    if alignment is None or not names:
        return absent(key, title, "No alignment gap was measured: it needs columns or labels.")
    # Largest gaps first, undefined ones last
    rank = np.argsort(-np.nan_to_num(alignment.gap, nan=-np.inf), kind="stable")
    order = [int(c) for c in rank[:MAX_COLUMNS]]
    # Controls that this source has
    shown = [name for name in ALIGNMENT_CONTROLS if getattr(alignment, name) is not None]
    head: list[Child] = ["column", "gap ± two standard errors", "gap", "standard error"]
    head += [ALIGNMENT_CONTROLS[name][0] for name in shown]
    scale = _scale(alignment)
    rows = [_row(alignment, c, names[c], shown, scale) for c in order]
    n_further = len(names) - len(order)
    body = join(
        table(head, rows, caption="Alignment gaps", class_="wide"),
        element("p", f"{n_further} columns with smaller gaps are in the JSON only.", class_="quiet")
        if n_further
        else None,
        _legend(shown),
    )
    same = kernel_says_the_same(alignment)
    figures = {
        "columns": list(names),
        **{name: getattr(alignment, name) for name in ("gap", "stderr", *ALIGNMENT_CONTROLS)},
        "difference_stderr": alignment.difference_stderr,
        "notes": dict(alignment.notes),
        "kernel_alone": same,
    }
    return Panel(key, title, join(LEAD, _explanation(same)), body, figures)


def alignment_names(audit: AuditData) -> tuple[str, ...]:
    """Names of the gaps in their order: the table's columns unless named otherwise."""
    if audit.alignment is not None and audit.alignment.names:
        return audit.alignment.names
    return tuple(column.name for column in audit.columns)


def kernel_says_the_same(alignment: Alignment) -> dict[str, float]:
    """Difference of the gaps to the kernel-only control, and number beyond error."""
    # The difference of the kernel-only control, over columns that are defined
    away = np.abs(alignment.gap - alignment.kernel_only)
    known = np.isfinite(away)
    if not known.any():
        return {}
    compared = {"largest_difference": float(away[known].max()), "columns": int(known.sum())}
    if alignment.difference_stderr is not None:
        # Two standard errors of the paired difference
        beyond = away[known] > 2 * alignment.difference_stderr[known]
        compared["beyond_two_standard_errors"] = int(beyond.sum())
    return compared


def _explanation(same: dict[str, float]) -> Markup | None:
    if not same:
        return None
    beyond = same.get("beyond_two_standard_errors")
    counted = None
    if beyond is not None:
        counted = join(
            "; ", number(beyond), " of ", number(same["columns"]),
            " differ by more than two standard errors of the difference",
        )  # fmt: skip
    return join(
        " Here the kernel alone gives the same gaps within ",
        number(same["largest_difference"], digits=2), counted, ".",
    )  # fmt: skip


def _legend(shown: list[str]) -> Markup | None:
    if not shown:
        return None
    parts: list[Child] = []
    for words, meaning in (ALIGNMENT_CONTROLS[name] for name in shown):
        parts.append(join("; " if parts else None, element("b", words), f" {meaning}"))
    return element("p", parts, ".", class_="legend")


def _scale(alignment: Alignment) -> Scale | None:
    # All that is drawn must fit: intervals, controls, zero
    error = 2 * np.nan_to_num(alignment.stderr)
    return fit_scale(
        [alignment.gap - error, alignment.gap + error, alignment.kernel_only, [0.0]],
        False,
        0,
        WIDTH,
    )


def _row(
    alignment: Alignment, c: int, name: str, shown: list[str], scale: Scale | None
) -> list[Child]:
    # An undefined column keeps its row: the reason stands in it
    if name in alignment.notes and not math.isfinite(alignment.gap[c]):
        meaning = element("span", user_text(alignment.notes[name]), class_="none")
        return [user_text(name, 40), meaning, *("" for _ in ("gap", "stderr", *shown))]
    measured: list[Any] = [getattr(alignment, part)[c] for part in ("gap", "stderr", *shown)]
    drawn = None
    if scale is not None:
        drawn = _drawing(alignment.gap[c], alignment.stderr[c], alignment.kernel_only[c], scale)
    return [user_text(name, 40), drawn, *(number(value, digits=2) for value in measured)]


def _drawing(gap: float, stderr: float, kernel_only: float, scale: Scale) -> Markup:
    middle = ROW / 2
    # Zero line, interval, ring of the control, dot of the gap: later ones lie on top
    zero = f"{scale.at(0.0):.1f}"
    parts: list[Child] = [element("line", x1=zero, x2=zero, y1=0, y2=ROW, class_="base")]
    if math.isfinite(gap):
        error = 2 * stderr if math.isfinite(stderr) else 0.0
        low, high = f"{scale.at(gap - error):.1f}", f"{scale.at(gap + error):.1f}"
        parts.append(element("line", x1=low, x2=high, y1=middle, y2=middle, class_="error"))
    if math.isfinite(kernel_only):
        parts.append(
            element("circle", cx=f"{scale.at(kernel_only):.1f}", cy=middle, r=5, class_="ring")
        )
    if math.isfinite(gap):
        parts.append(element("circle", cx=f"{scale.at(gap):.1f}", cy=middle, r=3, class_="dot"))
    return element("svg", parts, viewBox=f"0 0 {WIDTH} {ROW}", class_="gap", aria_hidden="true")
