"""The group of all commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import click

from krepes_ooc.cli import inspect, running, shipped
from krepes_ooc.errors import Interrupted, KrepesError


class Group(click.Group):
    """Commands whose errors are one line on stderr."""

    def main(self, *args: Any, **extra: Any) -> Any:  # type: ignore[override]
        """Run a command and exit with the code of its outcome."""
        debug = "--debug" in sys.argv
        try:
            code = super().main(*args, standalone_mode=False, **extra)
            sys.exit(code if isinstance(code, int) else 0)
        except click.exceptions.Exit as exit_:
            sys.exit(exit_.exit_code)
        except click.Abort:
            sys.exit(_told(Interrupted("stopped by Ctrl-C", advice="run the same command again to resume"), debug))
        except click.ClickException as error:
            click.echo(f"krepes: {' '.join(error.format_message().split())}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(_told(Interrupted("stopped by Ctrl-C", advice="run the same command again to resume"), debug))
        except KrepesError as error:
            sys.exit(_told(error, debug))
        except BrokenPipeError:
            sys.exit(0)
        except Exception as error:
            click.echo(f"krepes: unexpected {type(error).__name__}: {' '.join(str(error).split())}"
                       "; --debug shows where", err=True)
            if debug:
                traceback.print_exc()
            sys.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="krepes-ooc", prog_name="krepes")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def main(debug: bool) -> None:
    """Audit frozen self-supervised networks, out of core."""


def _told(error: KrepesError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"krepes: {error}", err=True)
    return error.exit_code


for command in (
    running.run,
    running.plan,
    inspect.status,
    inspect.verify,
    inspect.doctor,
    shipped.stores,
    shipped.recipes,
):
    main.add_command(command)
