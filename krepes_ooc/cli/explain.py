"""krepes explain: attracting and repelling landmarks of one sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import echo, print_json, print_table
from krepes_ooc.cli.inspect_workspace import recipe_or_none, resolve_workspace
from krepes_ooc.errors import UsageError, printable

if TYPE_CHECKING:
    from krepes_ooc.rendering.explanation import Explained

CELL_WIDTH = 16
MOST_RANKED = 5
MOST_REPELLING = 1
SIGNS = {"attract": "+", "repel": "-", "neutral": ""}


@click.command(short_help="Explain one sample: attracting and repelling landmarks.")
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
@click.option("--top", type=options.IntAtLeast(min=1), help="Landmarks; default all stored ones.")
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
    """Explain one sample: which landmarks attract it, and which repel it.

    The sample is one of the source (--sample) or a new one (--input), which goes through the frozen
    network. Only small stores are read.
    """
    from krepes_ooc.runner.explain import explain as explain_samples

    root = resolve_workspace(recipe, workspace)
    explanations = explain_samples(root, sample=sample, file=file, top=top, recipe=recipe)
    # The card first: if it cannot be written, nothing is printed either.
    if png is not None:
        _write_card(explanations, png)
    if as_json:
        print_json([_document(one) for one in explanations])
        return
    for one in explanations:
        _show(one)
    if png is not None:
        echo(f"wrote {png}")


def _write_card(explanations: list[Explained], target: Path) -> None:
    """Write a single explanation as a picture.

    Raises:
        UsageError: several samples, or the file cannot be written.
    """
    from krepes_ooc.rendering.explanation_card import draw_card

    if len(explanations) != 1:
        raise UsageError(f"{len(explanations)} samples", where="--png", expected="one sample")
    try:
        target.write_bytes(draw_card(explanations[0]))
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(target)) from error


def _document(one: Explained) -> dict[str, Any]:
    """The explanation as JSON, with the audit that it belongs to."""
    assert one.audit.influence is not None
    return {
        "recipe": one.audit.subject.recipe,
        "objective": one.audit.subject.objective,
        "measure": one.audit.influence.measure,
        "warnings": list(one.audit.warnings),
        "sample": one.record(),
    }


def _show(one: Explained) -> None:
    """Print the counts of landmarks, then the landmarks, then the columns of a table row."""
    from krepes_ooc.rendering.landmark_links import NOTHING_REPELS

    for warning in one.audit.warnings:
        echo(f"warning: {warning}")
    # One line of counts.
    record = one.record()
    class_name = f" ({printable(record['class'])})" if record["class"] else ""
    counts = f"{record['attract']} attract, {record['repel']} repel"
    if one.repelling_only:
        counts += f", {len(one.repelling_only)} further ones repel"
    if record["same_class"] is not None:
        counts += f", {record['same_class']} of {record['ranked']} ranked share its class"
    echo(f"sample {printable(str(record['name']))}{class_name}: {counts}")
    # Ranked landmarks, then the most repelling ones that no rank holds.
    columns = ("rank", "", "score", "contribution", "kernel", "class", "landmark")
    links = [*record["landmarks"], *(record["repelling"] or ())]
    print_table("", columns, [_link_cells(link) for link in links])
    if one.nothing_repels:
        echo(NOTHING_REPELS.lower().rstrip("."))
    if one.agrees is not None:
        _show_columns(one)


def _link_cells(link: dict[str, Any]) -> tuple[Any, ...]:
    """Cells of one landmark: rank, sign, numbers, class and name."""
    contribution = link["contribution"]
    sign = ""
    if contribution is not None:
        sign = "attracts" if contribution >= 0 else "repels"
    numbers = [
        "-" if link[name] is None else f"{link[name]:.3g}"
        for name in ("score", "contribution", "kernel")
    ]
    return (link["rank"] or "-", sign, *numbers, link["class"] or "", link["name"])


def _show_columns(one: Explained) -> None:
    """The sample's row beside the rows of its first landmarks; equal values are marked."""
    from krepes_ooc.rendering.drawing.sample_view import plain_cell

    sample_values = one.sample.samples.values
    landmark_values = one.landmarks.samples.values
    agrees = one.agrees
    assert sample_values is not None
    assert landmark_values is not None
    assert agrees is not None
    # One column for each landmark, headed by its sign and rank.
    links = one.beside(MOST_RANKED, MOST_REPELLING)
    head = ["column", "sample", *(f"{SIGNS[link.kind]}{link.rank or ''}" for _, link in links)]
    # One row for each column of the table.
    rows = []
    for c, column in enumerate(one.audit.columns):
        cells = [
            _shortened(plain_cell(landmark_values[link.row, c], column))
            + (" =" if agrees[place, c] else "")
            for place, link in links
        ]
        sample_cell = _shortened(plain_cell(sample_values[one.row, c], column))
        rows.append((column.name, sample_cell, *cells))
    title = "\nits row beside those of its landmarks; = agrees, + attracts, - repels"
    print_table(title, head, rows)


def _shortened(text: str) -> str:
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"
