"""krepes run and krepes plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from krepes_ooc.blocks import format_bytes
from krepes_ooc.cli import options
from krepes_ooc.cli.console import Bars, Lines, print_json, print_table
from krepes_ooc.errors import StageFailed


@click.command()
@options.recipe
@options.stacked(
    options.workspace,
    options.memory,
    options.workers,
    options.device,
    options.overrides,
    options.until,
    options.only,
    options.restart_stale,
    options.mixed_numerics,
    options.max_time,
    options.strict,
    options.quiet,
    options.as_json,
)
def run(recipe: str, workspace: Path | None, overrides: tuple[str, ...], **given: Any) -> None:
    """Run RECIPE (a shipped name or a .yaml file) to its sealed end, or on from where it stopped."""
    from krepes_ooc.recipes import Recipe
    from krepes_ooc.runner import Options
    from krepes_ooc.runner import run as run_recipe

    options.check_device(given["device"])
    quiet = given["quiet"] or given["as_json"]
    asked = Options(
        given["memory"],
        given["workers"],
        given["until"],
        given["only"],
        given["restart_stale"],
        given["max_time"],
        given["allow_mixed_numerics"],
    )
    listener = _listener(quiet)
    try:
        summary = run_recipe(Recipe.load(recipe, overrides), workspace, asked, listener)
    finally:
        if isinstance(listener, Bars):
            listener.close()
    trusted = _trusted(summary.workspace)
    if given["as_json"]:
        print_json({**vars(summary), "trusted": trusted})
    elif not quiet:
        _say(summary, trusted)
    if given["strict"] and trusted is False:
        raise StageFailed("the step is not trusted", where=str(summary.workspace), advice="see the report")


@click.command()
@options.recipe
@options.stacked(
    options.workspace, options.memory, options.workers, options.overrides, options.as_json
)
def plan(
    recipe: str,
    workspace: Path | None,
    memory: int | None,
    workers: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what RECIPE would do: units, bytes, memory and workers of every stage. Computes nothing."""
    from krepes_ooc.recipes import Recipe
    from krepes_ooc.runner import Options, default_workspace, make_plan

    loaded = Recipe.load(recipe, overrides)
    planned = make_plan(loaded, workspace or default_workspace(loaded), Options(memory, workers))
    if as_json:
        print_json(planned)
        return
    columns = ("stage", "state", "units", "disk", "memory", "workers", "flops")
    rows = [
        (
            stage["stage"],
            stage["state"],
            stage["units"],
            format_bytes(stage["disk_bytes"]),
            format_bytes(stage["memory_bytes"]) + ("" if stage["workers"] else " (does not fit)"),
            stage["workers"] or "-",
            f"{stage['flops']:.1e}",
        )
        for stage in planned["stages"]
    ]
    print_table("", columns, rows)
    disk = planned["disk"]
    click.echo(
        f"disk: {format_bytes(disk['needed'])} to write, {format_bytes(disk['parked'])} parked, "
        f"{format_bytes(disk['free'])} free"
    )
    click.echo(f"memory: {format_bytes(planned['memory']['budget'])} allowed")
    shape = planned["shape"]
    click.echo(", ".join(f"{key.removeprefix('n_')} {value:,}" for key, value in shape.items()))


def _listener(quiet: bool) -> Any:
    from krepes_ooc.engine.progress import Silent

    if quiet:
        return Silent()
    if sys.stdout.isatty():
        from rich.console import Console

        return Bars(Console())
    return Lines()


def _trusted(workspace: Path) -> bool | None:
    from krepes_ooc.storage.workspace import Workspace

    space = Workspace(workspace)
    if not space.record("newton", "newton").seal():
        return None
    return bool(space.reader("newton").attributes["trusted"])


def _say(summary: Any, trusted: bool | None) -> None:
    if not summary.ran:
        click.echo(f"nothing to do: all {len(summary.skipped)} stages are sealed")
    else:
        peak = format_bytes(summary.peak_bytes)
        click.echo(f"sealed {', '.join(summary.ran)} in {summary.seconds:.1f} s, peak memory {peak}")
    if trusted is False:
        click.echo("the Newton step is not trusted: the report says why")
    if (summary.workspace / "report.html").exists():
        click.echo(f"report: {summary.workspace / 'report.html'}")
