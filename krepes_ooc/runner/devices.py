"""The device of a run: what was asked for, if it can be used."""

from __future__ import annotations

from collections.abc import Callable

from krepes_ooc.blocks import format_bytes
from krepes_ooc.engine.device import HOST, Device
from krepes_ooc.engine.gpu import open_gpu
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
    if asked == "cpu":
        return HOST
    try:
        found = open_gpu()
    except UsageError as error:
        if asked == "cuda":
            raise
        tell(f"blocks are computed on the CPU: {error.what}")
        return HOST
    tell(f"blocks are computed on {found.name}, {format_bytes(found.memory or 0)} free")
    return found
