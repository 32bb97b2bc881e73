"""Options of all commands, declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from krepes_ooc.core.blocks import parse_bytes
from krepes_ooc.core.option_values import parse_shard, parse_time
from krepes_ooc.errors import KrepesError, StageFailed

Command = TypeVar("Command", bound=Callable[..., Any])


class IntAtLeast(click.IntRange):
    """An integer with a lower bound, shown as ``number``."""

    name = "number"


class _Parsed(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A value that a function of the Python interface parses too."""

    def __init__(self, name: str, parse: Callable[[Any], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value."""
        try:
            return self._parse(value)
        except KrepesError as error:
            self.fail(str(error), param, ctx)


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Shipped recipes and YAML files, for the shell."""
    from click.shell_completion import CompletionItem

    from krepes_ooc.core import resources

    names = [name for name in resources.names("pipelines") if name.startswith(incomplete)]
    return [*(CompletionItem(name) for name in names), CompletionItem(incomplete, type="file")]


def complete_stage(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of stages, for the shell."""
    from krepes_ooc.core.stage_order import STAGE_ORDER

    return [name for name in STAGE_ORDER if name.startswith(incomplete)]


def complete_store(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of stores, for the shell."""
    from krepes_ooc.core import resources

    return [name for name in resources.names("stores") if name.startswith(incomplete)]


# What is run, and where.
recipe = click.argument("recipe", shell_complete=complete_recipe)
workspace = click.option(
    "--workspace",
    "-w",
    type=click.Path(path_type=Path),
    help="Folder of the audit; default krepes-workspace/<recipe>.",
)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe key: stages.newton.damping=1.",
)
# With what it is run; nothing of this changes a result.
memory = click.option(
    "--memory",
    type=_Parsed("size", parse_bytes),
    help="Memory of the run; default 3/4 of what is free.",
)
workers = click.option("--workers", type=IntAtLeast(min=1), help="Threads; default all cores.")
device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where blocks are computed; auto: on an NVIDIA device if one can be used.",
)
cluster = click.option(
    "--cluster",
    metavar="WHERE",
    help="Workers: local, a site's .yaml (pipelines/hpc), or tcp://HOST:PORT.",
)
print_job = click.option(
    "--print-job", is_flag=True, help="Print the batch script of a --cluster job and stop."
)
shard = click.option(
    "--shard",
    type=_Parsed("part", parse_shard),
    help="With --only: compute part I of N, beside others (job arrays).",
)
# Which stages are run.
until = click.option(
    "--until", metavar="STAGE", shell_complete=complete_stage, help="Stop after this stage."
)
only = click.option(
    "--only", metavar="STAGE", shell_complete=complete_stage, help="Run this stage alone."
)
with_stages = click.option(
    "--with",
    "with_stages",
    multiple=True,
    metavar="STAGE",
    help="Switch an optional stage on, as stages.STAGE.enabled=true does: retraining.",
)
restart_stale = click.option(
    "--restart-stale", is_flag=True, help="Compute stages again whose inputs or settings changed."
)
store = click.option(
    "--store", metavar="NAME", shell_complete=complete_store, help="One store: krepes stores list."
)
repair = click.option(
    "--repair", is_flag=True, help="Find damaged files and compute exactly these again."
)
# How a run ends, and what it prints.
max_time = click.option(
    "--max-time",
    type=_Parsed("time", parse_time),
    help="Stop, resumable, after this time: 90s, 45m, 12h.",
)
mixed_numerics = click.option(
    "--allow-mixed-numerics",
    is_flag=True,
    help="Resume a stage that another kind of machine began.",
)
strict = click.option("--strict", is_flag=True, help="Exit 1 if the verdict is 'not usable'.")
open_page = click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
verbose = click.option(
    "--verbose", "-v", is_flag=True, help="Print long remarks whole; the report has them all."
)
quiet = click.option("--quiet", "-q", is_flag=True, help="Say nothing but errors.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def out(*, required: bool = False) -> Callable[[Command], Command]:
    """The file that a command writes."""
    path = click.Path(path_type=Path)
    return click.option("--out", type=path, required=required, help="File to write.")


def option_group(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def require_usable(status: str, sentence: str, workspace: Path) -> None:
    """Raise if a verdict is that the audit is not usable.

    Args:
        status: of the verdict; empty: there is none yet.
        sentence: the verdict in words.
        workspace: of the audit.

    Raises:
        StageFailed: it is not usable.
    """
    if status == "not usable":
        raise StageFailed(
            sentence.removesuffix("."),
            where=str(workspace),
            expected="a usable audit, because of --strict",
            advice="krepes verdict gives the figures",
        )
