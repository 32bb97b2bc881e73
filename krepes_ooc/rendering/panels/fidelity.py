"""Fidelity figures, each beside its controls, and the curves."""

from __future__ import annotations

from typing import Any

from krepes_ooc.core.figure_specs import MEASURE_KEYS, MEASURES
from krepes_ooc.core.figures import Control, Curve, Figure
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
from krepes_ooc.rendering.panels.panel import Panel, absent


def fidelity_panel(audit: AuditData) -> Panel:
    """Every fidelity figure with its interval and the controls it must be read beside."""
    key = "fidelity"
    title = "Fidelity metrics"
    if not audit.fidelity and not audit.curves:
        return absent(key, title, "No fidelity figure was measured.")
    rows = [_figure_row(audit, figure) for figure in audit.fidelity.values()]
    # Controls stand in the same row: a figure alone means little
    head: list[Child] = ["figure", "value", "95 % interval", "random weights"]
    head += ["baselines and controls", "definition"]
    body = join(
        table(head, rows, caption="Fidelity figures and their controls", class_="wide")
        if rows
        else None,
        element("div", [_chart(curve) for curve in audit.curves.values()], class_="charts")
        if audit.curves
        else None,
    )
    figures = {
        "figures": {
            key: {
                "value": figure.value,
                "controls": figure.values,
                "random_weights": _random_values(audit, key),
                "interval": figure.interval,
                "at_ceiling": figure.at_ceiling,
                "paired": {
                    name: {"value": pair.value, "interval": pair.interval, "label": pair.label}
                    for name, pair in figure.paired.items()
                },
                "label": figure.label,
                "note": figure.note,
            }
            for key, figure in audit.fidelity.items()
        },
        "curves": {
            key: {"x": curve.x, "lines": dict(curve.lines)} for key, curve in audit.curves.items()
        },
    }
    return Panel(key, title, "Read each figure beside its baselines and controls.", body, figures)


def _figure_row(audit: AuditData, figure: Figure) -> list[Child]:
    controls: list[Child] = [
        element("div", element("dt", control.label), element("dd", number(control.value)))
        for control in figure.controls.values()
    ]
    controls += [_paired(pair) for pair in figure.paired.values()]
    # A dash, not "not measured": most figures have no interval by design
    low_high = (
        join(number(figure.interval[0]), " to ", number(figure.interval[1]))
        if figure.interval
        else element("span", DASH, class_="none")
    )
    return [
        _title(audit, figure),
        join(
            element("strong", number(figure.value)),
            ", at the ceiling" if figure.at_ceiling else None,
        ),
        low_high,
        _random_cell(audit, figure.key),
        element("dl", controls) if controls else None,
        user_text(figure.note, 400),
    ]


def _random_values(audit: AuditData, key: str) -> dict[str, Any] | None:
    """Figure of the audited network and of random weights on the same rows; None: not measured."""
    found = audit.random_fidelity.get(key)
    return None if found is None or found["value"] is None else dict(found)


def _random_cell(audit: AuditData, key: str) -> Child:
    """Range of networks with random weights, and the audited network on the same rows."""
    found = _random_values(audit, key)
    if found is None:
        return element("span", "not measured", class_="none")
    return join(
        number(found["low"]), " to ", number(found["high"]),
        "; this network on the same rows ", number(found["value"]),
    )  # fmt: skip


def _paired(pair: Control) -> Markup:
    """A difference to a control over the same samples, with its interval."""
    low_high: Child = None
    if pair.interval:
        low_high = join(" (", number(pair.interval[0]), " to ", number(pair.interval[1]), ")")
    return element(
        "div", element("dt", pair.label), element("dd", join(number(pair.value), low_high))
    )


def _title(audit: AuditData, figure: Figure) -> str:
    """The label; of a figure about the ranking, with the measure that ranks."""
    if figure.key != "precision_at_1" or audit.influence is None:
        return figure.label
    return f"{figure.label}: {MEASURES[MEASURE_KEYS[audit.influence.measure]]}"


def _chart(curve: Curve) -> Markup:
    spec = curve.spec
    chart = Chart(
        f"curve-{curve.key}",
        spec.label,
        curve.note,
        Axis(spec.x_label, log=True),
        Axis(spec.y_label),
        curve.x,
        curve.labelled_lines,
    )
    return chart.render()
