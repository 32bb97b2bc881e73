"""Every error that krepes raises on purpose.

KrepesError                 exit   raised when
├── StageFailed              1     data, a checkpoint or a measured result is unfit
│   ├── DataError            1     the source holds what cannot be used (NaN, bad row)
│   └── NetworkError         1     the network cannot be loaded or cannot be trusted
├── UsageError               2     an option, a recipe key or a path is wrong
│   ├── RecipeError          2     a recipe or contract file is wrong
│   └── SourceError          2     the source cannot be opened as declared
├── PlanRefused              3     memory or disk cannot hold the plan
├── WorkspaceError           4     the workspace is stale, locked or of another format
├── DamageError              5     stored bytes are not the bytes that were written
└── Stopped                 75     stopped early on request; the run resumes
    └── Interrupted        130     stopped by Ctrl-C; the run resumes
"""

from __future__ import annotations


class KrepesError(Exception):
    """An error as one line: what, where, what was expected, what to do.

    Args:
        what: what went wrong, with the offending value.
        where: file, store, block, column or parameter.
        expected: what would have been right, with the limit or the allowed values.
        advice: what the user can do now.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", expected: str = "", advice: str = "") -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.advice = advice
        super().__init__(str(self))

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            line += f"; expected {self.expected}"
        if self.advice:
            line += f"; {self.advice}"
        return printable(line)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the four parts, which a message alone would lose."""
        return (_rebuild, (type(self), self.what, self.where, self.expected, self.advice))


class StageFailed(KrepesError):
    """A stage cannot give a result: data, checkpoint or a measured failure."""


class DataError(StageFailed):
    """The source holds values that cannot be used."""


class NetworkError(StageFailed):
    """The network cannot be loaded, or its Jacobian rows cannot be trusted."""


class UsageError(KrepesError):
    """An option, a recipe key or a path is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe or a store contract is wrong."""


class SourceError(UsageError):
    """The source cannot be opened as the recipe declares it."""


class PlanRefused(KrepesError):
    """The plan does not fit the memory or the disk."""

    exit_code = 3


class WorkspaceError(KrepesError):
    """The workspace is stale, locked or of another format."""

    exit_code = 4


class DamageError(KrepesError):
    """Stored bytes differ from the bytes that were written."""

    exit_code = 5


class Stopped(KrepesError):
    """The run stopped early on request and can be resumed."""

    exit_code = 75


class Interrupted(Stopped):
    """The run was stopped by Ctrl-C and can be resumed."""

    exit_code = 130


def printable(text: str) -> str:
    """One line of text that cannot steer a terminal: control characters are spelled out."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line)


def neutral(text: str) -> str:
    """Lines of text that cannot steer a terminal; spaces and line ends stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text)


def _rebuild(
    kind: type[KrepesError], what: str, where: str, expected: str, advice: str
) -> KrepesError:
    return kind(what, where=where, expected=expected, advice=advice)


class UndeclaredInputError(RuntimeError):
    """A stage reads what its inputs do not declare, so that its digest does not know of it.

    Args:
        stage: the stage.
        name: the store or the part of the recipe.
    """

    def __init__(self, stage: str, name: str) -> None:
        super().__init__(f"stage {stage} reads {name!r}, which its inputs do not declare")
