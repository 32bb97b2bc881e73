"""Records of what one run of the features learned on the way: network outputs, cost of a row.

They lie beside the stores, because they are no part of their bits. Each says of which digest it is:
that of another run is none, and damage where the features are sealed, since it was theirs then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import checksummed_json, read_checksummed_file, write_atomic
from krepes_ooc.errors import DamageError, KrepesError

LEARNED = ("network.json", "row-cost.json")
_SEAL = Path("stages/features/seal.json")


def write_learned(private: Path, name: str, digest: str, value: Mapping[str, Any]) -> None:
    """Write a record of the features with this digest.

    Args:
        private: ``.krepes`` of the workspace.
        name: one of ``LEARNED``.
        digest: of the features stage.
        value: JSON.

    Raises:
        StageFailed: the disk is full or fails.
    """
    record = checksummed_json({**value, "digest": digest})
    write_atomic(private / name, record, private / "temp", sync=True)


def read_learned(private: Path, name: str, digest: str) -> dict[str, Any] | None:
    """The record of the features with this digest, or None if there is none.

    Args:
        private: ``.krepes`` of the workspace.
        name: one of ``LEARNED``.
        digest: of the features stage. Records of earlier versions, which say none, are of any.

    Raises:
        DamageError: it is not what was written, or of another run than the sealed features.
    """
    known = read_checksummed_file(private / name)
    if known is None or known.get("digest", digest) == digest:
        return known
    check_learned(private, name)
    return None


def check_learned(private: Path, name: str) -> None:
    """Raise if a record is damaged, or of another run than the sealed features.

    Raises:
        DamageError: naming it.
    """
    known = read_checksummed_file(private / name)
    try:
        sealed = (read_checksummed_file(private / _SEAL) or {}).get("digest")
    except KrepesError:
        return  # the damaged seal is named with its stage
    # Of features that are begun, the record is written a moment after: until then it is older.
    if known is not None and sealed and known.get("digest", sealed) != sealed:
        raise DamageError(
            f"of another run of the features, with digest {known['digest']}",
            where=str(private / name),
            expected=f"the record of {sealed}",
            advice="`krepes run --repair` removes it: it is learned anew",
        )
