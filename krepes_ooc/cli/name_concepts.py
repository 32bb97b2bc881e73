"""krepes concepts: discovered concepts, and the names that people give them."""

from __future__ import annotations

from pathlib import Path

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import print_json, print_table
from krepes_ooc.cli.inspect_workspace import recipe_or_none, resolve_workspace

STALE = "krepes run --restart-stale computes stages concepts and report again"


@click.group(short_help="Show and name discovered concepts.")
def concepts() -> None:
    """Concepts that were found without labels, and the names that you give them."""


@concepts.command("list")
@recipe_or_none
@options.option_group(options.workspace, options.as_json)
def list_discovered(recipe: str | None, workspace: Path | None, as_json: bool) -> None:
    """List the discovered concepts with share of the samples, stability and names."""
    from krepes_ooc.runner.kept_concepts import list_concepts
    from krepes_ooc.storage.workspace import Workspace

    found = list_concepts(Workspace(resolve_workspace(recipe, workspace)))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(each["concept"]),
            f"{each['share']:.3f}",
            f"{each['stability']:.2f}" + ("" if each["stable"] else " (unstable)"),
            "" if each["view_agreement"] is None else f"{each['view_agreement']:.2f}",
            ", ".join(each["kept_as"]),
        )
        for each in found
    ]
    print_table("", ("concept", "share", "stability", "view agreement", "kept as"), rows)


@concepts.command()
@click.argument("number", type=int)
@recipe_or_none
@click.option("--as", "name", required=True, metavar="NAME", help="What you call it.")
@options.workspace
def keep(number: int, recipe: str | None, name: str, workspace: Path | None) -> None:
    """Name a discovered concept and keep it as a concept set.

    The name lies in a file beside the stores: only stages concepts and report become stale.
    """
    from krepes_ooc.runner.audit import recorded_recipe
    from krepes_ooc.runner.kept_concepts import keep_concept, list_concepts
    from krepes_ooc.storage.workspace import Workspace

    space = Workspace(resolve_workspace(recipe, workspace))
    recorded = recorded_recipe(space)
    sets = recorded.settings["concepts"].sets if recorded is not None else {}
    found = keep_concept(space, number, name, sets)
    click.echo(
        f"kept concept {number} as {found.name!r}: {len(found.positive)} samples that show it, "
        f"{len(found.negative)} that do not; {STALE}"
    )
    if not list_concepts(space)[number]["stable"]:
        click.echo(f"warning: concept {number} is unstable: fits on half the samples differ")


@concepts.command()
@click.argument("name")
@recipe_or_none
@options.workspace
def drop(name: str, recipe: str | None, workspace: Path | None) -> None:
    """Take the name of a concept away."""
    from krepes_ooc.runner.kept_concepts import drop_concept
    from krepes_ooc.storage.workspace import Workspace

    drop_concept(Workspace(resolve_workspace(recipe, workspace)), name)
    click.echo(f"dropped {name!r}; {STALE}")
