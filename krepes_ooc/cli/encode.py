"""krepes encode."""

from __future__ import annotations

from pathlib import Path

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import echo, print_json


@click.command(short_help="Write the encoding of a table to a file.")
@options.recipe
@options.option_group(
    options.workspace, options.overrides, options.out(required=True), options.as_json
)
def encode(
    recipe: str, workspace: Path | None, overrides: tuple[str, ...], out: Path, as_json: bool
) -> None:
    """Write means, scales and categories of the table of RECIPE to a new JSON file.

    RECIPE names the table that the network was trained on. Recipes that audit the network on other
    rows name the file as source.encoding.
    """
    from krepes_ooc.runner.learn_encoding import learn_encoding
    from krepes_ooc.runner.recipe import Recipe

    learned = learn_encoding(Recipe.load(recipe, overrides), out, workspace)
    if as_json:
        print_json({"file": str(out), **vars(learned)})
        return
    echo(f"inputs: {learned.layout}")
    for name, count in learned.missing.items():
        echo(f"column {name!r}: {count:,} missing, to be filled with the mean")
    echo(f"wrote {out}")
