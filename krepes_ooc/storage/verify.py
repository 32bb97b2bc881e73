"""Recompute every checksum and name every difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from krepes_ooc.errors import DamageError
from krepes_ooc.storage.files import CHECKSUM_BYTES, checksum
from krepes_ooc.storage.records import StageRecord


@dataclass(frozen=True)
class Damage:
    """One difference between what was written and what is on disk."""

    stage: str
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.file}: {self.what}"


@dataclass(frozen=True)
class Verification:
    """What a verification read and found."""

    stages: tuple[str, ...]
    files: int
    bytes: int
    damage: tuple[Damage, ...]


def verify(records: Iterable[StageRecord], progress: Callable[[int], None] = lambda _: None) -> Verification:
    """Recompute the checksum of every file that the records name.

    Args:
        records: stages to verify; those without a record are passed over.
        progress: called with the bytes read so far.
    """
    stages, damage = [], []
    n_files = n_bytes = 0
    for record in records:
        files, problems = _expected_files(record)
        damage += problems
        if files is None:
            continue
        stages.append(record.name)
        base = record.store if record.store is not None else record.private.parent
        for key, (size, crc) in sorted(files.items()):
            what = check_file(base / key, size, crc, is_chunk="/c/" in key or key.endswith("/c"))
            if what:
                damage.append(Damage(record.name, key, what))
            n_files, n_bytes = n_files + 1, n_bytes + size
            progress(n_bytes)
        damage += _strangers(record, set(files))
    return Verification(tuple(stages), n_files, n_bytes, tuple(damage))


def check_file(path: Path, size: int, crc: int, *, is_chunk: bool) -> str:
    """What is wrong with one file, or nothing; a chunk carries its checksum as a suffix."""
    try:
        found = path.stat().st_size
    except OSError:
        return "missing"
    if found != size:
        return f"{found} bytes instead of {size}"
    if found == 0:
        return ""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    if not is_chunk:
        return "" if checksum(data) == crc else "its checksum differs from the one recorded"
    suffix = int.from_bytes(data[-CHECKSUM_BYTES:].tobytes(), "little")
    if checksum(data[:-CHECKSUM_BYTES]) != crc:
        return "its values differ from the checksum recorded"
    return "" if suffix == crc else "its checksum suffix is damaged"


def _expected_files(record: StageRecord) -> tuple[dict[str, tuple[int, int]] | None, list[Damage]]:
    damage = []
    try:
        begun, seal = record.begun(), record.seal()
    except DamageError as error:
        return None, [Damage(record.name, error.where, error.what)]
    if seal is None and begun is None:
        return None, []
    units, bad_lines = record.units()
    if bad_lines:
        damage.append(Damage(record.name, "journal", f"{bad_lines} damaged lines"))
    if seal is not None:
        return {key: (size, crc) for key, (size, crc) in seal["files"].items()}, damage
    return {key: value for unit in units.values() for key, value in unit.files.items()}, damage


def _strangers(record: StageRecord, known: set[str]) -> list[Damage]:
    """Chunk files of a sealed store that nobody recorded."""
    if record.store is None or record.seal() is None or not record.store.exists():
        return []
    found = {p.relative_to(record.store).as_posix() for p in record.store.rglob("*") if p.is_file()}
    return [Damage(record.name, key, "not written by krepes") for key in sorted(found - known)]
