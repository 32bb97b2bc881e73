"""The figures of the page of results: line charts of the measured cells, as SVG files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper_cells import OBJECTIVES
from krepes_ooc.rendering.drawing.line_chart import Axis, Chart

Found = dict[str, Any]
# A file of its own has no style sheet: white paper, lines told apart without colour too.
STYLE = """
svg { background: #fff; } text { font: 12px sans-serif; fill: #444; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
polyline { fill: none; stroke-width: 2; } .grid { stroke: #ddd; } .base { stroke: #666; }
.level, .mark { stroke: #999; stroke-dasharray: 3 3; }
.line-0 polyline, .line-0 line { stroke: #1b6ca8; } .line-0 circle { fill: #1b6ca8; }
.line-1 polyline, .line-1 line { stroke: #c0392b; stroke-dasharray: 7 4; }
.line-1 circle { fill: #c0392b; }
.line-2 polyline, .line-2 line { stroke: #2e7d32; stroke-dasharray: 2 4; }
.line-2 circle { fill: #2e7d32; }
.line-3 polyline, .line-3 line { stroke: #777; stroke-dasharray: 10 3 2 3; }
.line-3 circle { fill: #777; }
"""
KINDS = {"tau": "Kendall tau-b", "gap": "gap to the network's probe, points"}


def standalone(chart: Chart) -> str:
    """The drawing of a chart as a file of its own.

    Raises:
        ValueError: nothing was measured.
    """
    found = re.search(r"<svg.*</svg>", str(chart.render()), re.DOTALL)
    if found is None:
        raise ValueError(f"{chart.title}: nothing to draw")
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    drawing = found[0].replace("<svg ", head, 1)
    return drawing.replace(">", f"><style>{STYLE}</style>", 1) + "\n"


def over_components(cells: Iterable[Found], data: str, kind: str) -> Chart | None:
    """Tau or the gap against h: embeddings at the start, means over seeds."""
    lines: dict[str, list[list[float]]] = {}
    x: list[float] = []
    for found in cells:
        curve = found["curves"].get(f"{kind}_over_components")
        if found["data"] == data and curve:
            x = curve["x"]
            lines.setdefault(found["objective"], []).append(curve["lines"]["start"])
    means = {o: np.mean(lines[o], axis=0) for o in OBJECTIVES if o in lines}
    words = f"{data}: {KINDS[kind]} of the start against components h, by objective."
    return _chart(f"{data}-{kind}-h", words, Axis("components h", log=True), kind, x, means)


def over_landmarks(cells: Iterable[Found], data: str, kind: str) -> Chart | None:
    """Tau or the gap against m: audits after the step, one network for each objective."""
    name = {"tau": "kendall_tau", "gap": "accuracy_gap"}[kind]
    points: dict[str, dict[int, float]] = {}
    for found in cells:
        value = found["figures"].get(name, {}).get("value")
        if (found["data"], found["seed"]) == (data, 0) and value is not None:
            points.setdefault(found["objective"], {})[found["landmarks"]] = value
    x = sorted({m for line in points.values() for m in line})
    lines = {
        o: np.array([points[o].get(m, np.nan) for m in x])
        for o in OBJECTIVES
        if len(points.get(o, ())) > 1
    }
    words = f"{data}: {KINDS[kind]} after the step against landmarks m, by objective."
    return _chart(f"{data}-{kind}-m", words, Axis("landmarks m", log=True), kind, x, lines)


def _chart(
    key: str, words: str, across: Axis, kind: str, x: list[float], lines: dict[str, np.ndarray]
) -> Chart | None:
    if len(x) < 2 or not lines:
        return None
    return Chart(key, words, words, across, Axis(KINDS[kind]), np.asarray(x, float), lines)


def draw(cells: list[Found], folder: Path) -> str:
    """Write every figure that can be drawn; the page's lines that show them."""
    plain = [c for c in cells if c["variant"] == "default"]
    swept = [c for c in cells if c["variant"] == "default" or c["variant"].startswith("m = ")]
    shown = []
    for data in sorted({c["data"] for c in cells}):
        for kind in KINDS:
            for chart in (over_landmarks(swept, data, kind), over_components(plain, data, kind)):
                if chart is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{chart.key}.svg").write_text(standalone(chart), encoding="utf-8")
                    shown.append(f"![{chart.words}]({folder.name}/{chart.key}.svg)")
    return "\n".join(shown) or "Not measured."
