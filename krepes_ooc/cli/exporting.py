"""krepes export."""

from __future__ import annotations

from pathlib import Path

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.inspecting import recipe_or_none, which
from krepes_ooc.errors import UsageError

FORMATS = {".parquet": "parquet", ".csv": "csv", ".nc": "netcdf", ".zarr": "zarr"}


@click.command(short_help="Copy a store for other programs.")
@recipe_or_none
@options.workspace
@options.store
@click.option(
    "--format",
    "kind",
    type=click.Choice(tuple(FORMATS.values())),
    help="Kind of file; default by the ending of --out.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="New file; zarr: a new folder."
)
@click.option("--dim", metavar="NAME", help="Dimension whose entries are the rows of a table.")
def export(
    recipe: str | None,
    workspace: Path | None,
    store: str | None,
    kind: str | None,
    out: Path,
    dim: str | None,
) -> None:
    """Copy one small store (influence, audited, fidelity ...) to a file for other programs.

    In a table codes are texts, and each ranked landmark of a sample has a row of its own.
    """
    from krepes_ooc.storage.export import export_store
    from krepes_ooc.storage.workspace import Workspace

    left = export_store(
        Workspace(which(recipe, workspace)), store or "", out, kind or _by_ending(out), dim
    )
    click.echo(f"wrote {out}")
    if left:
        click.echo(f"not in the table: {', '.join(left)} (--dim, or --format netcdf or zarr)")


def _by_ending(out: Path) -> str:
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
