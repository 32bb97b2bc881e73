"""One explained sample as a PNG card: attracting landmarks above, repelling ones below."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from krepes_ooc.rendering.drawing.sample_view import SampleView, plain_cell
from krepes_ooc.rendering.drawing.thumbnails import to_picture
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.rendering.landmark_links import NOTHING_NEAR, NOTHING_REPELS, LandmarkLink

MARGIN = 32
TILE = 96
GAP = 20
LINE = 20
MOST = 5
MOST_REPELLING = 1
MOST_CONCEPTS = 3
MOST_COLUMNS = 14
MOST_TILES = 7
CELL = 132
HEAD = 150
INK = "#22252a"
SOFT = "#5f656d"
PAPER = "#fbfaf7"
AGREES = "#f0ecdd"
COLOURS = {"attract": "#1d6a8c", "repel": "#b3501f", "neutral": "#6b6f76"}
HEADINGS = {"attract": "attracting", "repel": "repelling", "neutral": "strongest"}


def draw_card(
    explained: Explained,
    headline: Sequence[str] | None = None,
    headings: Mapping[str, str] = HEADINGS,
) -> bytes:
    """The card as PNG bytes.

    Args:
        explained: the sample and its landmarks.
        headline: lines below its name; None: the counts of landmarks.
        headings: words for every kind of landmark.
    """
    canvas = _Canvas.start(explained, _counts(explained) if headline is None else headline)
    if explained.agrees is not None and explained.sample.picture(explained.row) is None:
        _draw_rows(canvas, explained, headings)
    else:
        _draw_tiles(canvas, explained, headings)
    return canvas.finish()


def _counts(explained: Explained) -> list[str]:
    """Numbers of landmarks that attract and repel, in words."""
    counts = explained.counts
    counted = f"{counts['attract']} landmarks attract it, {counts['repel']} repel it"
    if explained.repelling_only:
        counted += f", {len(explained.repelling_only)} more repel it"
    lines = [counted, *([NOTHING_REPELS] if explained.nothing_repels else [])]
    if explained.is_far:
        lines = [NOTHING_NEAR]
    if explained.concepts is not None and explained.concepts.scores:
        first = explained.concepts.first(MOST_CONCEPTS)
        words = [
            f"{'shows ' if each.shows else ''}{each.title} {each.score:+.2g}" for each in first
        ]
        lines.append(f"moved along concepts: {'; '.join(words)}")
    return lines


@dataclass
class _Canvas:
    """A picture that is being drawn, and how far down it is filled."""

    image: Any
    draw: Any
    font: Any
    small: Any
    y: int = MARGIN

    @classmethod
    def start(cls, explained: Explained, headline: Sequence[str]) -> _Canvas:
        """A sheet with the sample's name and some lines on it."""
        # As high as any card can be; ``finish`` cuts it
        width = 2 * MARGIN + HEAD + (MOST + MOST_REPELLING + 1) * CELL
        image = Image.new("RGB", (width, 2000), PAPER)
        fonts = (ImageFont.load_default(17), ImageFont.load_default(13))
        canvas = cls(image, ImageDraw.Draw(image), *fonts)
        sample = explained.sample
        row = explained.row
        named = " ".join(filter(None, [sample.class_name(row), sample.name(row)]))
        canvas.text(MARGIN, explained.audit.subject.recipe, SOFT, small=True)
        canvas.text(MARGIN, f"sample {named}", limit=90)
        for line in headline:
            canvas.text(MARGIN, line, SOFT, small=True, limit=130)
        for warning in explained.audit.warnings:
            canvas.text(MARGIN, warning, COLOURS["repel"], small=True, limit=130)
        canvas.y += GAP // 2
        return canvas

    def text(
        self, x: int, words: str, colour: str = INK, *, small: bool = False, limit: int = 60
    ) -> None:
        """Write a line and go below it."""
        self.write(x, self.y, words, colour, small=small, limit=limit)
        self.y += LINE if small else LINE + 6

    def write(
        self, x: int, y: int, words: str, colour: str = INK, *, small: bool = False, limit: int = 60
    ) -> None:
        """Write at a place."""
        plain = "".join(c if c.isprintable() else " " for c in words)
        cut = plain if len(plain) <= limit else plain[: limit - 1] + "…"
        self.draw.text((x, y), cut, fill=colour, font=self.small if small else self.font)

    def paste(self, x: int, pixels: Any) -> None:
        """Put a picture [y, x, channel] into a square tile, pixels kept sharp."""
        tile = to_picture(pixels).convert("RGB")
        # Small pictures are enlarged without smoothing, large ones averaged
        scale = TILE / max(tile.size)
        size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
        kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
        self.image.paste(tile.resize(size, kind), (x, self.y))

    def finish(self) -> bytes:
        """Cut the sheet below what is drawn."""
        out = io.BytesIO()
        self.image.crop((0, 0, self.image.width, self.y + MARGIN)).save(out, "PNG")
        return out.getvalue()


def _draw_tiles(canvas: _Canvas, explained: Explained, headings: Mapping[str, str]) -> None:
    """Landmarks as pictures, or as lines of text where there are none, by sign."""
    sample_images = explained.sample.samples.image
    if sample_images is not None:
        canvas.paste(MARGIN, sample_images[explained.row])
        if explained.other is not None:
            canvas.paste(MARGIN + TILE + 2 * GAP, sample_images[explained.other])
        canvas.y += TILE + GAP
    for kind, heading in headings.items():
        links = [link for link in explained.displayed if link.kind == kind][:MOST_TILES]
        if links:
            canvas.text(MARGIN, heading, COLOURS[kind])
            _draw_links(canvas, explained.landmarks, links)


def _draw_links(canvas: _Canvas, landmarks: SampleView, links: list[LandmarkLink]) -> None:
    """Landmarks of one sign side by side; without pictures, one a line."""
    images = landmarks.samples.image
    if images is None:
        for link in links:
            words = f"{_figure(link)}  {landmarks.class_name(link.row)}  "
            if (concept := link.strongest_concept) is not None:
                words += f"{concept[1]:+.1g} {concept[0]}  "
            canvas.text(MARGIN, words + landmarks.name(link.row), small=True, limit=130)
        return
    for order, link in enumerate(links):
        x = MARGIN + order * (TILE + 2 * GAP)
        canvas.paste(x, images[link.row])
        # Class and name under the picture, then the score
        words = f"{landmarks.class_name(link.row)} {landmarks.name(link.row)}".strip()
        canvas.write(x, canvas.y + TILE + 4, words, small=True, limit=14)
        canvas.write(x, canvas.y + TILE + 4 + LINE, _figure(link), SOFT, small=True)
        # Along which concept it moves the sample furthest
        if (concept := link.strongest_concept) is not None:
            below = canvas.y + TILE + 4 + 2 * LINE
            canvas.write(x, below, f"{concept[1]:+.1g} {concept[0]}", SOFT, small=True, limit=17)
    lines = 3 if any(link.strongest_concept for link in links) else 2
    canvas.y += TILE + lines * LINE + GAP


def _draw_rows(canvas: _Canvas, explained: Explained, headings: Mapping[str, str]) -> None:
    """Columns down, the sample and its first landmarks across; agreeing cells are shaded."""
    landmarks = explained.landmarks
    sample_values = explained.sample.samples.values
    landmark_values = landmarks.samples.values
    agrees = explained.agrees
    assert sample_values is not None
    assert landmark_values is not None
    assert agrees is not None
    # The samples first: the explained one, and the one that it is compared with
    samples = [explained.row, *([] if explained.other is None else [explained.other])]
    pairs = explained.beside(MOST + 1 - len(samples), MOST_REPELLING)
    for order, row in enumerate(samples):
        x = MARGIN + HEAD + order * CELL
        canvas.write(x, canvas.y, "sample" if row == explained.row else "against")
    # Head: sign, class and score of every landmark
    for order, (_, link) in enumerate(pairs, start=len(samples)):
        x = MARGIN + HEAD + order * CELL
        canvas.write(x, canvas.y, headings[link.kind], COLOURS[link.kind], small=True)
        words = f"{landmarks.class_name(link.row)} {_figure(link)}".strip()
        canvas.write(x, canvas.y + LINE - 2, words, SOFT, small=True, limit=16)
    canvas.y += 2 * LINE + 4
    # One line a column of the table
    for c, column in enumerate(explained.audit.columns[:MOST_COLUMNS]):
        canvas.write(MARGIN, canvas.y, column.name, SOFT, small=True, limit=20)
        for order, row in enumerate(samples):
            value = plain_cell(sample_values[row, c], column)
            canvas.write(MARGIN + HEAD + order * CELL, canvas.y, value, small=True, limit=17)
        for order, (place, link) in enumerate(pairs, start=len(samples)):
            x = MARGIN + HEAD + order * CELL
            if agrees[place, c]:
                box = (x - 4, canvas.y - 2, x + CELL - 10, canvas.y + LINE - 3)
                canvas.draw.rectangle(box, fill=AGREES)
            value = plain_cell(landmark_values[link.row, c], column)
            canvas.write(x, canvas.y, value, small=True, limit=16)
        canvas.y += LINE + 2
    n_further = len(explained.audit.columns) - MOST_COLUMNS
    if n_further > 0:
        canvas.text(MARGIN, f"and {n_further} more columns", SOFT, small=True)


def _figure(link: LandmarkLink) -> str:
    """The score; the contribution of what has none."""
    if math.isfinite(link.score):
        return f"{link.score:.3g}"
    return f"contribution {link.contribution:.2g}"
