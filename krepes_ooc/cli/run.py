"""krepes run, plan and report."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from krepes_ooc.cli import options
from krepes_ooc.cli.console import Bars, echo, on_interrupt, print_json, show_page
from krepes_ooc.cli.inspect_workspace import recipe_or_none
from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.core.progress_lines import NOTE_LENGTH, Lines
from krepes_ooc.errors import StageFailed, UsageError

# Stages that a summary names; of more it says the number
FEW_STAGES = 4


@click.command(short_help="Run a recipe, or resume it.")
@options.recipe
@options.option_group(
    options.workspace,
    options.memory,
    options.workers,
    options.device,
    options.cluster,
    options.print_job,
    options.overrides,
    options.with_stages,
    options.until,
    options.only,
    options.shard,
    options.restart_stale,
    options.repair,
    options.mixed_numerics,
    options.max_time,
    options.strict,
    options.open_page,
    options.verbose,
    options.quiet,
    options.as_json,
)
def run(recipe: str, workspace: Path | None, overrides: tuple[str, ...], **given: Any) -> None:
    """Run RECIPE to its sealed end, or on from where it stopped.

    RECIPE is a shipped name (krepes recipes list) or the path of a .yaml file.
    """
    from krepes_ooc.engine.run_control import StopFlag, stop_on_signals

    if given["print_job"]:
        _print_job(given["cluster"], given["memory"])
        return
    quiet = given["quiet"] or given["as_json"]
    stop = StopFlag(given["max_time"], on_interrupt)
    # Signals are handled from here on: the imports below take a second.
    with stop_on_signals(stop), _listener(quiet, verbose=given["verbose"]) as listener:
        from krepes_ooc import runner
        from krepes_ooc.runner.recipe import Recipe, enable_stages

        # Names of options are those of the command line, but for two.
        run_options = runner.Options(
            memory=given["memory"],
            workers=given["workers"],
            until=given["until"],
            only=given["only"],
            restart_stale=given["restart_stale"],
            repair=given["repair"],
            mixed_numerics=given["allow_mixed_numerics"],
            cluster=_cluster_spec(given["cluster"], given["memory"]),
            shard=given["shard"],
            device=given["device"],
        )
        loaded = Recipe.load(recipe, (*overrides, *enable_stages(given["with_stages"])))
        summary = runner.run(loaded, workspace, run_options, listener, stop)
    # The listener is closed: bars no longer draw over what is printed.
    if given["as_json"]:
        print_json(vars(summary))
    elif not quiet:
        _print_summary(summary)
    if given["open_page"] and "report" not in summary.left:
        show_page(summary.workspace / "report.html")
    if given["strict"]:
        _require_usable(summary)


@click.command(short_help="Draw the report again.")
@recipe_or_none
@options.option_group(options.workspace, options.open_page, options.quiet)
@click.option(
    "--samples",
    metavar="N|hidden",
    help="Cards that are drawn without a search; hidden: a page without samples.",
)
def report(
    recipe: str | None,
    workspace: Path | None,
    open_page: bool,
    quiet: bool,
    samples: str | None,
) -> None:
    """Draw the report of a finished audit again; nothing else is computed."""
    from krepes_ooc import runner
    from krepes_ooc.runner.audit import recorded_recipe
    from krepes_ooc.runner.targets import find_workspace
    from krepes_ooc.storage.workspace import Workspace

    root, named = find_workspace(recipe, workspace)
    # The recorded recipe, with as many cards as were asked for: nothing but the report is stale.
    changes = () if samples is None else (f"stages.report.samples={samples}",)
    run_options = runner.Options(only="report", restart_stale=True, again=True)
    with _listener(quiet) as listener:
        recorded = recorded_recipe(Workspace(root), changes, require="trust", named=named)
        summary = runner.run(recorded, root, run_options, listener)
    if not quiet:
        echo(f"report: {summary.workspace / 'report.html'}")
    if open_page:
        show_page(summary.workspace / "report.html")


def _cluster_spec(text: str | None, memory: int | None) -> Any:
    """The workers that --cluster names, or None."""
    from krepes_ooc.engine.cluster.connect import parse_cluster

    return None if text is None else parse_cluster(text, memory)


def _print_job(text: str | None, memory: int | None) -> None:
    """Print the batch script that a site's queue would be given.

    Raises:
        UsageError: --cluster names no site file.
    """
    from krepes_ooc.engine.cluster.site_file import job_script

    site = getattr(_cluster_spec(text, memory), "site", None)
    if site is None:
        raise UsageError(
            "there is no job to print",
            where="--print-job",
            expected="--cluster with the path of a site's .yaml",
            advice="copy one from pipelines/hpc",
        )
    echo(job_script(site), nl=False)


@contextlib.contextmanager
def _listener(quiet: bool, *, verbose: bool = False) -> Iterator[Any]:
    """Progress of a run: none, plain lines on a pipe, or bars on a terminal."""
    from krepes_ooc.engine.run_control import Silent

    if quiet:
        yield Silent()
    elif not sys.stdout.isatty():
        yield Lines(click.echo, None if verbose else NOTE_LENGTH)
    else:
        with contextlib.closing(Bars(None if verbose else NOTE_LENGTH)) as bars:
            yield bars


def _print_summary(summary: Any) -> None:
    """Print what was sealed, what is left, and the verdict."""
    if summary.ran:
        peak = format_bytes(summary.peak_bytes)
        many = len(summary.ran) > FEW_STAGES
        ran = f"{len(summary.ran)} stages" if many else ", ".join(summary.ran)
        echo(f"sealed {ran} in {summary.seconds:.1f} s, peak resident memory {peak}")
    elif summary.shard:
        echo(f"{summary.shard} is on disk; a run without --shard seals the stage")
    elif summary.left:
        echo(f"nothing to do: {', '.join(summary.skipped)} sealed")
    else:
        echo(f"nothing to do: all {len(summary.skipped)} stages are sealed")
    # What the next command needs: stages that are left, trust, the report.
    if summary.left:
        echo(f"left: {', '.join(summary.left)}")
    if summary.verdict_sentence:
        echo(f"verdict: {summary.verdict_sentence}")
    elif summary.trusted is False:
        echo("the Newton step is not trusted: the report says why")
    if "report" not in summary.left:
        echo(f"report: {summary.workspace / 'report.html'}")


def _require_usable(summary: Any) -> None:
    """Raise if the audit is not usable, or its step not trusted where there is no verdict yet.

    Raises:
        StageFailed: it is not.
    """
    options.require_usable(summary.verdict, summary.verdict_sentence, summary.workspace)
    if not summary.verdict and summary.trusted is False:
        raise StageFailed(
            "the Newton step is not trusted",
            where=str(summary.workspace),
            expected="a trusted step, because of --strict",
            advice="krepes stores shows the attributes of newton",
        )
