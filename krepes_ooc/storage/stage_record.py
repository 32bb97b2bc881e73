"""Record of one stage: begun with a digest, journalled unit by unit, sealed with a manifest."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import Files as Files
from krepes_ooc.core.files import (
    boot_id,
    disk_errors,
    read_checksummed_file,
    remove_leftover,
    sync_path,
    write_checksummed_file,
)
from krepes_ooc.errors import DamageError, KrepesError
from krepes_ooc.storage.file_checks import file_problem, measure, parse_files
from krepes_ooc.storage.journal import Journal, Unit, drop_damaged_lines, read_journal
from krepes_ooc.storage.sealed_list import list_sealed, unlist_sealed
from krepes_ooc.storage.zarr_metadata import read_document

_SYNC_THREADS = 16  # the disk flushes what many ask for at once in one go: 20 times faster


@dataclass(frozen=True)
class StageRecord:
    """Record of one stage in ``.krepes``: digest and settings, journals, partial results, seal.

    Args:
        name: the stage.
        folder: ``.krepes/stages/<name>``.
        store: the store's group inside ``audit.zarr``, or None for a stage that writes none.
        private: ``.krepes``, with the folders for unfinished and for previous stores.
        owner: who appends to the journal, where several write one stage.
    """

    name: str
    folder: Path
    store: Path | None
    private: Path
    owner: str = ""

    @property
    def temp(self) -> Path:
        """Folder for unfinished files."""
        return self.private / "temp"

    @property
    def partials(self) -> Path:
        """Folder for partial results; removed when the stage is sealed."""
        return self.folder / "partials"

    @property
    def previous(self) -> Path:
        """Folder of the archived store and record, kept until the new ones are sealed."""
        return self.private / "parked" / self.name

    @property
    def base(self) -> Path:
        """Folder that the names of recorded files are relative to: the store, or the workspace."""
        return self.store if self.store is not None else self.private.parent

    def has_suffix(self, key: str) -> bool:
        """Whether a recorded file is a chunk, which ends in its own checksum."""
        return self.store is not None and not key.endswith("zarr.json")

    @cached_property
    def journal(self) -> Journal:
        """The journal that this process appends to."""
        return Journal(self.folder / f"journal-{self.owner or '0000'}.jsonl", self._digest())

    @property
    def journals(self) -> list[Path]:
        """All journals of the stage on disk."""
        return sorted(self.folder.glob("journal-*.jsonl"))

    def begun(self) -> dict[str, Any] | None:
        """Digest, inputs and settings of the stage if it was begun.

        Raises:
            DamageError: the record is there, but not what was written.
        """
        return _read_record(self.folder / "begun.json", self.name)

    def seal(self) -> dict[str, Any] | None:
        """The manifest if the stage is sealed.

        Raises:
            DamageError: the manifest is there, but not what was written, or not of this run.
        """
        path = self.folder / "seal.json"
        seal = _read_record(path, self.name)
        # A seal of another run is whole too: only what was begun says whose it is.
        begun = self._digest() if seal is not None else ""
        if seal is not None and begun and seal.get("digest", begun) != begun:
            raise _other_form(path, f"it seals digest {seal['digest']}, not {begun}")
        return seal

    def is_sealed(self) -> bool:
        """Whether there is a whole seal."""
        try:
            return self.seal() is not None
        except DamageError:
            return False

    def begin(self, record: Mapping[str, Any]) -> None:
        """Write digest and inputs before the first block.

        A store, journals or partial results without a record are of unknown origin and are dropped.
        Only the store of a record that a kill left half archived follows that record.
        """
        if self.store is not None and os.path.lexists(self.store):
            archived_record = (self.previous / "record").exists()
            if archived_record and not self._previous_store.exists():
                self._archive_store()
            else:
                discard(self.store, self.temp)
        # The record is the last to be written: until then the stage is not begun.
        unlist_sealed(self.private, self.name)
        discard(self.folder, self.temp)
        write_checksummed_file(self.folder / "begun.json", record, self.temp)

    def restore(self) -> dict[str, Any] | None:
        """Digest and settings of the begun stage; a damaged record is rewritten from the seal.

        Where record and seal are of two runs, the stamp of the store says of which the result is;
        without such a store the stage has none.
        """
        begun = sealed = None
        with contextlib.suppress(DamageError):
            begun = self.begun()
        # The manifest holds a copy of what was begun.
        with contextlib.suppress(DamageError):
            sealed = (_read_record(self.folder / "seal.json", self.name) or {}).get("begun")
        if not isinstance(sealed, dict) or "digest" not in sealed:
            return begun
        if begun is not None:
            if begun.get("digest") == sealed["digest"]:
                return begun
            stamped = self.stamped_digest()
            if stamped != sealed["digest"]:
                return begun if stamped == begun.get("digest") else None
        if (self.folder / "begun.json").is_dir():
            remove(self.folder / "begun.json")
        write_checksummed_file(self.folder / "begun.json", sealed, self.temp)
        return sealed

    def units(self) -> tuple[dict[str, Unit], int]:
        """All journalled units by name, and the number of damaged journal lines."""
        units: dict[str, Unit] = {}
        damaged = 0
        digest = self._digest()
        # A unit that was computed again is journalled again: its last line counts.
        for path in self.journals:
            journalled, damaged_lines = read_journal(path, digest)
            units |= {unit.name: unit for unit in journalled}
            damaged += damaged_lines
        return units, damaged

    def done(self) -> dict[str, Unit]:
        """Journalled units whose files are on disk: by size, or by checksum after a reboot."""
        # A size says enough while the kernel that wrote the file runs: only a power loss, and with
        # it a reboot, can leave a file of the right size with other bytes.
        boot = boot_id()
        return {
            name: unit
            for name, unit in self.units()[0].items()
            if all(
                self._is_whole(key, size, crc, trust_size=bool(boot) and unit.boot == boot)
                for key, (size, crc) in unit.files.items()
            )
        }

    def recorded_files(self) -> tuple[Files, bool]:
        """Size and crc32c of every file by name, and whether these are all of a sealed stage.

        Of an unsealed stage they are those of its journals: what is written later is not in them.

        Raises:
            DamageError: the seal is not what was written.
        """
        if (seal := self.seal()) is not None:
            try:
                return parse_files(seal.get("files")), True
            except ValueError as error:
                raise _other_form(self.folder / "seal.json", str(error)) from error
        files: Files = {}
        for unit in self.units()[0].values():
            files |= unit.files
        return files, False

    def seal_with(self, files: Files, facts: Mapping[str, Any]) -> None:
        """Seal the stage: flush every file, then publish the manifest by one rename.

        Raises:
            DamageError: a file is gone, or of another size than when it was written.
        """
        self.journal.close()
        with disk_errors(self.folder):
            self._flush(files)
        # The manifest repeats what was begun, names every file, and has checksums of the journals.
        begun = self.begun() or {}
        fields = ("stage", "digest", "settings", "inputs", "versions")
        manifest = {
            **{key: begun.get(key) for key in fields},
            "begun": begun,
            "files": {key: list(value) for key, value in files.items()},
            "journals": {path.name: list(measure(path)) for path in self.journals},
            "sealed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **facts,
        }
        write_checksummed_file(self.folder / "seal.json", manifest, self.temp)
        # Listed after the seal is on disk: a kill in between leaves a seal that is not listed.
        list_sealed(self.private, self.name)
        self.tidy()

    def tidy(self) -> None:
        """Remove what a sealed stage no longer needs: partial results and the previous store."""
        discard(self.partials, self.temp)
        discard(self.previous, self.temp)

    def archive_previous(self) -> None:
        """Move the stale store and its record aside; the seal of the new one removes them.

        A sealed result that is archived already stays; what replaced it was never finished. Of two
        unfinished results that with more units stays.
        """
        if (self.previous / "record").exists() and not self.is_sealed() and self._keeps_archive():
            # The record goes last: while it is there, the stage is stale and this is repeated.
            if self.store is not None:
                discard(self.store, self.temp)
            discard(self.folder, self.temp)
            return
        unlist_sealed(self.private, self.name)
        discard(self.previous, self.temp)
        # Record first: if a kill separates them, ``begin`` sees the record and archives the store.
        with disk_errors(self.previous):
            self.previous.mkdir(parents=True)
            if self.folder.exists():
                self.folder.rename(self.previous / "record")
            if self.store is not None and os.path.lexists(self.store):
                self._archive_store()

    def archived(self) -> StageRecord:
        """The record of the archived stage, with its store; nothing of it is ever written."""
        store = None if self.store is None else self._previous_store
        return StageRecord(self.name, self.previous / "record", store, self.private)

    def _keeps_archive(self) -> bool:
        archived = self.archived()
        return archived.is_sealed() or len(archived.units()[0]) >= len(self.units()[0])

    def unseal(self) -> None:
        """Open a sealed stage again; undamaged lines of its journals stay on record."""
        for path in self.journals:
            # Where something else is than a file, nothing is on record.
            if not path.is_file() or path.is_symlink():
                remove(path)
                continue
            drop_damaged_lines(path, self.temp, self._digest())
        unlist_sealed(self.private, self.name)
        remove(self.folder / "seal.json")

    def reset(self) -> None:
        """Drop an unsealed store that cannot be resumed block by block; partials stay."""
        self.journal.close()
        with disk_errors(self.folder):
            for path in self.journals:
                path.unlink()
        if self.store is not None:
            discard(self.store, self.temp)

    def _digest(self) -> str:
        """Digest of the begun stage; empty where its record is missing or damaged."""
        try:
            return str((self.begun() or {}).get("digest", ""))
        except DamageError:
            return ""

    def stamped_digest(self) -> str:
        """Digest of the run that wrote the store, by the store itself; empty if it says none."""
        if self.store is None:
            return ""
        try:
            return str(read_document(self.store)["attributes"]["krepes"]["digest"])
        except (KrepesError, KeyError, TypeError):
            return ""

    @property
    def _previous_store(self) -> Path:
        return self.previous / "store"

    def _archive_store(self) -> None:
        assert self.store is not None
        with disk_errors(self.previous):
            self.store.rename(self._previous_store)

    def _is_whole(self, key: str, size: int, crc: int, *, trust_size: bool) -> bool:
        path = self.base / key
        if not trust_size:
            return not file_problem(path, size, crc, suffixed=self.has_suffix(key))
        try:
            return path.stat().st_size == size
        except OSError:
            return False

    def _flush(self, files: Files) -> None:
        """Flush every file, then every folder on the way to it, so that the names last too."""
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:
            # A file that changed since it was journalled must not be sealed.
            sizes = pool.map(_sync_file, [self.base / key for key in files])
            for (key, (size, _)), on_disk in zip(files.items(), sizes, strict=True):
                if on_disk != size:
                    raise DamageError(
                        "the file is missing" if on_disk is None else f"{on_disk} bytes",
                        where=str(self.base / key),
                        expected=f"{size} bytes, as written",
                        advice="run the same command again: it is computed anew",
                    )
            # Flushing a file does not flush its name, which its folder holds.
            list(pool.map(sync_path, _folders(self.base, files)))
        if self.store is not None:
            sync_path(self.store.parent)


_MEASURED = (int, float)
# Keys of a record that are read by name, and what they hold.
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("stage", "digest", "numerics", "sealed", "network_outputs"), str),
    **dict.fromkeys(("settings", "inputs", "versions", "begun"), dict),
    **dict.fromkeys(("bytes", "seconds", "peak_bytes"), _MEASURED),
    **dict.fromkeys(("anonymous_peak", "planned_memory"), _MEASURED),
    "units": int,
}


def _read_record(path: Path, stage: str) -> dict[str, Any] | None:
    """A record of a stage whose known keys hold what the writer puts there, or None.

    Args:
        path: the file.
        stage: whose record it must be.

    Raises:
        DamageError: the record is there, but not what was written.
    """
    record = read_checksummed_file(path)
    for key in _TYPES.keys() & (record or {}).keys():
        kind, value = _TYPES[key], (record or {})[key]
        # Null stands for a measurement that was not known; a truth value is no number.
        unknown = value is None and kind is _MEASURED
        if not unknown and (isinstance(value, bool) or not isinstance(value, kind)):
            raise _other_form(path, f"{key} is {str(value)[:40]!r}")
    if record is not None and record.get("stage", stage) != stage:
        raise _other_form(path, f"the record of stage {record['stage']}")
    return record


def _other_form(path: Path, what: str) -> DamageError:
    return DamageError(
        what,
        where=str(path),
        expected="a record that krepes wrote",
        advice="`krepes run --repair` mends it: what it recorded is computed anew",
    )


def discard(path: Path, temp: Path) -> None:
    """Delete a folder so that a kill leaves either the whole of it or none of it in place."""
    # A rename into temp takes it away whole; what a kill leaves there is removed by the next run.
    if os.path.lexists(path):
        with disk_errors(path):
            temp.mkdir(parents=True, exist_ok=True)
            trash = temp / f"{uuid.uuid4().hex}.deleting"
            path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
        remove_leftover(trash)


def remove(path: Path) -> None:
    """Delete a file, a folder or a link, never its target; the next run removes what is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with disk_errors(path):
        path.unlink(missing_ok=True)


def _sync_file(path: Path) -> int | None:
    try:
        return sync_path(path)
    except FileNotFoundError:
        return None


def _folders(base: Path, files: Iterable[str]) -> set[Path]:
    """All folders between the recorded files and ``base``."""
    # Upwards from each file, as far as a folder that is known, and with it all above.
    folders = {base}
    for key in files:
        for folder in (base / key).parents:
            if folder in folders:
                break
            folders.add(folder)
    return folders
