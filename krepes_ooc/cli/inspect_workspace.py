"""krepes status, verify, doctor and export."""

from __future__ import annotations

from pathlib import Path

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import echo, print_json, print_table
from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.errors import DamageError, UsageError, printable

recipe_or_none = click.argument("recipe", required=False, shell_complete=options.complete_recipe)


@click.command(short_help="Show the state of every stage.")
@recipe_or_none
@options.option_group(options.workspace, options.overrides, options.as_json)
def status(
    recipe: str | None, workspace: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Show every stage: sealed, stale, missing, or how many units are on disk."""
    from krepes_ooc.runner.status import read_status
    from krepes_ooc.runner.targets import find_workspace

    root, named = find_workspace(recipe, workspace)
    state = read_status(named, root, overrides)
    if as_json:
        print_json(state)
        return
    rows = [(stage["stage"], stage["state"], stage["detail"]) for stage in state["stages"]]
    print_table(f"{state['workspace']} ({state['recipe']})", ("stage", "state", "detail"), rows)
    if state["note"]:
        echo(state["note"])


@click.command(short_help="Show what a finished audit may be used for.")
@recipe_or_none
@options.option_group(options.workspace, options.strict, options.as_json)
@click.option("--schema", is_flag=True, help="Print the JSON schema of --json instead.")
def verdict(
    recipe: str | None, workspace: Path | None, strict: bool, as_json: bool, schema: bool
) -> None:
    """Show the verdict of a finished audit: every check with its criterion and figures."""
    from krepes_ooc.core.verdict import SCHEMA
    from krepes_ooc.runner.status import read_verdict

    if schema:
        print_json(SCHEMA)
        return
    root = resolve_workspace(recipe, workspace)
    found = read_verdict(root)
    if as_json:
        print_json(found.to_json())
    else:
        rows = [(check.outcome, check.title, check.words()) for check in found.checks]
        print_table(found.sentence, ("outcome", "check", "measured"), rows)
    if strict:
        options.require_usable(found.status, found.sentence, root)


@click.command(short_help="Recompute every checksum.")
@recipe_or_none
@options.workspace
@options.store
@options.as_json
def verify(recipe: str | None, workspace: Path | None, store: str | None, as_json: bool) -> None:
    """Recompute every checksum and name every damaged file. Exit 5 if there is one."""
    from krepes_ooc.runner.status import verify_workspace
    from krepes_ooc.storage.verify import STRANGER

    root = resolve_workspace(recipe, workspace)
    result = verify_workspace(root, store)
    damage = [str(item) for item in result.damage]
    if as_json:
        counts = {"stages": result.stages, "files": result.files, "bytes": result.bytes}
        print_json({**counts, "damage": damage})
    else:
        for line in damage:
            echo(printable(line))
        size = format_bytes(result.bytes)
        echo(f"verified {result.files} files, {size}: {len(damage)} damaged")
    # After the output, so that both forms end with the same exit code.
    _refuse_damage(root, len(damage), sum(item.problem == STRANGER for item in result.damage))


@click.command(short_help="Show hardware and optional dependencies.")
@options.as_json
def doctor(as_json: bool) -> None:
    """Show hardware and optional dependencies: cores, memory, BLAS, GPU, extras."""
    from krepes_ooc.engine.machine import examine

    facts = examine(Path.cwd())
    if as_json:
        print_json(facts)
        return
    print_table("", ("", ""), [(key, value) for key, value in facts.items()])


def resolve_workspace(recipe: str | None, workspace: Path | None) -> Path:
    """Folder of a workspace, by its option, its recipe or its own name.

    Raises:
        UsageError: neither is given, or there is no such workspace.
    """
    from krepes_ooc.runner.targets import find_workspace

    return find_workspace(recipe, workspace)[0]


def _refuse_damage(root: Path, count: int, strangers: int) -> None:
    """Raise if there is damage, so that scripts see it in the exit code.

    Args:
        root: the workspace.
        count: damaged files.
        strangers: those of them that krepes has not written, and so does not remove.

    Raises:
        DamageError: there is.
    """
    advice = ["krepes run --repair computes exactly these again"] * (count > strangers)
    if strangers:
        advice.append("remove the files named as not written by krepes: no repair does")
    if count:
        raise DamageError(
            f"{count} damaged files",
            where=str(root),
            expected="the bytes that were written",
            advice="; ".join(advice),
        )


# Ending of a file to its format.
FORMATS = {".parquet": "parquet", ".csv": "csv", ".nc": "netcdf", ".zarr": "zarr"}


@click.command(short_help="Copy a store for other programs.")
@recipe_or_none
@options.workspace
@options.store
@click.option(
    "--format",
    "kind",
    type=click.Choice(tuple(FORMATS.values())),
    help="Kind of file, a folder for zarr; default by the ending of --out.",
)
@options.out(required=True)
@click.option("--dim", metavar="NAME", help="Dimension whose entries are the rows of a table.")
def export(
    recipe: str | None,
    workspace: Path | None,
    store: str | None,
    kind: str | None,
    out: Path,
    dim: str | None,
) -> None:
    """Copy one small store (influence, audited, fidelity ...) to a new file for other programs.

    In a table codes are texts, and each ranked landmark of a sample has a row of its own.
    """
    from krepes_ooc.storage.export import export_store
    from krepes_ooc.storage.workspace import Workspace

    space = Workspace(resolve_workspace(recipe, workspace))
    omitted = export_store(space, store or "", out, kind or _format_of(out), dim)
    echo(f"wrote {out}")
    # A table has one dimension of rows: arrays with another one have no place in it.
    if omitted:
        echo(f"not in the table: {', '.join(omitted)} (--dim, or --format netcdf or zarr)")


def _format_of(out: Path) -> str:
    """The format that the ending of a file names.

    Raises:
        UsageError: it names none.
    """
    if out.suffix not in FORMATS:
        raise UsageError(
            "this ending names no format",
            where=f"--out {out}",
            expected=f"one of {', '.join(FORMATS)}",
            advice="or say --format",
        )
    return FORMATS[out.suffix]
