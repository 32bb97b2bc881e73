"""The ranked landmarks of one audited sample, as cards and tables show them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from krepes_ooc.report.data import Influence, Landmarks
from krepes_ooc.report.markup import MINUS, Markup, element, number, to_plain
from krepes_ooc.report.portrait import LandmarkSamples

# Below it one digit is enough, and all that fits under a picture.
SMALL = 1e-3
SIGNS = {"attract": "+", "repel": MINUS, "neutral": ""}


@dataclass(frozen=True)
class Link:
    """One landmark of one audited sample: its row, rank from 1, score, pull and kernel value."""

    row: int
    rank: int
    score: float
    signed: float
    kernel: float

    @property
    def kind(self) -> str:
        """``attract``, ``repel`` or, without a sign, ``neutral``."""
        if not math.isfinite(self.signed):
            return "neutral"
        return "attract" if self.signed >= 0 else "repel"

    def figures(self) -> list[tuple[str, Markup]]:
        """Score, pull and kernel value, those that were measured, named for people."""
        named = [
            ("score", self.score, False),
            ("pull", self.signed, True),
            ("k", self.kernel, False),
        ]
        return [
            (name, number(value, signed=signed, digits=2 if abs(value) >= SMALL else 1))
            for name, value, signed in named
            if math.isfinite(value)
        ]

    def describe(self) -> Markup:
        """The same as a list of names and values."""
        pairs = [
            element("div", element("dt", name), element("dd", value))
            for name, value in self.figures()
        ]
        return element("dl", pairs)

    def record(self) -> dict[str, Any]:
        """The figures as JSON."""
        named = {
            "rank": self.rank,
            "score": self.score,
            "signed": self.signed,
            "kernel": self.kernel,
        }
        return {name: to_plain(value) for name, value in named.items()}


def links_of(landmarks: Landmarks, influence: Influence, rows: list[int]) -> list[list[Link]]:
    """The ranked landmarks of each given audited row; several views show their mean kernel."""
    samples = LandmarkSamples(landmarks)
    kernel = None if influence.kernel is None else samples.mean(influence.kernel[rows])
    found: list[list[Link]] = []
    for place, row in enumerate(rows):
        links = []
        for rank, top in enumerate(influence.top_landmark[row]):
            if top < 0:
                continue
            signed = math.nan if influence.signed is None else float(influence.signed[row, rank])
            value = math.nan if kernel is None else float(kernel[place, top])
            score = float(influence.score[row, rank])
            links.append(Link(int(samples.first_row[top]), rank + 1, score, signed, value))
        found.append(links)
    return found
