"""krepes explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import print_json, print_table
from krepes_ooc.cli.inspect_workspace import recipe_or_none, resolve_workspace
from krepes_ooc.errors import UsageError

if TYPE_CHECKING:
    from krepes_ooc.rendering.explanation import Explained

NARROW, MOST_RANKED, MOST_REPELLING = 16, 5, 1


@click.command(short_help="Say which landmarks hold one sample.")
@recipe_or_none
@options.workspace
@click.option(
    "--sample", type=options.IntAtLeast(min=0), help="Position of a sample in the source."
)
@click.option(
    "--input",
    "file",
    type=click.Path(path_type=Path),
    help="New sample: .json or .csv rows, a picture, .npy, or .txt.",
)
@click.option("--top", type=options.IntAtLeast(min=1), help="Landmarks; default all that are kept.")
@click.option("--png", type=click.Path(path_type=Path), help="Write a card as a picture.")
@options.as_json
def explain(
    recipe: str | None,
    workspace: Path | None,
    sample: int | None,
    file: Path | None,
    top: int | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Say which landmarks attract and which repel one sample.

    The sample is one of the source (--sample) or a new one (--input), which goes through the frozen
    network. Only small stores are read.
    """
    from krepes_ooc.runner.explain import explain as explained

    found = explained(
        resolve_workspace(recipe, workspace), sample=sample, file=file, top=top, recipe=recipe
    )
    if png is not None:
        _write_card(found, png)
    if as_json:
        print_json([_document(one) for one in found])
        return
    for one in found:
        _show(one)
    if png is not None:
        click.echo(f"wrote {png}")


def _write_card(found: list[Explained], target: Path) -> None:
    """Write the one explanation as a picture.

    Raises:
        UsageError: several samples, or the file cannot be written.
    """
    from krepes_ooc.rendering.explanation_card import draw_card

    if len(found) != 1:
        raise UsageError(f"{len(found)} samples", where="--png", expected="one sample")
    try:
        target.write_bytes(draw_card(found[0]))
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(target)) from error


def _document(one: Explained) -> dict[str, Any]:
    assert one.audit.influence is not None
    return {
        "recipe": one.audit.subject.recipe,
        "objective": one.audit.subject.objective,
        "measure": one.audit.influence.measure,
        "warnings": list(one.audit.warnings),
        "sample": one.record(),
    }


def _show(one: Explained) -> None:
    from krepes_ooc.rendering.landmark_links import NOTHING_REPELS

    for warning in one.audit.warnings:
        click.echo(f"take care: {warning}")
    record = one.record()
    named = f" ({record['class']})" if record["class"] else ""
    told = f"{record['attract']} attract, {record['repel']} repel"
    if one.repelling_only:
        told += f", {len(one.repelling_only)} more push it away"
    if record["same_class"] is not None:
        told += f", {record['same_class']} of {record['ranked']} ranked share its class"
    click.echo(f"sample {record['name']}{named}: {told}")
    columns = ("rank", "", "score", "pull", "kernel", "class", "landmark")
    shown = [*record["landmarks"], *(record["repelling"] or ())]
    print_table("", columns, [_line(link) for link in shown])
    if one.nothing_repels:
        click.echo(NOTHING_REPELS.lower().rstrip("."))
    if one.agrees is not None:
        _show_columns(one)


def _line(link: dict[str, Any]) -> tuple[Any, ...]:
    sign = (
        ""
        if link["contribution"] is None
        else "attracts"
        if link["contribution"] >= 0
        else "repels"
    )
    numbers = [
        "-" if link[name] is None else f"{link[name]:.3g}"
        for name in ("score", "contribution", "kernel")
    ]
    return (link["rank"] or "-", sign, *numbers, link["class"] or "", link["name"])


def _show_columns(one: Explained) -> None:
    """The sample's row beside the rows of its first landmarks; what agrees is marked."""
    from krepes_ooc.rendering.drawing.sample_view import plain_cell

    mine, theirs = one.sample.samples.values, one.landmarks.samples.values
    agrees = one.agrees
    assert mine is not None
    assert theirs is not None
    assert agrees is not None
    links = one.beside(MOST_RANKED, MOST_REPELLING)
    signs = {"attract": "+", "repel": "-", "neutral": ""}
    head = ["column", "sample", *(f"{signs[link.kind]}{link.rank or ''}" for _, link in links)]
    rows = []
    for c, column in enumerate(one.audit.columns):
        cells = [
            _short(plain_cell(theirs[link.row, c], column)) + (" =" if agrees[place, c] else "")
            for place, link in links
        ]
        rows.append((column.name, _short(plain_cell(mine[one.row, c], column)), *cells))
    title = "\nits row beside those of its landmarks; = agrees, + attracts, - repels"
    print_table(title, head, rows)


def _short(text: str) -> str:
    return text if len(text) <= NARROW else text[: NARROW - 1] + "…"
