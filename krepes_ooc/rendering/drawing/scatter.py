"""Scatter plot of samples and landmarks as inline SVG, coloured by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krepes_ooc.rendering.drawing.line_chart import Scale
from krepes_ooc.rendering.drawing.markup import Child, Markup, element, shorten
from krepes_ooc.rendering.measured import Array

# Drawing units of the view box
WIDTH = 560
HEIGHT = 420
MARGIN = 14
# Colours of the style sheet; further classes share the last one, which is grey.
COLOURS = 10
SAMPLE = 3.2
LANDMARK = 5.0
OTHER = COLOURS
NAME_LIMIT = 16
# Names of classes: width of a letter, and distance of lines that do not touch
LETTER = 9
NAME_LINE = 17


@dataclass(frozen=True, eq=False)
class Scatter:
    """Samples as dots, landmarks as rings.

    Args:
        key: unique in the page.
        title: heading.
        words: what is seen, for those who cannot see it.
        samples: [sample, 2].
        landmarks: [landmark, 2].
        sample_colour: number of the colour [sample].
        landmark_colour: [landmark].
        names: text at the median of the samples of a colour.
    """

    key: str
    title: str
    words: str
    samples: Array
    landmarks: Array
    sample_colour: Array
    landmark_colour: Array
    names: Sequence[str]

    def render(self) -> Markup:
        """The drawing."""
        x_scale, y_scale = self._scales()
        rings = _circles(self.landmarks, self.landmark_colour, (x_scale, y_scale), LANDMARK)
        dots = _circles(self.samples, self.sample_colour, (x_scale, y_scale), SAMPLE)
        return element(
            "svg",
            element("title", self.title, id=f"{self.key}-title"),
            element("desc", self.words, id=f"{self.key}-desc"),
            element("g", rings, class_="rings"),
            element("g", dots, class_="dots"),
            element("g", self._names(x_scale, y_scale), class_="names"),
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_labelledby=f"{self.key}-title {self.key}-desc",
        )

    def _scales(self) -> tuple[Scale, Scale]:
        """Scales of equal length on both axes, so that distances are those of the plane."""
        points = np.concatenate([self.samples, self.landmarks])
        low = points.min(axis=0)
        high = points.max(axis=0)
        middle = (low + high) / 2
        sheet = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
        # A single point still needs a range to stand in the middle of
        unit = max(*((high - low) / sheet), 1e-300)
        half = unit * sheet / 2
        return (
            Scale(middle[0] - half[0], middle[0] + half[0], MARGIN, WIDTH - MARGIN),
            Scale(middle[1] - half[1], middle[1] + half[1], HEIGHT - MARGIN, MARGIN),
        )

    def _names(self, x_scale: Scale, y_scale: Scale) -> list[Child]:
        words, places = [], []
        for colour, name in enumerate(self.names):
            mine = self.samples[self.sample_colour == colour]
            if not len(mine):
                continue
            x, y = np.median(mine, axis=0)
            words.append(shorten(name, NAME_LIMIT))
            places.append((x_scale.at(x), y_scale.at(y)))
        return [
            element("text", word, x=f"{x:.0f}", y=f"{y:.0f}", dy="0.35em", class_="middle")
            for word, (x, y) in zip(words, separate_names(words, places), strict=True)
        ]


def separate_names(
    words: Sequence[str], places: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Places of names that do not cover each other: from the top, each below those it touches.

    Args:
        words: the names.
        places: middle of each, in drawing units.
    """
    found = list(places)
    done: list[int] = []
    for i in sorted(range(len(words)), key=lambda i: (places[i][1], i)):
        x, y = places[i]
        # Those above first, so that one pass is enough
        for j in sorted(done, key=lambda j: found[j][1]):
            reach = LETTER * (len(words[i]) + len(words[j])) / 2
            if abs(found[j][0] - x) < reach and abs(found[j][1] - y) < NAME_LINE:
                y = found[j][1] + NAME_LINE
        found[i] = (x, y)
        done.append(i)
    return found


def colours_of(codes: Array) -> tuple[Array, list[int]]:
    """Colours of codes, the most frequent codes first, and the code of every colour.

    Args:
        codes: [sample]; below 0: none.

    Returns:
        Colour [sample], ``OTHER`` for codes beyond the palette and for none, and the codes.
    """
    known, count = np.unique(codes[codes >= 0], return_counts=True)
    # Of many codes the most frequent ones; few keep their order
    chosen = known
    if len(known) > COLOURS:
        chosen = np.sort(known[np.argsort(-count, kind="stable")[:COLOURS]])
    return colours_among(codes, chosen.tolist()), chosen.tolist()


def colours_among(codes: Array, chosen: Sequence[int]) -> Array:
    """Colour of every code, ``OTHER`` for what is not among the chosen codes [sample]."""
    found = np.full(len(codes), OTHER, dtype=np.int64)
    for colour, code in enumerate(chosen):
        found[codes == code] = colour
    return found


def _circles(
    points: Array, colour: Array, scales: tuple[Scale, Scale], radius: float
) -> list[Child]:
    x_scale, y_scale = scales
    return [
        element(
            "circle",
            cx=f"{x_scale.at(x):.1f}",
            cy=f"{y_scale.at(y):.1f}",
            r=radius,
            class_=f"k{int(k)}",
        )
        for (x, y), k in zip(points, colour, strict=True)
    ]
