"""The error for a name that an audit does not have, with the names nearest to it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from krepes_ooc.errors import UsageError

MOST_LISTED = 12


def nearest_name(what: str, name: str, known: Sequence[str], where: str) -> UsageError:
    """The error for an unknown name.

    Args:
        what: what the name is of, such as ``group``.
        name: as it was given.
        known: all names there are.
        where: the option.
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    listed = ", ".join(known[:MOST_LISTED]) + (", ..." if len(known) > MOST_LISTED else "")
    return UsageError(
        f"no {what} {name!r}",
        where=where,
        expected=f"one of {listed}",
        advice=f"did you mean {' or '.join(repr(text) for text in near)}?" if near else "",
    )
