"""krepes compare: finished audits of one source side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import echo, print_json, print_table, show_page
from krepes_ooc.errors import UsageError, printable

if TYPE_CHECKING:
    from krepes_ooc.rendering.comparison import Comparison, PairOfAudits

# Rows of each table of the terminal; page and JSON have more.
LISTED = 5


@click.command(short_help="Compare audits: networks, objectives, seeds, checkpoints.")
@click.argument("workspaces", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.out()
@options.open_page
@options.as_json
def compare(workspaces: tuple[Path, ...], out: Path | None, open_page: bool, as_json: bool) -> None:
    """Compare the first of several finished audits with each other one.

    WORKSPACES are their folders. Only small stores are read: no source, no network, no recipe. Add
    an audit of another seed: differences are compared with the variation by seed.
    """
    from krepes_ooc.runner.comparison.compare import compare as compare_audits

    comparison = compare_audits(workspaces)
    # The page first: if it cannot be written, nothing is printed either.
    if out is not None:
        _write_page(comparison, out)
        if open_page:
            show_page(out)
    if as_json:
        print_json(comparison.record())
        return
    _show(comparison)
    if out is not None:
        echo(f"wrote {out}")


def _write_page(comparison: Comparison, out: Path) -> None:
    """Write the HTML page.

    Raises:
        UsageError: the ending is not that of a page, or the file cannot be written.
    """
    from krepes_ooc.rendering.comparison_page import build_comparison_page

    if out.suffix != ".html":
        raise UsageError("a comparison is a page", where=f"--out {out}", expected="a name.html")
    try:
        out.write_text(build_comparison_page(comparison), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(out)) from error


def _show(comparison: Comparison) -> None:
    """Print a comparison for people."""
    from krepes_ooc.rendering.comparison import RELATIONS, SPACES

    for warning in comparison.warnings:
        echo(printable(f"warning: {warning}"))
    labels = [audit.label for audit in comparison.audits]
    rows = [
        (
            *(audit.label, audit.folder, audit.objective),
            RELATIONS[audit.relation] or ", ".join(audit.differs),
            audit.verdict or "-",
        )
        for audit in comparison.audits
    ]
    print_table("", ("", "folder", "objective", "differs in", "verdict"), rows)
    figures = [
        (values[0].label, *(_number(each.value) for each in values))
        for values in comparison.figures().values()
    ]
    print_table("\nfigures", ("", *labels), figures)
    for space, words in SPACES.items():
        matrix = comparison.similarity[space]
        cells = [(label, *map(_number, row)) for label, row in zip(labels, matrix, strict=True)]
        print_table(f"\nCKA of {words}", ("", *labels), cells)
    for pair in comparison.pairs:
        _show_pair(pair, labels[0], labels[pair.other])


def _show_pair(pair: PairOfAudits, first: str, other: str) -> None:
    """Print what changed from the first audit to another one."""
    echo(
        f"\n{other} against {first}: {pair.counts['samples']} samples in common; change of their "
        f"explanations: median {_number(pair.change['median'])}, 90 % "
        f"{_number(pair.change['quantile_90'])}; the ten first of {pair.counts['landmarks']} "
        f"common landmarks share {_number(pair.overlap)}"
    )
    if pair.concepts.pairs:
        echo(
            f"{len(pair.concepts.pairs)} concepts matched, mean correlation "
            f"{_number(pair.concepts.mean_correlation)}, by chance "
            f"{_number(pair.concepts.chance)}"
        )
    rows = [
        (
            f"{kind} {each.name}",
            *(_number(each.first), _number(each.other)),
            _interval(each.low, each.high),
        )
        for kind, differences in (("gap of", pair.gaps), ("effect of", pair.effects))
        for each in sorted(differences, key=lambda one: -abs(one.difference))[:LISTED]
    ]
    head = ("", first, other, "change, 95 % interval")
    if rows:
        print_table("", head, rows)
    changed = [
        (
            one.view.name(one.row),
            one.view.class_name(one.row),
            *map(_number, (one.change, one.floor, one.overlap)),
        )
        for one in pair.samples[:LISTED]
    ]
    if changed:
        head_of_samples = ("changed most", "class", "change", "another seed", "common landmarks")
        print_table("", head_of_samples, changed)


def _number(value: float) -> str:
    """A figure for the terminal; a dash where it is not defined."""
    return f"{value:.3g}" if value == value else "-"


def _interval(low: float, high: float) -> str:
    return f"{low:+.3g} to {high:+.3g}" if low == low else "-"
