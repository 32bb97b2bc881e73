"""The ranked and the most repelling landmarks of one audited sample, as cards show them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from krepes_ooc.rendering.data import Array, Influence, Landmarks
from krepes_ooc.rendering.drawing.markup import DASH, MINUS, Markup, element, number, to_plain
from krepes_ooc.rendering.drawing.sample_view import LandmarkSamples

# Below it one digit is enough, and all that fits under a picture.
SMALL = 1e-3
NOTHING_REPELS = "No landmark repels it."
NOTHING_NEAR = "No landmark is near it: every kernel value is 0, and the order says nothing."
SIGNS = {"attract": "+", "repel": MINUS, "neutral": ""}
# Figures of a landmark, as cards name them
MEANINGS = {
    "score": "score: ranks the landmarks of this sample by the measure of the audit",
    "contribution": "contribution: the landmark's term, projected on the sample's own embedding; "
    "above 0 it attracts, below 0 it repels",
    "k": "k: kernel value of the two",
}
NOT_RANKED = "not ranked: it is drawn as one of the most repelling landmarks"


@dataclass(frozen=True)
class LandmarkLink:
    """One landmark of one audited sample: its row, rank from 1, score, contribution, kernel.

    One that repels without being ranked has neither rank nor score. ``concepts`` says how far it
    moves the sample along each concept, by the concept's name; empty where none was measured.
    """

    row: int
    rank: int | None
    score: float
    contribution: float
    kernel: float
    concepts: Mapping[str, float] = field(default_factory=dict)

    @property
    def strongest_concept(self) -> tuple[str, float] | None:
        """The concept along which it moves the sample furthest; None without concepts."""
        moved = [(name, value) for name, value in self.concepts.items() if value]
        return max(moved, key=lambda pair: abs(pair[1]), default=None)

    @property
    def kind(self) -> str:
        """``attract``, ``repel`` or, without a sign, ``neutral``."""
        if not math.isfinite(self.contribution):
            return "neutral"
        return "attract" if self.contribution >= 0 else "repel"

    def figures(self) -> list[tuple[str, Markup]]:
        """Score, contribution and kernel value, those that were measured, named for people."""
        named = [
            ("score", self.score, False),
            ("contribution", self.contribution, True),
            ("k", self.kernel, False),
        ]
        return [
            (name, number(value, signed=signed, digits=2 if abs(value) >= SMALL else 1))
            for name, value, signed in named
            if math.isfinite(value)
        ]

    def describe(self) -> Markup:
        """The same as a list of names and values; one that is not ranked has a dash as score."""
        figures = self.figures()
        # A line of its own, so that the figures of all landmarks stand in line
        if self.rank is None:
            figures.insert(0, ("score", element("span", DASH, class_="none", title=NOT_RANKED)))
        pairs = [
            element("div", element("dt", name, title=MEANINGS[name]), element("dd", value))
            for name, value in figures
        ]
        return element("dl", pairs)

    def record(self) -> dict[str, Any]:
        """The figures as JSON."""
        named = {
            "rank": self.rank,
            "score": self.score,
            "contribution": self.contribution,
            "kernel": self.kernel,
        }
        found = {name: to_plain(value) for name, value in named.items()}
        return found | ({"concepts": to_plain(dict(self.concepts))} if self.concepts else {})


class LandmarkLinks(NamedTuple):
    """The ranked landmarks of a sample, and the most repelling ones that are not ranked.

    ``repelling_only`` is None where it was not measured.
    """

    ranked: list[LandmarkLink]
    repelling_only: list[LandmarkLink] | None


def links_of(landmarks: Landmarks, influence: Influence, rows: list[int]) -> list[LandmarkLinks]:
    """The landmarks of each given audited row; several views show their mean kernel."""
    samples = LandmarkSamples(landmarks)
    # Of several views the mean, as the sum would grow with their number
    kernel = None if influence.kernel is None else samples.mean(influence.kernel[rows])
    links: list[LandmarkLinks] = []
    for i, row in enumerate(rows):
        values = None if kernel is None else kernel[i]
        ranked = _ranked(samples, influence, row, values)
        repelling = _repelling_only(samples, influence, row, values)
        # A landmark that is ranked already is not shown twice
        ranked_rows = {link.row for link in ranked}
        further = None
        if repelling is not None:
            further = [link for link in repelling if link.row not in ranked_rows]
        links.append(LandmarkLinks(ranked, further))
    return links


def _ranked(
    samples: LandmarkSamples, influence: Influence, row: int, kernel: Array | None
) -> list[LandmarkLink]:
    links = []
    for rank, top in enumerate(influence.top_landmark[row]):
        # -1 pads the ranking of a sample that has fewer landmarks
        if top >= 0:
            signed = (
                math.nan
                if influence.contribution is None
                else float(influence.contribution[row, rank])
            )
            value = math.nan if kernel is None else float(kernel[top])
            score = float(influence.score[row, rank])
            links.append(LandmarkLink(int(samples.first_row[top]), rank + 1, score, signed, value))
    return links


def _repelling_only(
    samples: LandmarkSamples, influence: Influence, row: int, kernel: Array | None
) -> list[LandmarkLink] | None:
    if influence.repelling_landmark is None or influence.repelling is None:
        return None
    links = []
    for index, signed in zip(
        influence.repelling_landmark[row], influence.repelling[row], strict=True
    ):
        if index >= 0:
            value = math.nan if kernel is None else float(kernel[index])
            first = int(samples.first_row[index])
            links.append(LandmarkLink(first, None, math.nan, float(signed), value))
    return links
