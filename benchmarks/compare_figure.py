"""A figure of compared audits: change of the explanations, and similarity, against the first one.

python benchmarks/compare_figure.py benchmarks/results/compare-digits.json docs/results
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

WIDTH, ROW, TOP, LEFT = 640, 34, 46, 150
# Left and right end of both panels, each from 0 to 1
PANELS = ((LEFT, 370), (410, 630))
STYLE = """
svg { background: #fff; } text { font: 12px sans-serif; fill: #444; } .end { text-anchor: end; }
.middle { text-anchor: middle; } .grid { stroke: #ddd; } .median { fill: #1b6ca8; }
.most { stroke: #1b6ca8; stroke-width: 2; } .network { fill: #1b6ca8; }
.embedding { fill: #c0392b; } .kernel { fill: #2e7d32; }
"""
KINDS = {"network": "network", "embedding": "audit", "kernel": "kernel"}


def draw(record: dict[str, Any], names: dict[str, str], title: str) -> str:
    """The figure as SVG.

    Args:
        record: figures of a comparison.
        names: label of an audit -> words.
        title: what is compared.
    """
    pairs = record["pairs"]
    height = TOP + ROW * len(pairs) + 30
    parts = [_grid(height)]
    words = [f"{title}."]
    low, high = PANELS[0]
    for i, pair in enumerate(pairs):
        name = names[pair["other"]]
        y = TOP + ROW * i + ROW / 2
        change, column = pair["change"], i + 1
        median, most = (_x(change[key], low, high) for key in ("median", "quantile_90"))
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 4:.1f}" class="end">{escape(name)}</text>',
            f'<rect x="{low}" y="{y - 8:.1f}" width="{median - low:.1f}" height="16" '
            'class="median"/>',
            f'<line x1="{median:.1f}" x2="{most:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="most"/>',
        ]
        similar = {kind: float(record["similarity"][kind][0][column]) for kind in KINDS}
        parts += [
            f'<circle cx="{_x(value, *PANELS[1]):.1f}" cy="{y:.1f}" r="5" class="{kind}"/>'
            for kind, value in similar.items()
        ]
        listed = ", ".join(f"{KINDS[kind]} {value:.2f}" for kind, value in similar.items())
        words.append(
            f"{name}: change {change['median']:.2f}, of 90 % at most "
            f"{change['quantile_90']:.2f}; CKA {listed}."
        )
    described = escape(" ".join(words))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    return f"{head}<style>{STYLE}</style><title>{described}</title>{''.join(parts)}</svg>\n"


def _x(value: float, low: int, high: int) -> float:
    return low + (high - low) * min(max(value, 0.0), 1.0)


def _grid(height: int) -> str:
    """Both panels: headings, lines and numbers."""
    heads = ("change of explanations: median, 90 %", "CKA")
    parts = []
    for (low, high), head in zip(PANELS, heads, strict=True):
        parts.append(f'<text x="{low}" y="16">{head}</text>')
        for tick in (0, 0.25, 0.5, 0.75, 1):
            x = _x(tick, low, high)
            parts.append(
                f'<line x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{height - 24}" class="grid"/>'
            )
            parts.append(f'<text x="{x}" y="{height - 8}" class="middle">{tick:g}</text>')
    x = PANELS[1][0] + 40
    for kind, word in KINDS.items():
        parts.append(f'<circle cx="{x}" cy="12" r="5" class="{kind}"/>')
        parts.append(f'<text x="{x + 9}" y="16">{word}</text>')
        x += 65
    return "".join(parts)


def main() -> None:
    """Draw one file of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    record = json.loads(arguments.figures.read_text())
    words = ("Barlow Twins", "VICReg", "another seed", "random weights")
    names = dict(zip("ABCD", words, strict=True))
    data = arguments.figures.stem.removeprefix("compare-")
    target = arguments.folder / f"{arguments.figures.stem}.svg"
    target.write_text(draw(record, names, f"{data}: against Barlow Twins"), encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
