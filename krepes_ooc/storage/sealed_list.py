"""What a workspace says of itself, in one signed record: its recipe, its format, what is sealed.

A seal that is gone cannot say so. So the register lists the sealed stages: a stage is added after
its seal is on disk and taken off before the seal goes. A kill in between leaves a seal that is not
listed, which harms nothing and is listed by the next run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import checksummed_json, read_checksummed_file, write_atomic
from krepes_ooc.errors import DamageError

NAME = "recipe.json"


def read_sealed_list(private: Path) -> dict[str, Any] | None:
    """Recipe, format and sealed stages of a workspace, or None if it has no register yet.

    Args:
        private: ``.krepes`` of the workspace.

    Raises:
        DamageError: the register is there, but not what was written.
    """
    return read_checksummed_file(private / NAME)


def write_sealed_list(private: Path, recipe: str, version: int, sealed: Iterable[str]) -> None:
    """Write down whose the workspace is, in which format, and which stages are sealed."""
    record = {"recipe": recipe, "format": version, "sealed": sorted(sealed)}
    write_atomic(private / NAME, checksummed_json(record), private / "temp", sync=True)


def sealed_stages(private: Path) -> frozenset[str]:
    """Stages that the register lists as sealed; none if there is no whole register."""
    try:
        found = (read_sealed_list(private) or {}).get("sealed")
    except DamageError:
        return frozenset()
    return frozenset(map(str, found)) if isinstance(found, list) else frozenset()


def list_sealed(private: Path, *stages: str) -> None:
    """Add stages to the list, whose seals are on disk."""
    _change(private, sealed_stages(private) | set(stages))


def unlist_sealed(private: Path, stage: str) -> None:
    """Take a stage off the list, before its seal goes."""
    _change(private, sealed_stages(private) - {stage})


def _change(private: Path, sealed: Iterable[str]) -> None:
    # A damaged register is told by every run and written anew by a repair, from the seals.
    with contextlib.suppress(DamageError):
        known = read_sealed_list(private)
        if known is not None and known.get("sealed") != sorted(sealed):
            record = {**known, "sealed": sorted(sealed)}
            write_atomic(private / NAME, checksummed_json(record), private / "temp", sync=True)
