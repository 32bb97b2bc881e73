"""Figures of the documents, and the results files that they come from.

A comment stands before each table of figures, and before a paragraph that quotes a results file:

    <!-- figures: engine.json; beside them: 58, 70 -->
    <!-- figures: no file; python benchmarks/landmarks.py, printed -->

Every figure of the block then equals, rounded as printed, a number of one of the files of
``benchmarks/results``, but for those *beside them* (sizes, goals, sums). Without a file the comment
says how the figures were made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Percent, thousands and millionths, binary units
SCALES = (1.0, 100.0, 1e3, 1e-3, 1e-6, 1e-9, 2.0**-10, 2.0**-20, 2.0**-30)
_MARK = re.compile(r"<!-- figures: (?!begin|end)(.*?) -->\s*\n", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.#^-])[+−-]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+)(?![\w^]|\.\d)"
)
# Names, commands and links are no figures
_PLAIN = re.compile(r"`[^`]*`|\]\([^)]*\)|\\\|")


@dataclass(frozen=True)
class Marked:
    """A table or paragraph with its comment.

    Args:
        document: name of the file.
        text: the block.
        files: names of results files; empty: no file.
        beside: figures that no file has.
        reason: how figures without a file were made.
    """

    document: str
    text: str
    files: tuple[str, ...]
    beside: frozenset[str]
    reason: str

    def wrong(self) -> list[str]:
        """Figures that no results file has."""
        if not self.files:
            return []
        known = sorted({x for name in self.files for x in read_numbers(RESULTS / name)})
        return [
            figure
            for figure in figures_of(self.text)
            if figure not in self.beside and not is_among(figure, known)
        ]


def figures_of(text: str) -> list[str]:
    """Numbers of a block as printed; single digits are counts and are left out."""
    lines = text.splitlines()
    # A table's head has names
    body = lines[2:] if text.lstrip().startswith("|") else lines
    found = _NUMBER.findall(_PLAIN.sub(" ", "\n".join(body)))
    return [figure for figure in found if "." in figure or len(figure.lstrip("+−-")) > 1]


def is_among(figure: str, known: list[float]) -> bool:
    """Whether a number equals the figure, rounded as it is printed, in some unit."""
    plain = figure.replace(",", "").replace("−", "-")
    size = abs(float(plain))
    whole, _, decimals = plain.lstrip("+-").partition(".")
    # Zeros at the end of a whole number are places that were rounded
    zeros = 0 if decimals else len(whole) - len(whole.rstrip("0"))
    half_place = 0.5001 * 10.0 ** (zeros - len(decimals))
    return any(abs(abs(x * scale) - size) <= half_place for x in known for scale in SCALES)


def read_numbers(path: Path) -> Iterator[float]:
    """Every number of a results file."""

    def walk(value: Any) -> Iterator[float]:
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from walk(inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)

    yield from walk(json.loads(path.read_text()))


def marked_blocks(path: Path) -> Iterator[Marked]:
    """Every block with a comment."""
    text = path.read_text()
    for found in _MARK.finditer(text):
        block = text[found.end() :].lstrip("\n").partition("\n\n")[0]
        head, _, rest = " ".join(found[1].split()).partition(";")
        files: list[str] = []
        for word in head.split() if head != "no file" else ():
            matches = sorted(match.name for match in RESULTS.glob(word))
            assert matches, f"{path.name}: no results file {word}"
            files += matches
        beside = re.sub(r"^\s*beside them:", "", rest) if files else ""
        listed = frozenset(re.split(r",?\s+", beside.strip())) if beside else frozenset()
        yield Marked(path.name, block, tuple(files), listed, "" if files else rest.strip())


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
