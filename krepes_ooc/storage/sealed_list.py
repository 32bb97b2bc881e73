"""Checksummed record of a workspace: its recipe, its format and the list of sealed stages.

It also holds the checksum of the recorded text of the recipe (``recipe_text.py``).

A seal that is gone cannot say so. So the sealed stages are listed apart: a stage is added after its
seal is on disk and taken off before the seal goes. A kill in between leaves a seal that is not
listed, which harms nothing and is listed by the next run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import read_checksummed_file, write_checksummed_file
from krepes_ooc.errors import DamageError

NAME = "recipe.json"
SEALED, TEXTS = "sealed", "texts"


def read_sealed_list(private: Path) -> dict[str, Any] | None:
    """Recipe, format and sealed stages of a workspace, or None if there is no record yet.

    Args:
        private: ``.krepes`` of the workspace.

    Raises:
        DamageError: the record is there, but not what was written.
    """
    return read_checksummed_file(private / NAME)


def write_sealed_list(private: Path, recipe: str, version: int, sealed: Iterable[str]) -> None:
    """Write down whose the workspace is, in which format, and which stages are sealed.

    No text of a recipe is on record then: the next run writes it.
    """
    record = {"recipe": recipe, "format": version, SEALED: sorted(sealed), TEXTS: []}
    write_checksummed_file(private / NAME, record, private / "temp")


def recorded_texts(private: Path) -> tuple[int, ...] | None:
    """Checksums that the recorded text of the recipe may have; None if that is not known.

    Args:
        private: ``.krepes`` of the workspace.
    """
    try:
        texts = (read_sealed_list(private) or {}).get(TEXTS)
    except DamageError:
        return None
    # Records of earlier versions say nothing about the text.
    return tuple(texts) if isinstance(texts, list) else None


def record_texts(private: Path, *checksums: int) -> None:
    """Write down which checksums the recorded text of the recipe may have."""
    _change(private, TEXTS, list(checksums))


def sealed_stages(private: Path) -> frozenset[str]:
    """Stages that are listed as sealed; none if there is no undamaged record."""
    try:
        stages = (read_sealed_list(private) or {}).get(SEALED)
    except DamageError:
        return frozenset()
    return frozenset(map(str, stages)) if isinstance(stages, list) else frozenset()


def list_sealed(private: Path, *stages: str) -> None:
    """Add stages to the list, whose seals are on disk."""
    _change(private, SEALED, sorted(sealed_stages(private) | set(stages)))


def unlist_sealed(private: Path, stage: str) -> None:
    """Take a stage off the list, before its seal goes."""
    _change(private, SEALED, sorted(sealed_stages(private) - {stage}))


def _change(private: Path, key: str, value: list[Any]) -> None:
    # A damaged record is reported by every run and written anew by a repair, from the seals.
    with contextlib.suppress(DamageError):
        record = read_sealed_list(private)
        if record is not None and record.get(key) != value:
            record[key] = value
            write_checksummed_file(private / NAME, record, private / "temp")
