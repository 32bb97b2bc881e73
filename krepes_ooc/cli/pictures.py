"""Small pictures in the terminal: two pixels a character, as upper half blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rich.console import Console

    from krepes_ooc.report import Explained

SIDE, MOST_RANKED, MOST_REPELLING = 16, 4, 1
Pixels = npt.NDArray[np.uint8]


def can_draw(console: Console) -> bool:
    """Whether the terminal has colours and the half block."""
    try:
        "▀".encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return console.color_system not in (None, "standard") and console.is_terminal


def print_pictures(one: Explained, console: Console | None = None) -> None:
    """Print a sample and its first landmarks side by side, if there are pictures and it can."""
    from rich.columns import Columns
    from rich.console import Console, Group
    from rich.text import Text

    console = console or Console()
    mine, theirs = one.person.samples.image, one.others.samples.image
    if mine is None or theirs is None or not can_draw(console):
        return
    signs = {"attract": "+", "repel": "-", "neutral": ""}
    tiles: list[Any] = [Group(half_blocks(mine[one.row]), Text("the sample", style="bold"))]
    for _, link in one.beside(MOST_RANKED, MOST_REPELLING):
        words = f"{signs[link.kind]}{link.rank or ''} {one.others.class_name(link.row)}".strip()
        tiles.append(Group(half_blocks(theirs[link.row]), Text(words)))
    console.print(Columns(tiles, padding=(0, 2)))


def half_blocks(image: Pixels) -> Any:
    """An image [y, x] or [y, x, channel] as coloured text, at most 16 characters wide."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    from krepes_ooc.report.png import shrink

    pixels = shrink(image if image.ndim == 3 else image[:, :, None], SIDE)
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, np.zeros_like(pixels[:1])])
    text = Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            text.append("▀", style)
        text.append("\n")
    text.rstrip()
    return text
