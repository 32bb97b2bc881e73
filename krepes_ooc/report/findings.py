"""Fidelity figures beside their controls, alignment gaps and concepts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from krepes_ooc.report.charts import Axis, Chart
from krepes_ooc.report.data import Alignment, AuditData, Column, Curve, Figure
from krepes_ooc.report.markup import DASH, Child, Markup, element, join, number, table, user_text
from krepes_ooc.report.panel import Panel, absent
from krepes_ooc.report.scales import Scale, fit_scale

WIDTH, ROW = 300, 16
MAX_COLUMNS = 40


def fidelity_panel(audit: AuditData) -> Panel:
    """Every fidelity figure with its interval and the controls it must be read beside."""
    key, title = "fidelity", "How faithful is it?"
    if not audit.fidelity and not audit.curves:
        return absent(key, title, "No fidelity figure was measured.")
    rows = [_figure_row(name, figure) for name, figure in audit.fidelity.items()]
    head: list[Child] = ["figure", "value", "95 % interval", "beside it", "how to read it"]
    body = join(
        table(head, rows, caption="Fidelity figures and their controls", class_="wide")
        if rows
        else None,
        element("div", [_curve(n, c) for n, c in audit.curves.items()], class_="charts")
        if audit.curves
        else None,
    )
    figures = {
        "figures": {
            name: {
                "value": f.value,
                "controls": dict(f.controls),
                "interval": f.interval,
                "words": f.words or name,
                "note": f.note,
            }
            for name, f in audit.fidelity.items()
        },
        "curves": {n: {"x": c.x, "lines": dict(c.lines)} for n, c in audit.curves.items()},
    }
    return Panel(
        key, title, "A figure means little alone; its controls stand beside it.", body, figures
    )


def alignment_panel(audit: AuditData) -> Panel:
    """Alignment gaps, largest first, with standard errors and the kernel-only control."""
    key, title = "alignment", "Which columns the influence follows"
    found = audit.alignment
    if found is None or not audit.columns:
        return absent(key, title, "No alignment gap was measured (it needs a table's columns).")
    rank = np.argsort(-np.nan_to_num(found.gap, nan=-np.inf), kind="stable")
    order = [int(c) for c in rank[:MAX_COLUMNS]]
    lead = (
        "The gap says how much more a sample agrees with its top landmarks in this column than "
        "with landmarks drawn at random; 0 is no preference. The ring is the control: ranked by "
        "the kernel alone. Where ring and dot coincide, the kernel's geometry explains the gap, "
        "not the step."
    )
    head: list[Child] = [
        "column",
        "gap ± two standard errors",
        "gap",
        "standard error",
        "kernel only",
    ]
    if found.weighted is not None:
        head.append("weighted")
    across = _gap_scale(found)
    rows = [_gap_row(found, c, audit.columns[c], across) for c in order]
    left = len(audit.columns) - len(order)
    note = f"{left} columns with smaller gaps are in the JSON only." if left else None
    body = join(
        table(head, rows, caption="Alignment gaps", class_="wide"),
        element("p", note, class_="quiet") if note else None,
    )
    names = ("gap", "stderr", "kernel_only", "weighted")
    figures = {
        "columns": [column.name for column in audit.columns],
        **{name: getattr(found, name) for name in names},
    }
    return Panel(key, title, lead, body, figures)


def concepts_panel(audit: AuditData) -> Panel:
    """Concepts: how well each is recognised, and its mean score over the audited samples."""
    key, title = "concepts", "Concepts"
    found = audit.concepts
    if found is None or not found.names:
        return absent(key, title, "No concept was named in the recipe.")
    means = [float(np.nanmean(s)) if np.isfinite(s).any() else math.nan for s in found.score.T]
    rows: list[list[Child]] = [
        [user_text(name), number(found.accuracy[i]), number(means[i], signed=True)]
        for i, name in enumerate(found.names)
    ]
    head: list[Child] = ["concept", "held-out accuracy", "mean score"]
    lead = "A concept that is recognised no better than by chance (0.5) says nothing."
    body = table(head, rows, caption="Concepts")
    figures = {"names": list(found.names), "accuracy": found.accuracy, "mean_score": means}
    return Panel(key, title, lead, body, figures)


def _figure_row(name: str, figure: Figure) -> list[Child]:
    controls: list[Child] = [
        element("div", element("dt", user_text(words)), element("dd", number(value)))
        for words, value in figure.controls.items()
    ]
    low_high = (
        join(number(figure.interval[0]), " to ", number(figure.interval[1]))
        if figure.interval
        else element("span", DASH, class_="none")
    )
    return [
        user_text(figure.words or name.replace("_", " ")),
        element("strong", number(figure.value)),
        low_high,
        element("dl", controls) if controls else None,
        user_text(figure.note, 400),
    ]


def _curve(name: str, curve: Curve) -> Markup:
    chart = Chart(
        f"curve-{name}".replace(" ", "-"), curve.words, curve.note or curve.words,
        Axis(curve.x_words, curve.log_x), Axis(curve.y_words), curve.x, curve.lines,
    )  # fmt: skip
    return join(chart.render())


def _gap_scale(found: Alignment) -> Scale | None:
    error = 2 * np.nan_to_num(found.stderr)
    return fit_scale(
        [found.gap - error, found.gap + error, found.kernel_only, [0.0]], False, 0, WIDTH
    )


def _gap_row(found: Alignment, c: int, column: Column, across: Scale | None) -> list[Child]:
    measured: list[Any] = [found.gap[c], found.stderr[c], found.kernel_only[c]]
    if found.weighted is not None:
        measured.append(found.weighted[c])
    drawn = (
        _gap_drawing(measured[0], measured[1], measured[2], across) if across is not None else None
    )
    return [user_text(column.name, 40), drawn, *(number(value) for value in measured)]


def _gap_drawing(gap: float, stderr: float, kernel_only: float, across: Scale) -> Markup:
    middle = ROW / 2
    zero = f"{across.at(0.0):.1f}"
    parts: list[Child] = [element("line", x1=zero, x2=zero, y1=0, y2=ROW, class_="base")]
    if math.isfinite(gap):
        error = 2 * stderr if math.isfinite(stderr) else 0.0
        low, high = f"{across.at(gap - error):.1f}", f"{across.at(gap + error):.1f}"
        parts.append(element("line", x1=low, x2=high, y1=middle, y2=middle, class_="error"))
    if math.isfinite(kernel_only):
        parts.append(
            element("circle", cx=f"{across.at(kernel_only):.1f}", cy=middle, r=5, class_="ring")
        )
    if math.isfinite(gap):
        parts.append(element("circle", cx=f"{across.at(gap):.1f}", cy=middle, r=3, class_="dot"))
    return element("svg", parts, viewBox=f"0 0 {WIDTH} {ROW}", class_="gap", aria_hidden="true")
