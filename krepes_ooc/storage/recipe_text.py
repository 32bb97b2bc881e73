"""Text of the recipe that was last run in a workspace; the record of the workspace says which.

Two files are not written at once: the record is given the checksum of the new text before the text
is on disk, beside that of the old one, and alone after it. So a kill leaves a text that is known,
and a text of another run, or of an earlier one, is none that the record knows.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import (
    checksum,
    checksummed_json,
    read_bytes,
    read_checksummed_file,
    read_small,
    write_atomic,
)
from krepes_ooc.errors import DamageError
from krepes_ooc.storage.sealed_list import NAME as RECORD
from krepes_ooc.storage.sealed_list import record_texts, recorded_texts

NAME = "recipe-text.json"


def write_recipe_text(private: Path, text: str, base: Path) -> None:
    """Write the text of a recipe, so that the workspace can be read without it.

    Args:
        private: ``.krepes`` of the workspace.
        text: of the recipe.
        base: folder that its relative paths start from.

    Raises:
        StageFailed: the disk is full or fails.
    """
    record = checksummed_json({"text": text, "base": str(base)})
    path, own = private / NAME, checksum(record)
    is_written = False
    with contextlib.suppress(OSError):  # a text that cannot be read is written anew
        is_written = read_small(path, len(record)) == record
    if not is_written:
        record_texts(private, *(recorded_texts(private) or ()), own)
        write_atomic(path, record, private / "temp", sync=True)
    record_texts(private, own)


def read_recipe_text(private: Path) -> dict[str, Any] | None:
    """Text and base folder of the recipe that was last run, or None if there is none.

    Raises:
        DamageError: it is not what was written, or not the one of the last run.
    """
    path = private / NAME
    record = read_checksummed_file(path)
    known = recorded_texts(private)
    if record is None or known is None or checksum(read_bytes(path) or b"") in known:
        return record
    raise DamageError(
        "the text of another recipe, or of another run",
        where=str(path),
        expected=f"the one that {RECORD} beside it has the checksum of",
        advice="`krepes run --repair` with the recipe writes it anew",
    )
