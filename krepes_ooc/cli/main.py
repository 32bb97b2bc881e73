"""The group of all commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from krepes_ooc.cli import (
    compare,
    declarations,
    encode,
    explain,
    inspect_workspace,
    name_concepts,
    plan,
    run,
)
from krepes_ooc.errors import Interrupted, KrepesError, StageFailed, UsageError, printable

_DEBUG = "--debug"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_RESUME = "run the same command again to resume"
# click 8.2 raises it where a group is called without a command.
_HELP_WANTED: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Group(click.Group):
    """Commands whose errors are one line on stderr."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> Any:
        """Run a command and exit with the code of its outcome; --debug may stand anywhere."""
        arguments = list(sys.argv[1:] if args is None else args)
        debug = _DEBUG in arguments
        arguments = [argument for argument in arguments if argument != _DEBUG]
        try:
            code = super().main(arguments, **{**extra, "standalone_mode": False})
            # Here, where a closed pipe is an error that is caught, and not when Python ends.
            sys.stdout.flush()
        except Exception as error:
            code = _report_error(error, debug)
        except KeyboardInterrupt:
            code = _report_error(Interrupted("stopped by Ctrl-C", advice=_RESUME), debug)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="krepes-ooc", prog_name="krepes")
@click.option(_DEBUG, is_flag=True, help="Show where an error came from; may stand anywhere.")
def main(debug: bool) -> None:
    """Audit frozen self-supervised networks, out of core."""


def _known_commands(error: click.ClickException) -> str:
    """The commands of a group, for an error that names an unknown one."""
    group = error.ctx.command if isinstance(error, click.UsageError) and error.ctx else None
    if not isinstance(group, click.Group) or "No such command" not in error.message:
        return ""
    return f"; expected one of {', '.join(sorted(group.commands))}"


def _report_error(error: Exception, debug: bool) -> int:
    """Print an error as one line and return its exit code."""
    # Ends that are no errors.
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader of the output is gone: nothing is written to it when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    # Errors, the expected ones with their own exit code.
    if debug:
        traceback.print_exception(error)
    if isinstance(error, _HELP_WANTED):
        click.echo(str(error), err=True)
        return 2
    error = _in_words(error)
    if isinstance(error, KrepesError):
        click.echo(f"krepes: {error}", err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        message = printable(error.format_message()).rstrip(".")
        click.echo(f"krepes: {message}{_known_commands(error)}", err=True)
        return 2
    # A bug: one line as well, and exit code 1.
    what = printable(f"{type(error).__name__}: {error}")
    click.echo(f"krepes: unexpected {what}; --debug shows where", err=True)
    return 1


def _output_fails(error: OSError) -> bool:
    """Whether the error is that stdout takes nothing: it says so again."""
    if error.filename is not None or error.errno not in _NO_SPACE:
        return False
    try:
        return os.write(sys.stdout.fileno(), b"\n") == 0
    except io.UnsupportedOperation:
        return False
    except OSError:
        return True


def _in_words(error: Exception) -> Exception:
    """The error itself, or the one that says what to do where Python or a library raised it."""
    if isinstance(error, click.Abort):
        return Interrupted("stopped by Ctrl-C", advice=_RESUME)
    if isinstance(error, MemoryError):
        return StageFailed(
            f"the memory does not suffice ({error})",
            expected="arrays that fit",
            advice="krepes verify says whether the workspace is damaged; --debug shows where",
        )
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return UsageError(
            "a name has bytes that are no UTF-8",
            where=str(error.object)[:200],
            expected="names that the locale can read",
            advice="rename it, or choose a locale such as LC_ALL=C.UTF-8",
        )
    if isinstance(error, OSError) and _output_fails(error):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UsageError(
            f"the output takes nothing ({error.strerror})",
            where="stdout",
            expected="a file or a terminal with space",
        )
    return error


# In the order of use, in which --help lists them.
for command in (
    run.run,
    plan.plan,
    inspect_workspace.status,
    inspect_workspace.verdict,
    explain.explain,
    compare.compare,
    name_concepts.concepts,
    inspect_workspace.export,
    encode.encode,
    run.report,
    inspect_workspace.verify,
    inspect_workspace.doctor,
    declarations.stores,
    declarations.recipes,
    declarations.sites,
):
    main.add_command(command)
