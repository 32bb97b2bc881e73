"""Fidelity figures, each beside its controls, and the curves."""

from __future__ import annotations

from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.line_chart import Axis, Chart
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
from krepes_ooc.rendering.measured import Curve, Figure
from krepes_ooc.rendering.panels.panel import Panel, absent


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
