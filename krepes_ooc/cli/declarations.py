"""krepes stores and recipes: the declarations that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import print_json, print_table
from krepes_ooc.core import resources
from krepes_ooc.errors import UsageError


@click.group(short_help="Show what every array on disk is.")
def stores() -> None:
    """The stores of a workspace: what every array on disk is."""


@stores.command("list")
def list_stores() -> None:
    """List every store."""
    from krepes_ooc.storage.contracts import contract_names, load_contract

    contracts = [load_contract(name) for name in contract_names()]
    rows = [(c.store, c.writer, c.version, c.about) for c in contracts]
    print_table("", ("store", "written by", "version", "about"), rows)


@stores.command("show")
@click.argument("store")
def show_store(store: str) -> None:
    """Show arrays and attributes of one store."""
    from krepes_ooc.storage.contracts import load_contract

    # Head, then arrays and attributes as tables.
    contract = load_contract(store)
    click.echo(f"{contract.store}, version {contract.version}, written by stage {contract.writer}")
    click.echo(contract.about)
    rows = [
        (name, ", ".join(array.dims), " or ".join(array.dtype), array.chunks, array.about)
        for name, array in contract.arrays.items()
    ]
    print_table("\narrays", ("name", "dims", "dtype", "chunks", "about"), rows)
    print_table("\nattributes", ("name", "about"), list(contract.attributes.items()))


@click.group(short_help="Show and copy the recipes that ship with krepes.")
def recipes() -> None:
    """The recipes that ship with krepes."""


@recipes.command("list")
def list_recipes() -> None:
    """List every recipe."""
    from krepes_ooc.runner.recipe import Recipe

    rows = [(name, Recipe.load(name).about) for name in resources.names("pipelines")]
    print_table("", ("recipe", "about"), rows)


@recipes.command("show")
@click.argument("recipe")
def show_recipe(recipe: str) -> None:
    """Print the YAML of one recipe."""
    click.echo(resources.find("pipelines", recipe).read_text(encoding="utf-8"), nl=False)


@recipes.command("schema", short_help="Print the JSON schema of recipes, for editors.")
@options.out()
def show_schema(out: Path | None) -> None:
    """Print or write the JSON schema of recipes: all keys with type, limits, default and meaning.

    An editor that knows the schema completes and checks a recipe while it is written.
    """
    from krepes_ooc.runner.recipe_schema import recipe_schema

    # Keys of the file in the order of declaration; printed JSON is sorted.
    if out is None:
        print_json(recipe_schema())
        return
    _write_text(out, json.dumps(recipe_schema(), indent=1) + "\n")
    click.echo(f"wrote {out}")


def _write_text(path: Path, text: str) -> None:
    """Write a file that the user named.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(path)) from error


@recipes.command("copy", short_help="Copy a recipe to a file, to be edited and run.")
@click.argument("recipe")
@click.argument("target", type=click.Path(path_type=Path))
def copy_recipe(recipe: str, target: Path) -> None:
    """Copy RECIPE to the file TARGET, to be edited and run as `krepes run TARGET`."""
    from krepes_ooc.runner.recipe import copy_recipe as copy

    copy(recipe, target)
    click.echo(f"wrote {target}")


@click.group(short_help="Show and copy the files for computing sites.")
def sites() -> None:
    """Site files for --cluster and batch scripts that ship with krepes."""


@sites.command("list")
def list_sites() -> None:
    """List every site file and batch script."""
    found = resources.site_files()
    print_table("", ("name", "file"), [(name, path.name) for name, path in found.items()])


@sites.command("copy", short_help="Copy a site file or batch script, to be edited.")
@click.argument("name")
@click.argument("target", type=click.Path(path_type=Path))
def copy_site(name: str, target: Path) -> None:
    """Copy the site file or batch script NAME to the file TARGET, to be edited.

    Raises:
        UsageError: no such file, or the target exists.
    """
    found = resources.site_files()
    if name not in found:
        raise UsageError(f"no site {name!r}", expected="one of " + ", ".join(found))
    if target.exists():
        raise UsageError("the file exists", where=str(target), expected="a new file")
    _write_text(target, found[name].read_text(encoding="utf-8"))
    click.echo(f"wrote {target}")
