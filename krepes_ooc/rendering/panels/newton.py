"""The step over its dampings, the solver's way, and the spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData, Newton
from krepes_ooc.rendering.drawing.line_chart import Axis, Chart
from krepes_ooc.rendering.drawing.markup import (
    Child,
    Markup,
    element,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.panels.panel import Panel, absent

# Ratio of real to predicted decrease below which the quadratic model is no guide.
LEAST_RHO = 0.25
SWEPT = {
    "loss": "loss after the step",
    "predicted": "predicted decrease",
    "rho": "rho",
    "step_norm": "length of the step",
    "stability": "top landmarks kept",
    "entropy": "spectral entropy",
}


def step_panel(audit: AuditData) -> Panel:
    """The step: what was solved, the damping sweep, the solver's convergence."""
    key = "step"
    title = "Newton step"
    if audit.newton is None:
        return absent(key, title, "No step was computed.")
    newton = audit.newton
    # Charts first, the whole sweep as a table behind them
    charts = [chart.render() for chart in (*_sweep_charts(newton), *_residual_chart(newton))]
    lead = (
        "One damped step from the principal components: more damping, a shorter and safer step. "
        "The damping in use is marked."
    )
    body = join(
        _attributes(newton),
        element("div", charts, class_="charts")
        if charts
        else element("p", "No sweep was kept.", class_="quiet"),
        _sweep_table(newton),
    )
    figures = {
        "attributes": dict(newton.attributes),
        "sweep": dict(newton.sweep),
        "residual": newton.residual,
        "iteration": [] if newton.residual is None else list(range(len(newton.residual))),
    }
    return Panel(key, title, lead, body, figures)


def attribute_list(pairs: list[tuple[str, Any]], class_: str = "facts") -> Markup:
    """Names and values as a list; text is taken as a user's, numbers as figures."""
    return element(
        "dl",
        [
            element("div", element("dt", user_text(name)), element("dd", format_value(v)))
            for name, v in pairs
        ],
        class_=class_,
    )


def format_value(value: Any) -> Markup:
    """One value of unknown type for people."""
    # bool before int, of which it is a subclass
    if isinstance(value, bool | np.bool_):
        return Markup("yes" if value else "no")
    if value is None or isinstance(value, int | float | np.number):
        return number(value)
    return user_text(str(value), 400)


def _attributes(newton: Newton) -> Markup:
    # Nested settings are flattened by one level; deeper values are diagnostics
    simple = {k: v for k, v in newton.attributes.items() if not isinstance(v, dict | list | tuple)}
    nested = {
        f"{key}: {name}": value
        for key, values in newton.attributes.items()
        if isinstance(values, dict)
        for name, value in values.items()
        if not isinstance(value, dict | list | tuple)
    }
    pairs = [(name.replace("_", " "), value) for name, value in (simple | nested).items()]
    return element(
        "details", element("summary", "Settings and results of the step"), attribute_list(pairs)
    )


def _sweep_charts(newton: Newton) -> list[Chart]:
    damping = newton.sweep.get("damping")
    if damping is None or not len(damping):
        return []
    # Where the sweep is drawn, the chosen damping and the reference levels are marked
    used = newton.attributes.get("damping")
    marks = {} if used is None else {"in use": float(used)}
    start = newton.attributes.get("loss_start")
    levels: dict[str, dict[str, float]] = {
        "loss": {} if start is None else {"loss at the start": float(start)},
        "rho": {f"least rho to trust: {LEAST_RHO}": LEAST_RHO},
    }
    # Title and description of every chart, in reading order
    words = {
        "loss": ("Loss after the step", "The loss after the step for each damping."),
        "rho": (
            "Gain ratio rho: real over predicted decrease",
            "The ratio rho for each damping.",
        ),
        "step_norm": ("Length of the step", "The length of the step for each damping."),
        "stability": (
            "Top landmarks kept from one damping to the next",
            "Overlap for each damping.",
        ),
        "entropy": ("Spectral entropy of the step", "The normalised spectral entropy."),
    }
    x_axis = Axis("damping", log=True)
    return [
        Chart(
            f"sweep-{name}", *words[name], x_axis, Axis(SWEPT[name], log=name == "step_norm"),
            damping, {SWEPT[name]: newton.sweep[name]}, marks, levels.get(name, {}), tabled=False,
        )
        for name in words
        if name in newton.sweep and np.isfinite(newton.sweep[name]).any()
    ]  # fmt: skip


def _residual_chart(newton: Newton) -> list[Chart]:
    residual = newton.residual
    if residual is None or len(residual) < 2:
        return []
    # The level that the curve must reach
    tolerance = newton.attributes.get("tolerance")
    levels = {} if tolerance is None else {"tolerance": float(tolerance)}
    steps: Array = np.arange(len(residual))
    return [
        Chart(
            "residual", "Residual of the solver", "The relative residual, falling by iteration.",
            Axis("iteration"), Axis("relative residual", log=True),
            steps, {"residual": residual}, levels=levels,
        )
    ]  # fmt: skip


def _sweep_table(newton: Newton) -> Markup | None:
    damping = newton.sweep.get("damping")
    if damping is None or not len(damping):
        return None
    # Columns that this objective has
    named = [name for name in SWEPT if name in newton.sweep]
    rows: list[list[Child]] = [
        [number(value), *(number(newton.sweep[name][i]) for name in named)]
        for i, value in enumerate(damping)
    ]
    head: list[Child] = ["damping", *(SWEPT[name] for name in named)]
    summary = element("summary", "The whole sweep as a table")
    return element("details", summary, table(head, rows, caption="Damping sweep"))
