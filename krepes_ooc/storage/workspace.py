"""The workspace: one folder that holds one audit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.storage.contracts import StoreSpec, contract_names
from krepes_ooc.storage.files import disk_errors, read_signed_file, sign_json, write_atomic
from krepes_ooc.storage.lock import WorkspaceLock
from krepes_ooc.storage.reader import StoreReader
from krepes_ooc.storage.records import StageRecord
from krepes_ooc.storage.writer import StoreWriter

if TYPE_CHECKING:
    import xarray

FORMAT = 1


class Workspace:
    """A folder with ``audit.zarr`` (the data), the report, and ``.krepes`` (journals, seals, lock).

    ``workspace["influence"]`` is a lazy, Dask-backed xarray.Dataset; nothing is read until asked.

    Args:
        root: the folder.

    Raises:
        WorkspaceError: the folder holds another format.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).resolve()
        self.audit = self.root / "audit.zarr"
        self.private = self.root / ".krepes"
        self._readers: dict[str, StoreReader] = {}
        self._check_format()

    def __getitem__(self, store: str) -> xarray.Dataset:
        if not (self.audit / store / "zarr.json").exists():
            raise KeyError(f"no store {store!r} in {self.audit}; known: {', '.join(contract_names())}")
        import xarray

        return xarray.open_zarr(self.audit, group=store, consolidated=False, chunks={})

    def create(self, recipe: str) -> None:
        """Make the folder and its root group; does nothing if they are there.

        Raises:
            UsageError: no permission to write there, or the path is a file.
            WorkspaceError: the workspace belongs to another recipe.
        """
        owner = self.recipe()
        if owner not in (None, recipe):
            raise WorkspaceError(
                f"the workspace was written by recipe {owner!r}",
                where=str(self.root),
                expected=f"a workspace of recipe {recipe!r} or an empty folder",
                advice="choose another --workspace",
            )
        if self.root.exists() and not self.root.is_dir():
            raise UsageError("the workspace is a file", where=str(self.root), expected="a folder")
        with disk_errors(self.root):
            (self.private / "temp").mkdir(parents=True, exist_ok=True)
        if not (self.audit / "zarr.json").exists():
            attributes = {"krepes_format": FORMAT}
            self._write_root({"zarr_format": 3, "node_type": "group", "attributes": attributes})
        if owner is None:
            record = sign_json({"recipe": recipe, "format": FORMAT})
            write_atomic(self.private / "recipe.json", record, self.private / "temp", sync=True)

    def recipe(self) -> str | None:
        """Name of the recipe that wrote the workspace."""
        record = read_signed_file(self.private / "recipe.json")
        return None if record is None else str(record["recipe"])

    def lock(self) -> WorkspaceLock:
        """The exclusive hold on the workspace, as a context manager."""
        return WorkspaceLock(self.private / "lock")

    def sweep(self) -> None:
        """Remove what killed processes left behind; only under the lock."""
        with disk_errors(self.private):
            for leftover in (self.private / "temp").iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def record(self, stage: str, store: str | None) -> StageRecord:
        """The record of one stage."""
        path = self.audit / store if store else None
        return StageRecord(stage, self.private / "stages" / stage, path, self.private)

    def writer(self, spec: StoreSpec, digest: str) -> StoreWriter:
        """The writer of one store."""
        self._readers.pop(spec.contract.store, None)
        path = self.audit / spec.contract.store
        return StoreWriter(path, self.private / "temp", spec, digest)

    def reader(self, store: str) -> StoreReader:
        """The reader of one store; checksums are verified once for each reader."""
        if store not in self._readers:
            self._readers[store] = StoreReader(self.audit / store)
        return self._readers[store]

    def forget(self, store: str) -> None:
        """Drop the cached reader of a store that was rewritten."""
        self._readers.pop(store, None)

    def stores(self) -> list[str]:
        """Names of the stores on disk, in contract order of the stages that wrote them."""
        return [name for name in contract_names() if (self.audit / name / "zarr.json").exists()]

    def consolidate(self) -> None:
        """Write the metadata of all stores into the root document, so that viewers open it at once."""
        root = self.audit / "zarr.json"
        group = json.loads(root.read_text(encoding="utf-8"))
        metadata = {
            path.parent.relative_to(self.audit).as_posix(): json.loads(path.read_text("utf-8"))
            for path in sorted(self.audit.glob("*/**/zarr.json"))
        }
        group["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": metadata,
        }
        self._write_root(group)

    def unconsolidate(self) -> None:
        """Drop the copies of the metadata before any store changes."""
        group = json.loads((self.audit / "zarr.json").read_text(encoding="utf-8"))
        if group.pop("consolidated_metadata", None) is not None:
            self._write_root(group)

    def _write_root(self, group: dict[str, Any]) -> None:
        root, data = self.audit / "zarr.json", json.dumps(group).encode()
        if not root.exists() or data != root.read_bytes():
            write_atomic(root, data, self.private / "temp", sync=True)

    def _check_format(self) -> None:
        path = self.audit / "zarr.json"
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["attributes"].get("krepes_format")
        except (ValueError, KeyError, AttributeError):
            found = None
        if found != FORMAT:
            raise WorkspaceError(
                f"the workspace has format {found}",
                where=str(self.audit),
                expected=f"format {FORMAT}",
                advice="open it with the krepes version that wrote it, or choose another --workspace",
            )

