"""krepes explain: landmarks of samples, sums over landmarks, and groups left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import echo, print_json
from krepes_ooc.cli.explanation_tables import print_landmarks, print_sum, print_without
from krepes_ooc.cli.inspect_workspace import recipe_or_none
from krepes_ooc.errors import UsageError

if TYPE_CHECKING:
    from krepes_ooc.rendering.explanation import Explained
    from krepes_ooc.rendering.explanation_sum import ExplainedSum
    from krepes_ooc.rendering.explanation_without import ExplainedWithout


@click.command(short_help="Explain samples: landmarks, pairs, decisions, groups left out.")
@recipe_or_none
@options.workspace
@click.option(
    "--sample",
    "samples",
    type=options.IntAtLeast(min=0),
    multiple=True,
    help="Position of a sample in the source; may be repeated.",
)
@click.option(
    "--input",
    "file",
    type=click.Path(path_type=Path),
    help="New samples: .json or .csv rows, a picture, .npy, or .txt.",
)
@click.option(
    "--against",
    type=options.IntAtLeast(min=0),
    help="Explain the similarity to this sample of the source.",
)
@click.option("--probe", metavar="LABEL", help="Explain a linear probe's logit of this class.")
@click.option("--without", metavar="GROUP", help="Neighbours with and without this group.")
@click.option("--corpus", is_flag=True, help="Rank all samples of the source instead of landmarks.")
@click.option(
    "--coefficients",
    type=click.Choice(["auto", "step", "minimiser", "distilled"]),
    help="With --against and --probe; default auto, those that the audit explains with.",
)
@click.option("--top", type=options.IntAtLeast(min=1), help="Landmarks to list.")
@click.option("--png", type=click.Path(path_type=Path), help="Write a card as a picture.")
@options.as_json
def explain(
    recipe: str | None,
    workspace: Path | None,
    samples: tuple[int, ...],
    file: Path | None,
    against: int | None,
    probe: str | None,
    without: str | None,
    corpus: bool,
    coefficients: str | None,
    top: int | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Explain samples: which landmarks attract them, and which repel them.

    A sample is one of the source (--sample) or a new one (--input), which goes through the frozen
    network. --against and --probe split a similarity or a logit into a sum over landmarks;
    --without shows the nearest landmarks with and without a group of samples; --corpus ranks all
    samples by the kernel instead of landmarks.
    """
    from krepes_ooc.runner.explanation.questions import answer
    from krepes_ooc.runner.targets import find_workspace

    root, named = find_workspace(recipe, workspace)
    asked = {"sample": samples, "file": file, "top": top, "recipe": named}
    explanations = answer(
        root,
        asked,
        against=against,
        probe=probe,
        without=without,
        corpus=corpus,
        coefficients=coefficients,
        prefix="--",
    )
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


def _write_card(
    explanations: Sequence[Explained | ExplainedSum | ExplainedWithout], target: Path
) -> None:
    """Write a single explanation as a picture.

    Raises:
        UsageError: several samples, or the file cannot be written.
    """
    from krepes_ooc.rendering.explanation import Explained
    from krepes_ooc.rendering.explanation_card import draw_card
    from krepes_ooc.rendering.explanation_sum import ExplainedSum
    from krepes_ooc.rendering.explanation_without import HEADINGS

    if len(explanations) != 1:
        raise UsageError(f"{len(explanations)} samples", where="--png", expected="one sample")
    one = explanations[0]
    if isinstance(one, Explained):
        card = draw_card(one)
    elif isinstance(one, ExplainedSum):
        card = draw_card(one.explained(), one.sentences())
    else:
        card = draw_card(one.explained(), one.sentences(), HEADINGS)
    try:
        target.write_bytes(card)
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(target)) from error


def _document(one: Explained | ExplainedSum | ExplainedWithout) -> dict[str, Any]:
    """The explanation as JSON, with the audit that it belongs to."""
    from krepes_ooc.rendering.explanation import Explained

    document = {
        "recipe": one.audit.subject.recipe,
        "objective": one.audit.subject.objective,
        "warnings": list(one.audit.warnings),
    }
    if not isinstance(one, Explained):
        return document | one.record()
    assert one.audit.influence is not None
    return {**document, "measure": one.audit.influence.measure, "sample": one.record()}


def _show(one: Explained | ExplainedSum | ExplainedWithout) -> None:
    """Print one explanation for people."""
    from krepes_ooc.rendering.explanation import Explained
    from krepes_ooc.rendering.explanation_sum import ExplainedSum

    for warning in one.audit.warnings:
        echo(f"warning: {warning}")
    if isinstance(one, Explained):
        print_landmarks(one)
    elif isinstance(one, ExplainedSum):
        print_sum(one)
    else:
        print_without(one)
