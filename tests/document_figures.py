"""Figures of the documents, and the results files that they come from.

A comment stands before each table of figures, and before each paragraph or list with figures:

    <!-- figures: engine.json; beside them: 58, 70 -->
    <!-- figures: bias-adult.json#alignment.gender quoted.json#bias -->
    <!-- figures: this page; beside them: 60 -->
    <!-- figures: results.md -->
    <!-- figures: settings; 95, .1 -->

Every figure of the block then equals, rounded as printed, a number of one of the files of
``benchmarks/results`` (of one part of it, after ``#``), or of a table of the page, but for those
*beside them* (sizes, goals, sums). *Settings* are defaults and definitions: nothing was measured.
``quoted.json`` has the figures that were copied by hand from the output of a command.

Short figures equal some number of a long file by chance. So ``document_figures.json`` has all
figures of all such blocks in their order, and a test compares them. After a change that was meant:

    python -m tests.document_figures
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUOTED = RESULTS / "quoted.json"
PRINTED = ROOT / "tests" / "document_figures.json"
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Percent, thousands and millionths, binary units
SCALES = (1.0, 100.0, 1e3, 1e-3, 1e-6, 1e-9, 2.0**-10, 2.0**-20, 2.0**-30)
_MARK = re.compile(r"<!-- figures: (?!begin|end)(.*?) -->\s*\n", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.#^-])[+−-]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+)(?![\w^]|\.\d)"
)
# Names, commands, links and numbers of papers are no figures
_PLAIN = re.compile(r"`[^`]*`|\]\([^)]*\)|\\\||arXiv [\d.]+|PMLR [\d:-]+|Python [\d.]+")
# A number without a decimal point is a figure if one of these follows, or a second number and it
_UNIT = re.compile(
    r"(?:\s+(?:to|and|or)\s+[\d.,]+)?\s*(%|ms|min|CPU-[\w-]+|[kMGT]i?B|times|points"
    r"|percentage points|s|seconds|minutes|hours)(?!\w)"
)
_YEAR = re.compile(r"(?:19|20)\d\d")


@dataclass(frozen=True)
class Marked:
    """A table or paragraph with its comment.

    Args:
        document: name of the file.
        text: the block.
        files: names of results files; empty: no file.
        beside: figures that no file has.
        reason: how figures without a file were made.
        is_settings: whether all figures are defaults or definitions.
    """

    document: str
    text: str
    files: tuple[str, ...]
    beside: frozenset[str]
    reason: str
    is_settings: bool = False

    def wrong(self) -> list[str]:
        """Figures that no results file has."""
        if not self.files and not self.is_settings:
            return []
        known = sorted({x for name in self.files for x in numbers_of(name)})
        listed = self.beside.union(*(quoted_figures(name) for name in self.files))
        is_table = self.text.lstrip().startswith("|")
        return [
            figure
            for figure, unit in figures_with_units(self.text)
            if figure not in listed
            and not is_among(figure, known, SCALES if is_table else scales_of(figure, unit))
        ]


def figures_of(text: str) -> list[str]:
    """Numbers of a block as printed; single digits without a unit and years are left out."""
    return [figure for figure, _ in figures_with_units(text)]


def figures_with_units(text: str) -> list[tuple[str, str]]:
    """Numbers of a block as printed, and the unit that follows, if any.

    Single digits are left out: in tables, and in sentences without a unit.
    """
    lines = text.splitlines()
    is_table = text.lstrip().startswith("|")
    # A table's head has names
    body = lines[2:] if is_table else lines
    plain = _PLAIN.sub(" ", "\n".join(body))
    found = [(match[0], _UNIT.match(plain, match.end())) for match in _NUMBER.finditer(plain)]
    return [
        (figure, unit[1] if unit else "")
        for figure, unit in found
        if "." in figure
        or (unit and not is_table)
        or (len(figure.lstrip("+−-")) > 1 and not _YEAR.fullmatch(figure))
    ]


def scales_of(figure: str, unit: str) -> tuple[float, ...]:
    """Units in which a results file may have a figure of a sentence.

    Args:
        figure: as printed.
        unit: that follows it.
    """
    if unit.endswith("iB"):
        return (1.0, 2.0**-10, 2.0**-20, 2.0**-30)
    if unit.endswith("B"):
        return (1.0, 1e-3, 1e-6, 1e-9)
    if unit and unit != "%":
        return (1.0, 1e3, 1e-3)
    # "62 % and 57": percentages have no sign of their own in a list
    return (1.0,) if "." in figure and unit != "%" else (1.0, 100.0)


def is_among(figure: str, known: list[float], scales: tuple[float, ...] = SCALES) -> bool:
    """Whether a number equals the figure, rounded as it is printed, in some unit."""
    plain = figure.replace(",", "").replace("−", "-")
    size = abs(float(plain))
    whole, _, decimals = plain.lstrip("+-").partition(".")
    # Zeros at the end of a whole number are places that were rounded
    zeros = 0 if decimals else len(whole) - len(whole.rstrip("0"))
    half_place = 0.5001 * 10.0 ** (zeros - len(decimals))
    return any(abs(abs(x * scale) - size) <= half_place for x in known for scale in scales)


@cache
def quoted_figures(origin: str) -> frozenset[str]:
    """Figures of one part of ``quoted.json``, as they are printed; of other files none."""
    name, _, part = origin.partition("#")
    if name != QUOTED.name:
        return frozenset()
    return frozenset(json.loads(QUOTED.read_text())[part]["figures"])


@cache
def numbers_of(origin: str) -> tuple[float, ...]:
    """Numbers of an origin: a results file, its part after ``#``, or a page of the documents."""
    name, _, part = origin.partition("#")
    if name.endswith(".md"):
        return tuple(numbers_of_tables((ROOT / "docs" / name).read_text()))
    return tuple(read_numbers(RESULTS / name, part))


def numbers_of_tables(text: str) -> Iterator[float]:
    """Every number in a table of a page."""
    for line in text.splitlines():
        if line.startswith("|"):
            for figure in _NUMBER.findall(_PLAIN.sub(" ", line)):
                yield float(figure.replace(",", "").replace("−", "-"))


def read_numbers(path: Path, part: str = "") -> Iterator[float]:
    """Every number of a results file, or of one part of it.

    Args:
        path: the JSON file.
        part: keys of nested mappings, joined by dots; ``*`` is any text.
    """

    def walk(value: Any) -> Iterator[float]:
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from walk(inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)

    value = json.loads(path.read_text())
    for key in part.split(".") if part else ():
        value = value[next(name for name in value if fnmatch(name, key))]
    yield from walk(value)


def marked_blocks(path: Path) -> Iterator[Marked]:
    """Every block with a comment."""
    text = path.read_text()
    for found in _MARK.finditer(text):
        block = text[found.end() :].lstrip("\n").partition("\n\n")[0]
        head, _, rest = " ".join(found[1].split()).partition(";")
        is_settings = head == "settings"
        files = [] if head in ("no file", "settings") else _origins(path, head)
        beside = re.sub(r"^\s*beside them:", "", rest) if files or is_settings else ""
        listed = frozenset(re.split(r",?\s+", beside.strip())) if beside else frozenset()
        reason = "" if files else rest.strip()
        yield Marked(path.name, block, tuple(files), listed, reason, is_settings)


def _origins(path: Path, head: str) -> list[str]:
    """Names of results files, of parts of them and of pages with tables."""
    found = []
    for word in head.replace("this page", path.name).split():
        name, _, part = word.partition("#")
        if word.endswith(".md"):
            found.append(word)
            continue
        matches = sorted(match.name for match in RESULTS.glob(name))
        assert matches, f"{path.name}: no results file {name}"
        found += [f"{match}#{part}" if part else match for match in matches]
    return found


def tables_without_mark(path: Path) -> list[str]:
    """First lines of tables with three decimal figures or more and no comment before them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    # Tables between two such lines are written by a benchmark's page maker
    text = re.sub(r"<!-- ([\w -]+): begin.*?<!-- \1: end -->", "", text, flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n", text)
    found = []
    for i, block in enumerate(blocks):
        if not block.lstrip().startswith("|"):
            continue
        decimals = [figure for figure in figures_of(block) if "." in figure]
        if len(decimals) > 2 and not (i and "<!-- figures:" in blocks[i - 1]):
            found.append(block.strip().splitlines()[0])
    return found


def prose_without_mark(path: Path) -> list[str]:
    """First words of paragraphs and lists with figures and no comment before them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- ([\w -]+): begin.*?<!-- \1: end -->", "", text, flags=re.DOTALL)
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    found = []
    for i, block in enumerate(blocks):
        if block.startswith(("|", "    ", "#")) or "<!-- figures:" in block:
            continue
        if i and blocks[i - 1].strip().startswith("<!-- figures:"):
            continue
        if prose_figures(block):
            found.append(" ".join(block.split())[:60])
    return found


def prose_figures(block: str) -> list[str]:
    """Figures of a paragraph: numbers with a decimal point, and those with a unit."""
    return [figure for figure, unit in figures_with_units(block) if unit or "." in figure]


def printed_figures(path: Path) -> dict[str, str]:
    """Figures of every marked block of a page by the block's first words."""
    found: dict[str, str] = {}
    for block in marked_blocks(path):
        words = " ".join(block.text.split())[:50]
        # A second block that begins alike is named by its number
        name = words if words not in found else f"{words} ({len(found)})"
        found[name] = " ".join(figures_of(block.text))
    return found


def write_printed() -> None:
    """Write the figures of all pages, if each of them has an origin.

    Raises:
        ValueError: a figure that no results file has.
    """
    for path in DOCUMENTS:
        for block in marked_blocks(path):
            if wrong := block.wrong():
                raise ValueError(f"{path.name}: {wrong} in {block.text[:60]!r}")
    pages = {path.name: figures for path in DOCUMENTS if (figures := printed_figures(path))}
    PRINTED.write_text(json.dumps(pages, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_printed()
