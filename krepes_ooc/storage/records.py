"""The record of one stage: begun with a digest, journalled unit by unit, sealed with a manifest."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from krepes_ooc.storage.files import (
    boot_id,
    checksum,
    disk_errors,
    read_signed_file,
    sign_json,
    sync_folder,
    write_atomic,
)
from krepes_ooc.storage.journal import Journal, Unit, read_journal

Files = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class StageRecord:
    """What the workspace knows about one stage.

    Args:
        name: the stage.
        folder: ``.krepes/stages/<name>``.
        store: the store's group inside ``audit.zarr``, or None for a stage that writes none.
        private: ``.krepes``, home of temp and parked folders.
    """

    name: str
    folder: Path
    store: Path | None
    private: Path

    @property
    def temp(self) -> Path:
        """Folder for unfinished files."""
        return self.private / "temp"

    @property
    def partials(self) -> Path:
        """Folder for partial results; removed when the stage is sealed."""
        return self.folder / "partials"

    @cached_property
    def journal(self) -> Journal:
        """The journal that this process appends to."""
        return Journal(self.folder / "journal-0000.jsonl")

    def begun(self) -> dict[str, Any] | None:
        """Digest, inputs and settings of the stage if it was begun."""
        return read_signed_file(self.folder / "begun.json")

    def seal(self) -> dict[str, Any] | None:
        """The manifest if the stage is sealed."""
        return read_signed_file(self.folder / "seal.json")

    def begin(self, record: Mapping[str, Any]) -> None:
        """Write digest and inputs before the first block; a store without a record is an orphan."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.store is not None and self.store.exists():
            discard(self.store, self.temp)
        write_atomic(self.folder / "begun.json", sign_json(record), self.temp, sync=True)

    def units(self) -> tuple[dict[str, Unit], int]:
        """All journalled units by name, and the number of damaged journal lines."""
        units: dict[str, Unit] = {}
        damaged = 0
        for path in sorted(self.folder.glob("journal-*.jsonl")):
            found, bad = read_journal(path)
            units |= {unit.name: unit for unit in found}
            damaged += bad
        return units, damaged

    def done(self) -> dict[str, Unit]:
        """Journalled units whose files are on disk: by size, or by checksum after a reboot."""
        boot = boot_id()
        return {
            name: unit
            for name, unit in self.units()[0].items()
            if all(
                self._is_whole(key, size, crc, trust_size=unit.boot == boot)
                for key, (size, crc) in unit.files.items()
            )
        }

    def seal_with(self, files: Files, facts: Mapping[str, Any]) -> None:
        """Seal the stage: flush every file, then publish the manifest by one rename."""
        self.journal.close()
        base = self.store if self.store is not None else self.private.parent
        with disk_errors(self.folder):
            for key in files:
                _sync_file(base / key)
        begun = self.begun() or {}
        manifest = {
            **{key: begun.get(key) for key in ("stage", "digest", "settings", "inputs", "versions")},
            "files": {key: list(value) for key, value in files.items()},
            "sealed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **facts,
        }
        write_atomic(self.folder / "seal.json", sign_json(manifest), self.temp, sync=True)
        discard(self.partials, self.temp)
        discard(self.parked, self.temp)

    @property
    def parked(self) -> Path:
        """Where the previous store waits until the new one is sealed."""
        return self.private / "parked" / self.name

    def park(self) -> None:
        """Move the stale store and its record aside; the seal of the new one removes them."""
        discard(self.parked, self.temp)
        with disk_errors(self.parked):
            self.parked.mkdir(parents=True)
            if self.folder.exists():
                self.folder.rename(self.parked / "record")
            if self.store is not None and self.store.exists():
                self.store.rename(self.parked / "store")

    def reset(self) -> None:
        """Drop an unsealed store that cannot be resumed block by block; partials stay."""
        self.journal.close()
        for path in self.folder.glob("journal-*.jsonl"):
            path.unlink()
        if self.store is not None and self.store.exists():
            discard(self.store, self.temp)

    def _is_whole(self, key: str, size: int, crc: int, *, trust_size: bool) -> bool:
        path = (self.store if self.store is not None else self.private.parent) / key
        try:
            if path.stat().st_size != size:
                return False
            return trust_size or checksum(path.read_bytes()[: -4 or None]) == crc
        except OSError:
            return False


def discard(path: Path, temp: Path) -> None:
    """Delete a folder so that a kill leaves either the whole of it or none of it in place."""
    if path.exists():
        with disk_errors(path):
            temp.mkdir(parents=True, exist_ok=True)
            trash = temp / f"{uuid.uuid4().hex}.deleting"
            path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if path.name == "zarr.json":
        sync_folder(path.parent)
