"""krepes plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import echo, print_json, print_table
from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.errors import printable


@click.command(short_help="Show what a recipe would cost.")
@options.recipe
@options.option_group(
    options.workspace,
    options.memory,
    options.workers,
    options.cluster,
    options.overrides,
    options.with_stages,
    options.as_json,
)
def plan(
    recipe: str,
    workspace: Path | None,
    memory: int | None,
    workers: int | None,
    cluster: str | None,
    overrides: tuple[str, ...],
    with_stages: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show what RECIPE would cost: units, bytes, memory, workers of every stage.

    Computes nothing, and writes nothing where there is no workspace yet. Exit 3 if it does not fit.
    With --cluster memory, workers and time are those of one worker of the site.
    """
    from krepes_ooc.engine.cluster.connect import parse_cluster
    from krepes_ooc.runner.audit import Options, default_workspace
    from krepes_ooc.runner.plan import make_plan, refuse_unfit_plan
    from krepes_ooc.runner.recipe import Recipe, enable_stages

    loaded = Recipe.load(recipe, (*overrides, *enable_stages(with_stages)))
    root = workspace or default_workspace(loaded)
    spec = None if cluster is None else parse_cluster(cluster, memory)
    if spec is not None and spec.kind != "local":
        # A worker process computes one task at a time in the memory of its site.
        memory = spec.memory
        workers = 1
    # Lines about a long opening go to stderr, beside the table or the JSON.
    planned = make_plan(
        loaded,
        root,
        Options(memory=memory, workers=workers),
        timed=True,
        note=lambda text: click.echo(printable(text), err=True),
    )
    if as_json:
        print_json(planned)
    else:
        _show_plan(planned)
        if spec is not None and spec.site is not None:
            _show_site(spec)
    # After the output: a plan that does not fit is shown, then refused.
    refuse_unfit_plan(planned, root)


def _show_site(spec: Any) -> None:
    """Print what a site's file asks for, and what would refuse the run here."""
    from krepes_ooc.errors import KrepesError
    from krepes_ooc.runner.preflight import refuse_no_queue

    site = spec.site
    count = site.jobs * site.processes
    echo(
        f"cluster: {site.scheduler}, {site.jobs} jobs of {site.processes} processes, "
        f"{site.memory} each, walltime {site.walltime}, interface {site.interface}; memory and "
        f"time above are those of one worker, {count} share the units of a stage"
    )
    if site.interface == "lo" and site.scheduler not in ("local", "running"):
        echo("warning: interface lo: jobs on other nodes cannot reach this machine; ip -brief addr")
    try:
        refuse_no_queue(spec)
    except KrepesError as error:
        echo(f"warning: {error}")


def _show_plan(planned: Any) -> None:
    """Print a table of stages, then disk, memory, time, source, sizes and feature rows."""
    from krepes_ooc.runner.plan import format_range
    from krepes_ooc.stages.groups.declared import left_out_line

    columns = ("stage", "state", "units", "disk", "memory", "workers", "time")
    rows = [
        (
            stage["stage"],
            stage["state"],
            stage["units"],
            format_bytes(stage["disk_bytes"]),
            format_bytes(stage["memory_bytes"]) + ("" if stage["workers"] else " (does not fit)"),
            stage["workers"] or "-",
            f"{format_range(*stage['seconds_range'])} s",
        )
        for stage in planned["stages"]
    ]
    print_table("", columns, rows)
    # Totals of the stages that are left, against what is there.
    left = [stage for stage in planned["stages"] if stage["state"] != "sealed"]
    if left:
        least, most = (sum(stage["seconds_range"][end] for stage in left) for end in (0, 1))
        echo(f"time: {format_range(least, most)} s for the stages that are left")
    disk = planned["disk"]
    parked = f", {format_bytes(disk['parked'])} of earlier results" if disk["parked"] else ""
    echo(
        f"disk: {format_bytes(disk['needed'])} to write{parked}, {format_bytes(disk['free'])} free"
    )
    largest = max(planned["stages"], key=lambda stage: stage["memory_bytes"])
    echo(
        f"memory: {format_bytes(planned['memory']['budget'])} allowed; anonymous memory, of which "
        f"{largest['stage']} needs most, {format_bytes(largest['memory_bytes'])}"
    )
    for line in planned["source"]:
        echo(f"source: {line}")
    echo(f"audit: {_sizes_line(planned['shape'])}")
    if left_out := left_out_line(planned["groups"]["left_out"]):
        echo(f"groups: {planned['groups']['count']}; {left_out}")
    for key, text in planned["rows"].items():
        echo(f"{key}: {text}")
    if trainings := planned["trainings"]:
        echo(_trainings_line(trainings))


def _sizes_line(sizes: Any) -> str:
    """Sizes of the audit in words."""
    return (
        f"{sizes['n_samples']:,} samples x {sizes['n_views']} views, "
        f"{sizes['n_landmarks']:,} landmarks, {sizes['n_components']} components, "
        f"{sizes['n_explained']:,} of {sizes['n_audited']:,} audited samples explained; "
        f"blocks of {sizes['block_rows']:,} samples, rows of {sizes['n_features']:,} features"
    )


def _trainings_line(trainings: Any) -> str:
    """Number and time of the trainings of stage retraining."""
    each = trainings["seconds_of_one"]
    left = f"retraining: {trainings['left']} of {trainings['trainings']} trainings left"
    if each is None:
        return f"{left}, seconds of one {trainings['from']}"
    total = trainings["left"] * each
    return f"{left} x {each:.1f} s ({trainings['from']}) = {total:,.0f} s in one process"
