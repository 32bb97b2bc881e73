"""krepes status, krepes verify and krepes doctor."""

from __future__ import annotations

from pathlib import Path

import click

from krepes_ooc.blocks import format_bytes
from krepes_ooc.cli import options
from krepes_ooc.cli.console import print_json, print_table
from krepes_ooc.errors import DamageError, UsageError

recipe_or_none = click.argument("recipe", required=False, shell_complete=options.complete_recipe)


@click.command(short_help="Show the state of every stage.")
@recipe_or_none
@options.stacked(options.workspace, options.overrides, options.as_json)
def status(
    recipe: str | None, workspace: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Show every stage: sealed, stale, missing, or how many units are on disk."""
    from krepes_ooc.runner import read_status

    found = read_status(recipe, which(recipe, workspace), overrides)
    if as_json:
        print_json(found)
        return
    rows = [(stage["stage"], stage["state"], stage["detail"]) for stage in found["stages"]]
    print_table(f"{found['workspace']} ({found['recipe']})", ("stage", "state", "detail"), rows)
    if found["note"]:
        click.echo(found["note"])


@click.command(short_help="Recompute every checksum.")
@recipe_or_none
@options.workspace
@options.store
@options.as_json
def verify(recipe: str | None, workspace: Path | None, store: str | None, as_json: bool) -> None:
    """Recompute every checksum and name every damaged file. Exit 5 if there is one."""
    from krepes_ooc.runner import verify_workspace

    root = which(recipe, workspace)
    found = verify_workspace(root, store)
    damage = [str(item) for item in found.damage]
    if as_json:
        print_json(
            {"stages": found.stages, "files": found.files, "bytes": found.bytes, "damage": damage}
        )
    else:
        for line in damage:
            click.echo(line)
        click.echo(
            f"verified {found.files} files, {format_bytes(found.bytes)}: {len(damage)} damaged"
        )
    _refuse_damage(root, len(damage))


@click.command(short_help="Say what this machine has.")
@options.as_json
def doctor(as_json: bool) -> None:
    """Say what this machine has: cores, memory, BLAS, GPU, optional parts."""
    from krepes_ooc.engine.doctor import examine

    found = examine(Path.cwd())
    if as_json:
        print_json(found)
        return
    print_table("", ("", ""), [(key, value) for key, value in found.items()])


def which(recipe: str | None, workspace: Path | None) -> Path:
    """The folder, given or following from the recipe.

    Raises:
        UsageError: neither was given, or there is no such workspace.
    """
    if workspace is None:
        if recipe is None:
            raise UsageError("no workspace was named", expected="a recipe, or --workspace FOLDER")
        from krepes_ooc.recipes import Recipe
        from krepes_ooc.runner import default_workspace

        workspace = default_workspace(Recipe.load(recipe))
    if not (workspace / ".krepes").is_dir():
        raise UsageError(
            "no workspace there",
            where=str(workspace),
            expected="a folder that `krepes run` made",
            advice="run the recipe first, or name the folder with --workspace",
        )
    return workspace


def _refuse_damage(root: Path, count: int) -> None:
    """Make damage an error, so that scripts see it in the exit code.

    Raises:
        DamageError: there is any.
    """
    if count:
        raise DamageError(
            f"{count} damaged files",
            where=str(root),
            expected="the bytes that were written",
            advice="krepes run --repair computes exactly these again",
        )
