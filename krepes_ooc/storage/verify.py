"""Verification: every checksum recomputed, every difference named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import Files, read_bytes, read_checksummed_file
from krepes_ooc.errors import DamageError, KrepesError, WorkspaceError
from krepes_ooc.storage.file_checks import file_problem, is_inside, parse_files
from krepes_ooc.storage.learned_files import LEARNED, check_learned
from krepes_ooc.storage.recipe_text import read_recipe_text
from krepes_ooc.storage.sealed_list import NAME as SEALED_LIST
from krepes_ooc.storage.sealed_list import sealed_stages
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.zarr_metadata import DOCUMENT, read_document, root_document, to_bytes

WORKSPACE = "workspace"
STRANGER = "not written by krepes"
_READ_THREADS = 4
_OTHER_FORM = "the manifest has another form"


@dataclass(frozen=True)
class Damage:
    """One difference between what was written and what is on disk.

    Args:
        stage: whose file it is, or ``workspace``.
        file: relative to the stage's store, or the path of a record.
        problem: the difference, in words.
    """

    stage: str
    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.file}: {self.problem}"


@dataclass(frozen=True)
class Verification:
    """Result of a verification.

    Args:
        stages: verified ones, in order.
        files: number of files read.
        bytes: their size.
        damage: every difference.
    """

    stages: tuple[str, ...]
    files: int
    bytes: int
    damage: tuple[Damage, ...]


def verify(
    records: Iterable[StageRecord], progress: Callable[[int], None] = lambda _: None
) -> Verification:
    """Recompute the checksum of every file that the records name, and of the records.

    Args:
        records: stages to verify; those without a record are passed over.
        progress: called with the bytes read so far.
    """
    stages: list[str] = []
    damage: list[Damage] = []
    n_files = n_bytes = 0
    sealed_stores: dict[Path, set[str]] = {}
    for record in records:
        sealed = sealed_stores.setdefault(record.private, set())
        if record.store is not None and record.is_sealed():
            sealed.add(record.store.name)
        files, problems = _expected_files(record)
        damage += problems + _lost_seal(record)
        if files is None:
            continue
        stages.append(record.name)
        for key, size, problem in _checked(record, files):
            damage += [Damage(record.name, key, problem)] if problem else []
            n_files += 1
            n_bytes += size
            progress(n_bytes)
    # The root document repeats the stores' documents: it is judged after them.
    for private, sealed in sealed_stores.items():
        damage += workspace_damage(private, sealed, damage)
    return Verification(tuple(stages), n_files, n_bytes, tuple(damage))


def _checked(record: StageRecord, files: Files) -> Iterator[tuple[str, int, str]]:
    """Every recorded file in order: name, size and problem in words (empty: none)."""

    def check(item: tuple[str, tuple[int, int]]) -> tuple[str, int, str]:
        key, (size, crc) = item
        suffixed = record.has_suffix(key)
        return key, size, file_problem(record.base / key, size, crc, suffixed=suffixed)

    # The checksum is as fast as memory: several files at once keep the disk busy meanwhile.
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        yield from pool.map(check, sorted(files.items()))


def _expected_files(record: StageRecord) -> tuple[Files | None, list[Damage]]:
    """Files that the seal names, else those of the journal; and the damage of the records."""
    damage: list[Damage] = []
    begun = _read_record(record.begun, record, damage)
    seal = _read_record(record.seal, record, damage)
    # Not sealed: the journals say what is on disk.
    if seal is None:
        if begun is None and not damage:
            return None, damage
        units, bad_lines = record.units()
        if bad_lines:
            damage.append(Damage(record.name, "journal", f"{bad_lines} damaged lines"))
        # No seal names the documents; the store says itself which run writes it.
        stamped = record.stamped_digest()
        if begun is not None and stamped and stamped != begun.get("digest"):
            damage.append(Damage(record.name, DOCUMENT, f"of another run, with digest {stamped}"))
        return {key: value for unit in units.values() for key, value in unit.files.items()}, damage
    # Sealed: the manifest names every file, and the journals with their checksums.
    if begun is None and not damage:
        damage.append(Damage(record.name, str(record.folder / "begun.json"), "missing"))
    try:
        files = parse_files(seal["files"])
        journals = parse_files(seal["journals"])
    except (KeyError, ValueError):
        damage.append(Damage(record.name, str(record.folder / "seal.json"), _OTHER_FORM))
        return {}, damage
    for name, (size, crc) in journals.items():
        if problem := file_problem(record.folder / name, size, crc, suffixed=False):
            damage.append(Damage(record.name, str(record.folder / name), problem))
    return files, damage + _unrecorded_files(record, set(files))


def metadata_damage(record: StageRecord, seal: Mapping[str, Any]) -> str:
    """The first document of a sealed store that is not what was written, in words; else empty.

    The documents say of what shape the values are and where they lie. They are short, so every run
    checks those of all sealed stores before it uses one.
    """
    try:
        documents = {k: v for k, v in seal["files"].items() if Path(k).name == DOCUMENT}
        files = parse_files(documents)
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{record.folder / 'seal.json'}: {_OTHER_FORM}"
    for key, (size, crc) in files.items():
        if problem := file_problem(record.base / key, size, crc, suffixed=False):
            return f"{record.base / key}: {problem}"
    return ""


def check_sealed(record: StageRecord, unsealed: WorkspaceError) -> None:
    """Raise unless a stage is sealed and the documents of its store are undamaged.

    Args:
        record: of the stage.
        unsealed: raised where there is no seal.

    Raises:
        WorkspaceError: the stage is not sealed.
        DamageError: the seal or a document is not what was written.
    """
    seal = record.seal()
    if seal is None:
        raise unsealed
    if problem := metadata_damage(record, seal):
        raise DamageError(problem, expected="what was written", advice="`krepes run --repair`")


def _lost_seal(record: StageRecord) -> list[Damage]:
    """A seal that is gone: the stage is listed as sealed, or another stage was made of it."""
    path = record.folder / "seal.json"
    if path.exists() or (record.previous / "record").exists():
        return []
    if record.name in sealed_stages(record.private):
        return [Damage(record.name, str(path), "missing, though the stage was sealed")]
    # Every seal holds the digests of the stages that it was made of.
    begun = _read_or_none(record.folder / "begun.json")
    for other in sorted(record.folder.parent.glob("*/seal.json")):
        inputs = (_read_or_none(other) or {}).get("inputs")
        digest = inputs.get(record.name) if isinstance(inputs, dict) else None
        if digest and (begun is None or begun.get("digest") == digest):
            problem = f"missing, though {other.parent.name} was made of what it sealed"
            return [Damage(record.name, str(path), problem)]
    return []


def _read_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return read_checksummed_file(path)
    except KrepesError:
        return None


def _read_record(
    read: Callable[[], dict[str, Any] | None], record: StageRecord, damage: list[Damage]
) -> dict[str, Any] | None:
    try:
        return read()
    except KrepesError as error:
        damage.append(Damage(record.name, error.where, error.what))
        return None


def _unrecorded_files(record: StageRecord, known: set[str]) -> list[Damage]:
    """Files in the folder of a sealed store that its manifest does not name."""
    if record.store is None:
        return []
    on_disk = {
        Path(folder, name).relative_to(record.store).as_posix()
        for folder, _, names in os.walk(record.store)
        for name in names
    }
    return [Damage(record.name, key, STRANGER) for key in sorted(on_disk - known)]


def workspace_damage(
    private: Path, sealed: Collection[str] = (), known: Sequence[Damage] = ()
) -> list[Damage]:
    """Damage of the documents that belong to no stage.

    Args:
        private: ``.krepes``.
        sealed: stores whose copies in the root document must be those on disk; the copies of a
            store that a stage is writing may lag behind.
        known: damage of the stores; the root document is not judged by a damaged one.
    """
    # Folders of damaged documents: audit.zarr/<store>/<array>.
    damaged = {f"{d.stage}/{d.file}".removesuffix(f"/{DOCUMENT}") for d in known}
    checks: list[Callable[[], object]] = [
        lambda: _check_owner(private),
        # They may be absent: they are written anew.
        lambda: read_recipe_text(private),
        *(partial(check_learned, private, name) for name in LEARNED),
        lambda: _check_root(private.parent / "audit.zarr", sealed, damaged),
    ]
    damage = []
    for check in checks:
        try:
            check()
        except KrepesError as error:
            damage.append(Damage(WORKSPACE, error.where, error.what))
    return damage


def _check_owner(private: Path) -> None:
    # A workspace in which a stage was begun belongs to a recipe.
    path = private / SEALED_LIST
    if read_checksummed_file(path) is None and any((private / "stages").glob("*/begun.json")):
        raise DamageError("missing", where=str(path))


def _check_root(audit: Path, sealed: Collection[str], damaged: Collection[str]) -> None:
    data = read_bytes(audit / DOCUMENT)
    if data is None and not sealed:
        return  # a run makes it before anything else
    if data is None:
        raise DamageError("missing", where=str(audit / DOCUMENT))
    try:
        # Built again from the documents on disk: the bytes must be the same.
        copies = dict(json.loads(data)["consolidated_metadata"]["metadata"])
        for folder in copies:
            if folder.split("/")[0] in sealed and folder not in damaged and is_inside(folder):
                copies[folder] = read_document(audit / folder)
        expected = to_bytes(root_document(copies))
    except (ValueError, KeyError, TypeError, RecursionError):
        expected = b""
    if data != expected:
        raise DamageError("differs from what the stores say", where=str(audit / DOCUMENT))
