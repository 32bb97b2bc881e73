"""One depth and number of channels for all pictures of a folder, from the facts of every file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.image_pixels import PictureFacts, PixelFormat

MAX_LISTED = 20
# Largest share of a picture's area that the central square may leave out unnoticed.
MAX_CROPPED = 0.5
_DEPTH_NAMES = {
    "uint8": "8 bit",
    "uint16": "16 bit",
    "int32": "32-bit whole numbers",
    "float32": "floats",
}


@dataclass(frozen=True)
class FolderFormat:
    """Decoding of the pictures of a folder.

    Args:
        form: channels, depth, size, alpha and page.
        warnings: what is lost or brought together by it.
    """

    form: PixelFormat
    warnings: tuple[str, ...]


def choose_format(
    spec: SourceSpec, folder: Path, files: Sequence[str], facts: Sequence[PictureFacts]
) -> FolderFormat:
    """Format that holds every picture: colour if one has colour, the deepest of the depths.

    Args:
        spec: recipe key ``source``.
        folder: for messages.
        files: names in the folder.
        facts: of each file.

    Raises:
        SourceError: several pages and none chosen, depths that have no common scale, or values
            whose full scale is unknown.
    """
    _check_pages(spec, folder, files, facts)
    depth = _common_depth(spec, folder, files, facts)
    _check_scale(spec, folder, files, facts, depth)
    mode = "L" if all(fact.grey for fact in facts) else "RGB"
    form = PixelFormat(mode, depth, spec.size, spec.alpha, spec.page, spec.interpolation)
    return FolderFormat(form, tuple(_warnings(spec, files, facts, form)))


def _check_pages(
    spec: SourceSpec, folder: Path, files: Sequence[str], facts: Sequence[PictureFacts]
) -> None:
    several = [i for i, fact in enumerate(facts) if fact.pages > 1]
    if several and spec.page is None:
        first = several[0]
        raise SourceError(
            f"{len(several)} of {len(files)} files hold several pages, such as {files[first]} "
            f"({facts[first].pages} pages)",
            where=str(folder),
            expected="one picture a file, or source.page",
            advice="choose the page of all files by source.page: 0, or save pages as files",
        )


def _common_depth(
    spec: SourceSpec, folder: Path, files: Sequence[str], facts: Sequence[PictureFacts]
) -> str:
    misread = [i for i, fact in enumerate(facts) if fact.misread]
    if misread:
        first = misread[0]
        raise SourceError(
            f"{len(misread)} of {len(files)} pictures hold {facts[first].misread}",
            where=str(folder / files[first]),
            expected="8 or 16 bit as grey or colour PNG or TIFF, 0 for black",
            advice="convert the files; grey of 16 bit loses its alpha",
        )
    # The first file of each depth stands for it in messages.
    example: dict[str, str] = {}
    for name, fact in zip(files, facts, strict=True):
        example.setdefault(fact.depth, name)
    if len(example) == 1:
        return next(iter(example))
    # Eight and sixteen bits share the scale of black to white, unless the recipe says another.
    if set(example) == {"uint8", "uint16"} and not spec.range:
        return "uint16"
    kinds = " and ".join(f"{_DEPTH_NAMES[d]} ({name})" for d, name in sorted(example.items()))
    raise SourceError(
        f"pictures of {kinds}",
        where=str(folder),
        expected="pictures of one depth" + (" beside source.range" if spec.range else ""),
        advice="convert the files to one depth",
    )


def _check_scale(
    spec: SourceSpec,
    folder: Path,
    files: Sequence[str],
    facts: Sequence[PictureFacts],
    depth: str,
) -> None:
    """Raise on values without a known full scale: whole numbers of 32 bits, floats beyond [0, 1].

    Raises:
        SourceError: names the file, its depth and the key that says the full scale.
    """
    if spec.range or depth in ("uint8", "uint16"):
        return
    low = min(fact.low for fact in facts)
    high = max(fact.high for fact in facts)
    if depth == "float32" and low >= 0 and high <= 1:
        return
    # The file with the largest value shows the scale best.
    index = max(range(len(facts)), key=lambda i: (facts[i].high, -facts[i].low))
    raise SourceError(
        f"{_DEPTH_NAMES[depth]} from {low:g} to {high:g} have no known full scale",
        where=str(folder / files[index]),
        expected="values within [0, 1], or source.range",
        advice=f"say which values are black and full scale: source.range: [{low:g}, {high:g}]",
    )


def _warnings(
    spec: SourceSpec, files: Sequence[str], facts: Sequence[PictureFacts], form: PixelFormat
) -> list[str]:
    """Lines on what is mixed, lost or hidden in the pictures."""
    lines = []

    def some(has: Callable[[PictureFacts], bool]) -> str:
        chosen = [name for name, fact in zip(files, facts, strict=True) if has(fact)]
        return f"{len(chosen):,} of {len(files):,} pictures (such as {chosen[0]})" if chosen else ""

    if form.mode == "RGB" and (grey := some(lambda fact: fact.grey)):
        lines.append(f"{grey} are grey, and are shown as colours among coloured ones")
    if form.depth == "uint16" and (shallow := some(lambda fact: fact.depth == "uint8")):
        lines.append(f"{shallow} have 8 bit among pictures of 16 bit: scaled to 65,535")
    if spec.alpha == "drop" and (clear := some(lambda fact: fact.see_through)):
        lines.append(
            f"{clear} have see-through pixels, whose hidden colours are shown: "
            "source.alpha: white (or black) lays them on one colour"
        )
    if more := some(lambda fact: fact.left_out > 0):
        lines.append(f"{more} hold further channels beside grey or colour, which are left out")
    if spec.size and (wide := some(lambda fact: _cropped(fact) > MAX_CROPPED)):
        lines.append(f"{wide} lose more than half of their area: size keeps the central square")
    return lines + _range_warnings(spec, facts, form)


def _range_warnings(
    spec: SourceSpec, facts: Sequence[PictureFacts], form: PixelFormat
) -> list[str]:
    if form.depth == "uint8":
        return []
    low = min(fact.low for fact in facts)
    high = max(fact.high for fact in facts)
    if spec.range and (low < spec.range[0] or high > spec.range[-1]):
        return [f"values from {low:g} to {high:g} lie beyond source.range"]
    # Twelve bits in sixteen look dark to the network.
    if not spec.range and form.depth == "uint16" and 255 < high < 2**15:
        full = 2 ** int(high).bit_length() - 1
        return [
            f"values of 16 bit reach {high:g} and are scaled by 65,535: if full scale is {full:,}, "
            f"set source.range: [0, {full}]"
        ]
    return []


def _cropped(fact: PictureFacts) -> float:
    """Share of the area outside the central square."""
    return 1 - min(fact.width, fact.height) / max(fact.width, fact.height)
