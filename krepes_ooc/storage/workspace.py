"""Workspace: one folder that holds one audit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krepes_ooc.core.files import disk_errors
from krepes_ooc.errors import DamageError, UndeclaredInputError, UsageError, WorkspaceError
from krepes_ooc.storage.contracts import StoreSpec, contract_names, load_contract
from krepes_ooc.storage.file_checks import confine, refuse_file, refuse_foreign_files
from krepes_ooc.storage.locks import WorkspaceLock
from krepes_ooc.storage.sealed_list import list_sealed, read_sealed_list, write_sealed_list
from krepes_ooc.storage.stage_record import StageRecord, remove
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.store_writer import StoreWriter
from krepes_ooc.storage.verify import check_sealed
from krepes_ooc.storage.zarr_metadata import DOCUMENT, FORMAT, read_document, write_root

if TYPE_CHECKING:
    import xarray

# Everything that is written below ``.krepes``: none of it may be a link that leads elsewhere.
FOLDERS = (
    *("temp", "stages", "parked", "cache", "checkpoints", "runs", "jobs", "shards"),
    *("openings", "trainings", "live"),
)


class Workspace:
    """A folder with ``audit.zarr`` (the data), the report, and ``.krepes`` (journals, seals, lock).

    ``workspace["influence"]`` is a lazy, Dask-backed xarray.Dataset; nothing is read until asked.

    Args:
        root: the folder.
        direct_above: bytes of an array above which it is read past the page cache; None: never.

    Raises:
        WorkspaceError: the folder holds another format, or a link leads out of it.
        DamageError: something else is in the place of one of its folders.
    """

    def __init__(self, root: Path | str, direct_above: int | None = None) -> None:
        self.root = resolve_folder(Path(root))
        self.direct_above = direct_above
        self.audit = self.root / "audit.zarr"
        self.private = self.root / ".krepes"
        self._readers: dict[str, StoreReader] = {}
        self._stage = ""
        self._readable: frozenset[str] | None = None
        for folder in (self.audit, *(self.private / name for name in FOLDERS)):
            refuse_file(confine(folder, self.root))
        self._check_format()

    def __fspath__(self) -> str:
        """The folder: a workspace may stand where a path is expected."""
        return str(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach another process as its folder and what may be read there."""
        if self._readable is None:
            return Workspace, (self.root, self.direct_above)
        return _limited, (self.root, self.direct_above, self._stage, self._readable)

    def limited_to(self, stage: str, stores: Iterable[str]) -> Workspace:
        """The same workspace, which gives one stage the readers of declared stores only."""
        limited = copy.copy(self)
        limited._stage = stage
        limited._readable = frozenset(stores)
        return limited

    def __getitem__(self, store: str) -> xarray.Dataset:
        if store not in self.stores():
            raise KeyError(f"no store {store!r} in {self.audit}; found: {', '.join(self.stores())}")
        record = self.record(load_contract(store).writer, store)
        unsealed = WorkspaceError(
            f"store {store!r} is not sealed: rows that are missing would read as NaN",
            where=str(self.audit / store),
            expected="a sealed store",
            advice="run the recipe to its end; `krepes status` shows what is missing",
        )
        check_sealed(record, unsealed)
        import xarray

        from krepes_ooc.storage.recorded_files import RecordedStore

        # Refuses what krepes did not write before Zarr opens it: a pipe would be waited for.
        files, _ = record.recorded_files()
        refuse_foreign_files(self._store(store), files)
        reader = self.reader(store)
        for name in reader.names():
            reader.info(name)
        with warnings.catch_warnings():
            # Of a stray file, which a verification names.
            warnings.filterwarnings("ignore", message="Object at")
            dataset: xarray.Dataset = xarray.open_zarr(
                RecordedStore(self._store(store), files),
                consolidated=False,
                zarr_format=3,
                chunks={},
            )
        return dataset

    def create(self, recipe: str) -> None:
        """Make the folder and its root group; does nothing if they are there.

        Raises:
            UsageError: no permission to write there, or the path is a file.
            WorkspaceError: the workspace belongs to another recipe.
            DamageError: the record of its recipe is not what was written.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UsageError("the workspace is a file", where=str(self.root), expected="a folder")
        # One workspace, one recipe: stages of two recipes would overwrite each other.
        owner = self.recipe()
        if owner not in (None, recipe):
            raise WorkspaceError(
                f"the workspace was written by recipe {owner!r}",
                where=str(self.root),
                expected=f"a workspace of recipe {recipe!r} or an empty folder",
                advice="choose another --workspace",
            )
        with disk_errors(self.root):
            (self.private / "temp").mkdir(parents=True, exist_ok=True)
        if not (self.audit / DOCUMENT).exists():
            self.consolidate()
        if owner is None:
            self.claim(recipe)

    def claim(self, recipe: str) -> None:
        """Record which recipe the workspace belongs to, and what is sealed in it."""
        write_sealed_list(self.private, recipe, FORMAT, self._sealed())

    def recipe(self) -> str | None:
        """Name of the recipe that wrote the workspace.

        Raises:
            DamageError: the record is there, but not what was written.
        """
        record = read_sealed_list(self.private)
        return None if record is None else str(record.get("recipe"))

    def lock(self, on_lost: Callable[[], None] = lambda: None) -> WorkspaceLock:
        """The exclusive lock of the workspace, as a context manager.

        Args:
            on_lost: called if another host takes the workspace over while this process seems dead.
        """
        return WorkspaceLock(self.private / "lock", on_lost)

    def remove_stale_files(self) -> None:
        """Remove what killed processes left behind, list what they sealed; only under the lock."""
        with disk_errors(self.private):
            for leftover in (self.private / "temp").iterdir():
                remove(leftover)
        # A kill after the seal leaves partial results or the previous store.
        for folder in (self.private / "stages").glob("*"):
            record = self.record(folder.name, None)
            if (record.previous.exists() or record.partials.exists()) and record.is_sealed():
                record.tidy()
        list_sealed(self.private, *self._sealed())

    def record(self, stage: str, store: str | None, owner: str = "") -> StageRecord:
        """The record of one stage.

        Args:
            stage: its name.
            store: the store that it writes.
            owner: who appends to the journal, where several write one stage.

        Raises:
            WorkspaceError: a link leads out of the workspace.
        """
        folder = confine(self.private / "stages" / stage, self.root)
        path = self._store(store) if store else None
        return StageRecord(stage, folder, path, self.private, owner)

    def writer(self, spec: StoreSpec, digest: str) -> StoreWriter:
        """The writer of one store."""
        self.drop_reader(spec.contract.store)
        path = self._store(spec.contract.store)
        return StoreWriter(path, self.private / "temp", spec, digest)

    def reader(self, store: str) -> StoreReader:
        """The reader of one store; checksums are verified once for each reader.

        Raises:
            UndeclaredInputError: the workspace is limited to other stores.
        """
        if self._readable is not None and store not in self._readable:
            raise UndeclaredInputError(self._stage, store)
        if store not in self._readers:
            record = self.record(load_contract(store).writer, store)
            self._readers[store] = StoreReader(self._store(store), self.direct_above, record)
        return self._readers[store]

    def drop_reader(self, store: str) -> None:
        """Drop the cached reader of a store that was rewritten."""
        self._readers.pop(store, None)

    def stores(self) -> list[str]:
        """Names of the stores on disk, sealed or not, sorted."""
        return [name for name in contract_names() if (self.audit / name / DOCUMENT).exists()]

    def consolidate(self) -> None:
        """Bring the copies of all stores' metadata in the root document up to date.

        Before a stage runs too: a kill may have left copies of a store that is gone.
        """
        write_root(self.audit, self.private / "temp")

    def _sealed(self) -> list[str]:
        """Stages with a whole seal."""
        folders = (self.private / "stages").glob("*")
        return [f.name for f in folders if self.record(f.name, None).is_sealed()]

    def _store(self, store: str) -> Path:
        return confine(self.audit / store, self.root)

    def _check_format(self) -> None:
        version = self._format()
        if version not in (None, FORMAT):
            raise WorkspaceError(
                f"the workspace has format {version}",
                where=str(self.audit),
                expected=f"format {FORMAT}",
                advice="open it with the krepes that wrote it, or choose another --workspace",
            )

    def _format(self) -> object:
        """Format of the workspace, None if there is none yet.

        The checksummed record says it; the root document only where there is no undamaged record,
        because a damaged one is written anew from the stores.
        """
        damaged = any((self.private / "stages").glob("*/begun.json"))
        try:
            if record := read_sealed_list(self.private):
                return _format_text(record.get("format"))
        except DamageError:
            damaged = True
        # No record that can be read: a new folder, or one whose root document must say it.
        if not (self.audit / DOCUMENT).exists():
            return None
        try:
            attributes = read_document(self.audit).get("attributes")
        except DamageError:
            if damaged:
                return FORMAT  # both are reported by a verification, and the record by every run
            raise
        version = attributes.get("krepes_format") if isinstance(attributes, dict) else None
        return _format_text(version)


def resolve_folder(root: Path) -> Path:
    """A folder without links.

    Args:
        root: its path; need not exist.

    Raises:
        UsageError: its links lead in a circle.
    """
    try:
        return root.resolve()
    except (RuntimeError, OSError) as error:
        raise UsageError(
            "links that lead in a circle", where=str(root), expected="a folder"
        ) from error


def _limited(root: Path, direct_above: int | None, stage: str, stores: frozenset[str]) -> Workspace:
    return Workspace(root, direct_above).limited_to(stage, stores)


def _format_text(version: object) -> object:
    """A format for the message: text unless it is ours, so that None means that there is none."""
    return version if version == FORMAT else str(version)
