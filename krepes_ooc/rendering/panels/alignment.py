"""Alignment gaps: which columns the influence follows, beside every control."""

from __future__ import annotations

import math

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData
from krepes_ooc.rendering.drawing.line_chart import Scale, fit_round_scale
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
# Free units at both ends, for the numbers of the axis
MARGIN = 10
# From this gap on the axis reaches to 1
NEAR_THE_MOST = 0.5
# More rows than this are in the JSON only
MAX_COLUMNS = 40
# Columns that stand open
UNFOLDED = 7
LEAD = (
    "The alignment gap of a column is the agreement of a sample with its top landmarks minus that "
    "with all landmarks; 0 is no preference, 1 the most there can be. Equal dot and ring: the gap "
    "comes from the kernel, not from the objective. "
)
# Marks of the drawing: field of ``Alignment``, words; None: always drawn
MARKS = (
    (None, "Dot: gap with its 95 % interval"),
    (None, "ring: plain kernel"),
    ("chance", "grey band: chance"),
    ("input_gap", "stroke: inputs"),
    ("random_most", "triangle: random weights"),
)
# Controls that decide about a column; the others are in a further table
DECIDING = ("chance", "kernel_only", "network_gap", "input_gap", "random_most")
LABEL = "label"
KEY = "alignment"
TITLE = "Feature alignment"


def alignment_panel(audit: AuditData) -> Panel:
    """Alignment gaps, largest first, with standard errors and all controls."""
    alignment = audit.alignment
    names = alignment_names(audit)
    if alignment is None or not names:
        return absent(KEY, TITLE, "No alignment gap was measured: it needs columns or labels.")
    # Audited columns first, then largest gaps, undefined ones last
    rank = np.argsort(-np.nan_to_num(alignment.gap, nan=-np.inf), kind="stable")
    order = sorted(
        map(int, rank[:MAX_COLUMNS]), key=lambda c: names[c] not in audit.audited_columns
    )
    # Controls that this source has
    known = [name for name in ALIGNMENT_CONTROLS if getattr(alignment, name) is not None]
    shown = [name for name in DECIDING if name in known]
    further = [name for name in known if name not in DECIDING]
    n_left = len(names) - len(order)
    body = join(
        _table(audit, alignment, order, shown),
        element("p", f"{n_left} columns with smaller gaps are in the JSON only.", class_="quiet")
        if n_left
        else None,
        _further(audit, alignment, order, (shown, further)),
    )
    same = kernel_says_the_same(alignment)
    figures = {
        "columns": list(names),
        **{name: getattr(alignment, name) for name in ("gap", "stderr", *ALIGNMENT_CONTROLS)},
        "two_stderr": 2 * alignment.stderr,
        "difference_stderr": alignment.difference_stderr,
        "notes": dict(alignment.notes),
        "kernel_alone": same,
        "folded": max(0, len(order) - UNFOLDED),
    }
    return Panel(
        KEY,
        TITLE,
        join(LEAD, f"{_marks(alignment)}. ", _explanation(same, LABEL in names)),
        body,
        figures,
    )


def _marks(alignment: Alignment) -> str:
    """The marks of the drawing, those that were measured."""
    return "; ".join(
        words for name, words in MARKS if name is None or getattr(alignment, name) is not None
    )


def _table(audit: AuditData, alignment: Alignment, order: list[int], shown: list[str]) -> Markup:
    """One line a column: the drawing, the gap, and the controls that decide."""
    fitted = _scale(alignment, order)
    scale = None if fitted is None else fitted[0]
    axis = None if fitted is None else _axis(*fitted)
    head: list[Child] = ["column", axis, "gap ± 2 s.e."]
    head += [
        element("span", ALIGNMENT_CONTROLS[name][0], title=ALIGNMENT_CONTROLS[name][1])
        for name in shown
    ]
    names = alignment_names(audit)
    rows = [_row(audit, alignment, c, names[c], shown, scale) for c in order]
    drawn = table(head, rows[:UNFOLDED], caption="Alignment gaps", class_="lines gaps")
    rest = rows[UNFOLDED:]
    if not rest:
        return drawn
    summary = element("summary", number(len(rest)), " more columns")
    further = table(head, rest, caption="Further alignment gaps", class_="lines gaps")
    return join(drawn, element("details", summary, further, class_="further"))


def _further(
    audit: AuditData, alignment: Alignment, order: list[int], controls: tuple[list[str], list[str]]
) -> Markup:
    """The other controls, and what all of them are, behind one line."""
    shown, further = controls
    names = alignment_names(audit)
    inside: Child = None
    if further:
        head: list[Child] = ["column", *(ALIGNMENT_CONTROLS[name][0] for name in further)]
        rows: list[list[Child]] = [
            [
                user_text(names[c], 40),
                *(number(getattr(alignment, name)[c], digits=2) for name in further),
            ]
            for c in order
            if np.isfinite(alignment.gap[c])
        ]
        inside = table(head, rows, caption="Further controls of the gaps", class_="lines")
    summary = element("summary", "Definitions and further controls")
    return element("details", summary, _legend([*shown, *further]), inside, class_="further")


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
        signed = (alignment.gap - alignment.kernel_only)[known][beyond]
        compared["beyond_two_standard_errors"] = int(beyond.sum())
        compared["larger"] = int((signed > 0).sum())
        compared["smaller"] = int((signed < 0).sum())
    return compared


def _explanation(same: dict[str, float], has_label: bool) -> Markup | None:
    """Number, direction and size of the differences to the plain kernel."""
    if not same:
        return None
    largest = number(same["largest_difference"], digits=2)
    beyond = same.get("beyond_two_standard_errors")
    if beyond is None:
        return join("The largest difference to plain kernel is ", largest, ".")
    counted = join(
        number(beyond), " of ", number(same["columns"]),
        " gaps", " (one is the label's)" if has_label else None,
    )  # fmt: skip
    sides: Child = None
    if beyond:
        sides = join(", ", number(same["larger"]), " larger, ", number(same["smaller"]), " smaller")
    return join(
        "More than 2 s.e. from plain kernel: ", counted, sides, "; largest difference ", largest,
        ".",
    )  # fmt: skip


def _legend(shown: list[str]) -> Markup | None:
    if not shown:
        return None
    parts: list[Child] = []
    for words, meaning in (ALIGNMENT_CONTROLS[name] for name in shown):
        parts.append(join("; " if parts else None, element("b", words), f" {meaning}"))
    return element("p", parts, ".", class_="legend")


def _scale(alignment: Alignment, order: list[int]) -> tuple[Scale, list[float]] | None:
    """The common scale of all lines, and its ticks."""
    # All that is drawn must fit: intervals, controls, chance on both sides of zero
    error = 2 * np.nan_to_num(alignment.stderr)
    drawn = [alignment.gap - error, alignment.gap + error, alignment.kernel_only]
    drawn += [known for known in (alignment.input_gap, alignment.random_most) if known is not None]
    if alignment.chance is not None:
        drawn += [-alignment.chance, alignment.chance]
    shown = [values[order] for values in drawn]
    largest = max((float(np.nanmax(v)) for v in shown if np.isfinite(v).any()), default=0.0)
    # Near the most there can be, the axis ends there
    ends = [0.0, 1.0] if largest > NEAR_THE_MOST else [0.0]
    return fit_round_scale([*shown, ends], MARGIN, WIDTH - MARGIN)


def _axis(scale: Scale, marks: list[float]) -> Markup:
    """Numbers of the drawings' common axis."""
    ticks = [
        element("text", f"{value:.6g}", x=f"{scale.at(value):.1f}", y=12, class_="tick middle")
        for value in marks
    ]
    return element("svg", ticks, viewBox=f"0 0 {WIDTH} {ROW}", class_="gap", aria_hidden="true")


def _row(
    audit: AuditData,
    alignment: Alignment,
    c: int,
    name: str,
    shown: list[str],
    scale: Scale | None,
) -> list[Child]:
    is_audited = name in audit.audited_columns
    head = join(user_text(name, 40), element("small", " audited") if is_audited else None)
    # An undefined column keeps its row: the reason stands in it
    if name in alignment.notes and not math.isfinite(alignment.gap[c]):
        meaning = element("span", user_text(alignment.notes[name]), class_="none")
        return [head, meaning, *("" for _ in ("gap", *shown))]
    drawn = None
    if scale is not None:
        drawn = _drawing(alignment, c, scale)
    gap = join(number(alignment.gap[c], digits=2), " ± ", number(2 * alignment.stderr[c], digits=2))
    controls = [number(getattr(alignment, name)[c], digits=2) for name in shown]
    return [head, drawn, gap, *controls]


def _drawing(alignment: Alignment, c: int, scale: Scale) -> Markup:
    """The gap of one column with its interval and the controls that decide."""
    gap, stderr = float(alignment.gap[c]), float(alignment.stderr[c])
    kernel_only = float(alignment.kernel_only[c])
    middle = ROW / 2
    # Zero line, controls, interval, ring of plain kernel, dot of the gap: later ones lie on top
    zero = f"{scale.at(0.0):.1f}"
    parts: list[Child] = [
        _chance(_known(alignment.chance, c), scale),
        element("line", x1=zero, x2=zero, y1=0, y2=ROW, class_="base"),
        _control_marks(_known(alignment.input_gap, c), _known(alignment.random_most, c), scale),
    ]
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


def _known(values: Array | None, c: int) -> float:
    return math.nan if values is None else float(values[c])


def _chance(chance: float, scale: Scale) -> Markup | None:
    """A band of the scatter by chance on both sides of zero."""
    if not math.isfinite(chance):
        return None
    low, high = scale.at(-chance), scale.at(chance)
    return element(
        "rect", x=f"{low:.1f}", y=0, width=f"{high - low:.1f}", height=ROW, class_="chance"
    )


def _control_marks(inputs: float, random_most: float, scale: Scale) -> Markup:
    """A stroke for the gap by inputs, a triangle for the most of random weights."""
    parts: list[Child] = []
    if math.isfinite(inputs):
        x = f"{scale.at(inputs):.1f}"
        parts.append(element("line", x1=x, x2=x, y1=1, y2=ROW - 1, class_="by-inputs"))
    if math.isfinite(random_most):
        x_middle = scale.at(random_most)
        corners = ((x_middle - 4, ROW - 2), (x_middle + 4, ROW - 2), (x_middle, ROW - 10))
        points = " ".join(f"{x:.1f},{y:g}" for x, y in corners)
        parts.append(element("polygon", points=points, class_="random"))
    return join(parts)
