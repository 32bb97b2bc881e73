"""Values of options as people write them, for the command line and the Python interface alike."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from typing import Any

from krepes_ooc.errors import UsageError

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_time(value: str | float) -> float:
    """Seconds of a duration such as ``90``, ``90s``, ``45m``, ``12h`` or ``2d``.

    Raises:
        UsageError: it is no duration.
    """
    text = str(value).strip()
    unit = text[-1] if text[-1:].isalpha() else ""
    # Unknown units and what is no number fail as negative times do.
    try:
        seconds = float(text.removesuffix(unit)) * _SECONDS[unit.lower()]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{text!r} is no time", expected="such as 90s, 45m or 12h")
    return seconds


def parse_shard(value: str | tuple[int, int]) -> tuple[int, int]:
    """Number, from 1, and count of a shard such as ``3/16``; the runner checks their range.

    Raises:
        UsageError: it has another form.
    """
    if isinstance(value, tuple):
        return value
    number, slash, count = str(value).partition("/")
    if not (slash and number.strip().isdecimal() and count.strip().isdecimal()):
        raise UsageError(f"{value!r} is no part", expected="such as 3/16")
    return int(number), int(count)


def path_text(value: object, where: str) -> str:
    """A path or a name as text.

    Raises:
        UsageError: it is neither.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(text := os.fspath(value), bytes):
        raise UsageError(
            f"{type(value).__name__} {value!r}", where=where, expected="a name, a path or a folder"
        )
    return text


def positions(samples: object) -> list[int]:
    """Positions in the source, one or several; NumPy's integers are whole numbers as well.

    Raises:
        UsageError: something else than whole numbers.
    """
    is_many = isinstance(samples, Iterable) and not isinstance(samples, str | bytes)
    given: Any = samples if is_many else [samples]
    try:
        return [operator.index(one) for one in given]
    except TypeError:
        raise UsageError(
            f"{samples!r} is no sample", expected="positions in the source: whole numbers from 0"
        ) from None
