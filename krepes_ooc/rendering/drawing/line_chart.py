"""Small line charts as inline SVG, each with its figures in a table for those who cannot see it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array
from krepes_ooc.rendering.drawing.markup import (
    Child,
    Markup,
    element,
    format_number,
    join,
    number,
    table,
    to_plain,
)

# Drawing units of the view box; the page scales it
WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 30, 46
# Height of one line of text
LINE_GAP = 15
# With more points than this, dots would merge into a band
MAX_DOTS = 40
# Rows of a table before its steps widen
ALL_ROWS = 16

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """Label of an axis, and whether it is logarithmic."""

    words: str
    log: bool = False


@dataclass(frozen=True, eq=False)
class Chart:
    """A line chart.

    Args:
        key: unique in the page.
        title: heading.
        words: what is seen, for those who cannot see it.
        x_axis: the horizontal axis.
        y_axis: the vertical axis.
        x: [point].
        lines: name in words -> [point]; NaN breaks the line.
        marks: vertical lines: words -> x.
        levels: horizontal lines: words -> y.
        tabled: whether the figures are folded under the chart; False if they stand elsewhere.
    """

    key: str
    title: str
    words: str
    x_axis: Axis
    y_axis: Axis
    x: Array
    lines: Mapping[str, Array]
    marks: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    tabled: bool = True

    def render(self) -> Markup:
        """The chart as a figure, with its table folded under it."""
        return element(
            "figure",
            element("figcaption", self.title),
            self._drawing(),
            element("details", element("summary", "Figures of this chart"), self._table())
            if self.tabled
            else None,
            class_="chart",
            data_name=self.key,
            data_series=self._series(),
        )

    def _series(self) -> str:
        """All figures of the chart as JSON, which the page's script saves as CSV."""
        columns = [self.x, *self.lines.values()]
        rows = [to_plain(list(row)) for row in zip(*columns, strict=True)]
        series = {"head": [self.x_axis.words, *self.lines], "rows": to_plain(rows)}
        return json.dumps(series, separators=(",", ":"), allow_nan=False)

    def _drawing(self) -> Markup:
        x_scale = fit_scale(
            [self.x, list(self.marks.values())], self.x_axis.log, LEFT, WIDTH - RIGHT
        )
        # Levels are to be seen even where no line reaches them
        heights = [*self.lines.values(), list(self.levels.values())]
        y_scale = fit_scale(heights, self.y_axis.log, HEIGHT - BOTTOM, TOP, margin=0.08)
        if x_scale is None or y_scale is None:
            return element("p", "Nothing to draw: no value was measured.", class_="none")
        # Marks without a place, such as 0 on a logarithmic axis, are left out below
        marks = [(words, x_scale.at(value)) for words, value in self.marks.items()]
        levels = [
            _level(words, y_scale.at(y), self._left_is_free(y)) for words, y in self.levels.items()
        ]
        return element(
            "svg",
            element("title", self.title, id=f"{self.key}-title"),
            element("desc", self.words, id=f"{self.key}-desc"),
            _grid(x_scale, y_scale),
            _axis_words(self.x_axis, self.y_axis),
            levels,
            _marks([(words, place) for words, place in marks if math.isfinite(place)]),
            [
                _line(
                    order, [(x_scale.at(a), y_scale.at(b)) for a, b in zip(self.x, y, strict=True)]
                )
                for order, y in enumerate(self.lines.values())
            ],
            # A single line is named by its axis
            self._names() if len(self.lines) > 1 else None,
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_labelledby=f"{self.key}-title {self.key}-desc",
        )

    def _left_is_free(self, level: float) -> bool:
        """True if the lines begin farther from a level than they end: its words go there."""
        # First and last measured value of every line
        ends = [
            line[np.isfinite(line)][[0, -1]]
            for line in self.lines.values()
            if np.isfinite(line).any()
        ]
        return bool(min(abs(e[0] - level) for e in ends) > min(abs(e[1] - level) for e in ends))

    def _names(self) -> Markup:
        """The lines' names in one row under the top edge, each behind a stroke of its line."""
        parts: list[Child] = []
        place = float(LEFT)
        for order, name in enumerate(self.lines):
            stroke = element("line", x1=place, x2=place + 18, y1=10, y2=10)
            words = element("text", name, x=place + 24, y=14)
            parts.append(element("g", stroke, words, class_=f"key line-{order}"))
            # 44 units for stroke and gaps, 6.6 for a character of the font
            place += 44 + 6.6 * len(name)
        return join(parts)

    def _table(self) -> Markup:
        rows: list[list[Child]] = [
            [number(self.x[i]), *(number(values[i]) for values in self.lines.values())]
            for i in thinned_indices(len(self.x))
        ]
        return table([self.x_axis.words, *self.lines], rows, caption=self.title)


def thinned_indices(length: int) -> list[int]:
    """All positions of a short series; of a long one the first sixteen, then ever wider steps."""
    chosen = []
    place = 0
    while place < length:
        chosen.append(place)
        # A quarter more each time: about 8 rows for a decade
        place += 1 if place < ALL_ROWS else max(1, place // 4)
    # The last value is the one that is quoted
    if length and chosen[-1] != length - 1:
        chosen.append(length - 1)
    return chosen


def bar(share: float, kind: str) -> Markup:
    """A horizontal bar that fills ``share`` of its cell; decoration beside a printed figure."""
    width = 0.0 if not math.isfinite(share) else max(0.0, min(1.0, share))
    fill = element("rect", width=f"{100 * width:.1f}%", height="100%", class_=f"fill {kind}")
    track = element("rect", width="100%", height="100%", class_="track")
    return element("svg", track, fill, class_="bar", aria_hidden="true")


def _grid(x_scale: Scale, y_scale: Scale) -> Markup:
    parts: list[Child] = []
    for value in y_scale.ticks():
        y = f"{y_scale.at(value):.1f}"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        # Six digits hide the rounding of index times step
        words = format_number(float(f"{value:.6g}"))
        parts.append(element("text", words, x=LEFT - 8, y=y, dy="0.32em", class_="tick end"))
    # The x axis; a y axis line would add nothing to the grid
    base = HEIGHT - BOTTOM
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="base"))
    for value in x_scale.ticks():
        x = f"{x_scale.at(value):.1f}"
        parts.append(element("line", x1=x, x2=x, y1=base, y2=base + 4, class_="base"))
        parts.append(
            element(
                "text", format_number(float(f"{value:.6g}")), x=x, y=base + 17, class_="tick middle"
            )
        )
    return element("g", parts, aria_hidden="true")


def _axis_words(x_axis: Axis, y_axis: Axis) -> Markup:
    middle = (LEFT + WIDTH - RIGHT) / 2
    height = (TOP + HEIGHT - BOTTOM) / 2
    below = element("text", x_axis.words, x=middle, y=HEIGHT - 8, class_="words middle")
    turned = f"rotate(-90 14 {height})"
    beside = element("text", y_axis.words, x=14, y=height, transform=turned, class_="words middle")
    return join(below, beside)


def _level(words: str, y: float, left: bool) -> Markup | None:
    if not math.isfinite(y):
        return None
    line = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="level")
    place = LEFT + 4 if left else WIDTH - RIGHT
    text = element("text", words, x=place, y=f"{y - 5:.1f}", class_="note" if left else "note end")
    return join(line, text)


def _marks(marks: list[tuple[str, float]]) -> Markup:
    """Vertical lines; their words step down so that near ones do not overprint."""
    parts: list[Child] = []
    for order, (words, x) in enumerate(sorted(marks, key=lambda mark: mark[1])):
        line = element(
            "line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP, y2=HEIGHT - BOTTOM, class_="mark"
        )
        # Words of a mark in the right half go to its left, inside the drawing
        late = x > (LEFT + WIDTH - RIGHT) / 2
        text = element(
            "text",
            words,
            x=f"{x - 5 if late else x + 5:.1f}",
            y=TOP + 12 + LINE_GAP * order,
            class_="note end" if late else "note",
        )
        parts += [line, text]
    return join(parts)


def _line(order: int, points: list[Point]) -> Markup:
    runs = _runs(points)
    strokes = [
        element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in run)) for run in runs
    ]
    every = [point for run in runs for point in run]
    # Of a long series only points that no stroke would show
    shown = every if len(points) <= MAX_DOTS else [run[0] for run in runs if len(run) == 1]
    dots = [element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3) for x, y in shown]
    return element("g", strokes, dots, class_=f"line line-{order}")


def _runs(points: list[Point]) -> list[list[Point]]:
    """Unbroken stretches of points that can be drawn."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            runs[-1].append(point)
        # NaN ends a run; several in a row end it once
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


# More labels would overprint
MAX_DECADE_TICKS = 6


@dataclass(frozen=True)
class Scale:
    """A map of [low, high] (exponents of ten if ``log``) onto [start, stop] in drawing units."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value; NaN where it cannot be drawn."""
        value = float(value)
        if self.log:
            # A logarithmic scale is linear in the exponent
            value = math.log10(value) if value > 0 else math.nan
        if not math.isfinite(value):
            return math.nan
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the range: powers of ten, or steps of 1, 2 or 5."""
        # Powers of ten alone would leave one tick or none
        if self.log and self.high - self.low < 2:
            return self._fine_ticks()
        if self.log:
            first, last = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
            # As few decades apart as the labels allow
            every = max(1, -(-(last - first + 1) // MAX_DECADE_TICKS))
            return [10.0**power for power in range(first, last + 1, every)]
        return _even_ticks(self.low, self.high)

    def _fine_ticks(self) -> list[float]:
        """Ticks over less than two decades: 1, 2, 5; even steps if those are too few."""
        low, high = 10.0**self.low, 10.0**self.high
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        inside = [mark for mark in marks if low <= mark <= high]
        return inside if len(inside) >= 3 else [t for t in _even_ticks(low, high) if t > 0]


def fit_scale(
    values: Sequence[Any], log: bool, start: float, stop: float, margin: float = 0.04
) -> Scale | None:
    """The scale that shows all values; None if there is none to show.

    Args:
        values: arrays or lists; what is not finite (or not above 0 if ``log``) is left out.
        log: whether the scale is logarithmic.
        start: where ``low`` is drawn.
        stop: where ``high`` is drawn.
        margin: free share at both ends.
    """
    flat = np.concatenate([np.asarray(v, dtype=np.float64).ravel() for v in values])
    # What cannot be drawn must not stretch the scale
    flat = flat[np.isfinite(flat) & ((flat > 0) | (not log))]
    if not flat.size:
        return None
    flat = np.log10(flat) if log else flat
    low, high = float(flat.min()), float(flat.max())
    # A flat line still needs a range to stand in the middle of.
    pad = (high - low) * margin or (0.5 if log else abs(high) * 0.1 or 1.0)
    return Scale(low - pad, high + pad, start, stop, log)


def fit_round_scale(
    values: Sequence[Any], start: float, stop: float
) -> tuple[Scale, list[float]] | None:
    """A linear scale from tick to tick around all values, and its ticks; None without a value.

    Args:
        values: arrays or lists; what is not finite is left out.
        start: where the first tick is drawn, or a value just below it.
        stop: where the last tick is drawn.
    """
    flat = np.concatenate([np.asarray(v, dtype=np.float64).ravel() for v in values])
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return None
    low, high = float(flat.min()), float(flat.max())
    step = _round_step((high - low) / 6 or 0.25)
    # Outward to whole steps, so that no mark lies beyond the last tick
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # A mark just below a tick needs no step of its own
    first += low / step - first > 0.5
    last = max(last, first + 1)
    ticks = [index * step for index in range(first, last + 1)]
    return Scale(min(low, ticks[0]), ticks[-1], start, stop), ticks


def _even_ticks(low: float, high: float) -> list[float]:
    step = _round_step((high - low) / 4)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _round_step(rough: float) -> float:
    # The smallest of 1, 2, 5, 10 times a power of ten that is not below the rough step
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
