"""One explained sample as a PNG card: attracting landmarks above, repelling ones below."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from krepes_ooc.rendering.drawing.sample_view import plain_cell
from krepes_ooc.rendering.drawing.thumbnails import to_picture
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.rendering.landmark_links import NOTHING_REPELS, LandmarkLink

MARGIN, TILE, GAP, LINE = 32, 96, 20, 20
MOST, MOST_REPELLING, MOST_COLUMNS = 5, 1, 14
MOST_TILES = 7
CELL, HEAD = 132, 150
INK, SOFT, PAPER, AGREES = "#22252a", "#5f656d", "#fbfaf7", "#f0ecdd"
COLOURS = {"attract": "#1d6a8c", "repel": "#b3501f", "neutral": "#6b6f76"}
HEADINGS = {"attract": "attracting", "repel": "repelling", "neutral": "strongest"}


def draw_card(one: Explained) -> bytes:
    """The card as PNG bytes."""
    pencil = _Canvas.start(one)
    if one.agrees is not None and one.sample.picture(one.row) is None:
        _draw_rows(pencil, one)
    else:
        _draw_tiles(pencil, one)
    return pencil.finish()


@dataclass
class _Canvas:
    """A picture that is being drawn, and how far down it is filled."""

    image: Any
    draw: Any
    font: Any
    small: Any
    y: int = MARGIN

    @classmethod
    def start(cls, one: Explained) -> _Canvas:
        """A sheet with the sample's name on it."""
        width = 2 * MARGIN + HEAD + (MOST + MOST_REPELLING + 1) * CELL
        image = Image.new("RGB", (width, 2000), PAPER)
        fonts = (ImageFont.load_default(17), ImageFont.load_default(13))
        pencil = cls(image, ImageDraw.Draw(image), *fonts)
        named = " ".join(filter(None, [one.sample.class_name(one.row), one.sample.name(one.row)]))
        pencil.text(MARGIN, one.audit.subject.recipe, SOFT, small=True)
        pencil.text(MARGIN, f"sample {named}", limit=90)
        told = f"{one.counts['attract']} landmarks attract it, {one.counts['repel']} repel it"
        told += f", {len(one.repelling_only)} more push it away" if one.repelling_only else ""
        pencil.text(MARGIN, told, SOFT, small=True)
        if one.nothing_repels:
            pencil.text(MARGIN, NOTHING_REPELS, SOFT, small=True)
        for warning in one.audit.warnings:
            pencil.text(MARGIN, warning, COLOURS["repel"], small=True, limit=130)
        pencil.y += GAP // 2
        return pencil

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
        scale = TILE / max(tile.size)
        size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
        kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
        self.image.paste(tile.resize(size, kind), (x, self.y))

    def finish(self) -> bytes:
        """Cut the sheet below what is drawn."""
        out = io.BytesIO()
        self.image.crop((0, 0, self.image.width, self.y + MARGIN)).save(out, "PNG")
        return out.getvalue()


def _draw_tiles(pencil: _Canvas, one: Explained) -> None:
    mine, theirs = one.sample.samples.image, one.landmarks.samples.image
    if mine is not None:
        pencil.paste(MARGIN, mine[one.row])
        pencil.y += TILE + GAP
    for kind, heading in HEADINGS.items():
        links = [link for link in one.displayed if link.kind == kind][:MOST_TILES]
        if not links:
            continue
        pencil.text(MARGIN, heading, COLOURS[kind])
        if theirs is None:
            for link in links:
                words = f"{_figure(link)}  {one.landmarks.class_name(link.row)}  "
                pencil.text(MARGIN, words + one.landmarks.name(link.row), small=True, limit=130)
            continue
        for place, link in enumerate(links):
            x = MARGIN + place * (TILE + 2 * GAP)
            pencil.paste(x, theirs[link.row])
            words = f"{one.landmarks.class_name(link.row)} {one.landmarks.name(link.row)}".strip()
            pencil.write(x, pencil.y + TILE + 4, words, small=True, limit=14)
            pencil.write(x, pencil.y + TILE + 4 + LINE, _figure(link), SOFT, small=True)
        pencil.y += TILE + 2 * LINE + GAP


def _draw_rows(pencil: _Canvas, one: Explained) -> None:
    """Columns down, the sample and its first landmarks across; agreeing cells are shaded."""
    mine, theirs, agrees = one.sample.samples.values, one.landmarks.samples.values, one.agrees
    assert mine is not None
    assert theirs is not None
    assert agrees is not None
    pairs = one.beside(MOST, MOST_REPELLING)
    pencil.write(MARGIN + HEAD, pencil.y, "sample")
    for order, (_, link) in enumerate(pairs):
        x = MARGIN + HEAD + (order + 1) * CELL
        pencil.write(x, pencil.y, HEADINGS[link.kind], COLOURS[link.kind], small=True)
        words = f"{one.landmarks.class_name(link.row)} {_figure(link)}".strip()
        pencil.write(x, pencil.y + LINE - 2, words, SOFT, small=True, limit=16)
    pencil.y += 2 * LINE + 4
    for c, column in enumerate(one.audit.columns[:MOST_COLUMNS]):
        pencil.write(MARGIN, pencil.y, column.name, SOFT, small=True, limit=20)
        own = plain_cell(mine[one.row, c], column)
        pencil.write(MARGIN + HEAD, pencil.y, own, small=True, limit=17)
        for order, (place, link) in enumerate(pairs):
            x = MARGIN + HEAD + (order + 1) * CELL
            if agrees[place, c]:
                box = (x - 4, pencil.y - 2, x + CELL - 10, pencil.y + LINE - 3)
                pencil.draw.rectangle(box, fill=AGREES)
            value = plain_cell(theirs[link.row, c], column)
            pencil.write(x, pencil.y, value, small=True, limit=16)
        pencil.y += LINE + 2
    left = len(one.audit.columns) - MOST_COLUMNS
    if left > 0:
        pencil.text(MARGIN, f"and {left} more columns", SOFT, small=True)


def _figure(link: LandmarkLink) -> str:
    """The score; the pull of what has none."""
    return f"{link.score:.3g}" if math.isfinite(link.score) else f"pull {link.contribution:.2g}"
