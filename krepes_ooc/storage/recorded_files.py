"""Zarr store of one sealed group, which gives only the bytes that were sealed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from krepes_ooc.core.files import CHECKSUM_BYTES, Files, checksum
from krepes_ooc.storage.chunk_readers import damage_error
from krepes_ooc.storage.zarr_metadata import DOCUMENT

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class RecordedStore(LocalStore):
    """Folder of a sealed store whose files are compared with the seal when Zarr reads them.

    Zarr asks each chunk for its own checksum only, and takes one that is missing for one that was
    never written. The codec compares the values with the checksum at their end, so that here only
    that checksum is compared with the recorded one.

    Args:
        root: the store's group inside ``audit.zarr``.
        files: size and crc32c of every file by its path, as sealed.
    """

    def __init__(self, root: Path, files: Files) -> None:
        super().__init__(root, read_only=True)
        self.files = files

    def __getstate__(self) -> tuple[Path, Files]:
        return self.root, self.files

    def __setstate__(self, state: tuple[Path, Files]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Bytes of one file, or None if there is none and none was sealed.

        Raises:
            DamageError: they are not those that were sealed.
        """
        found = await super().get(key, prototype, byte_range)
        if byte_range is None:
            self._check(key, found)
        return found

    def get_sync(self, key: str, **options: Any) -> Buffer | None:
        """As ``get``, for versions of Zarr that read without an event loop."""
        found: Buffer | None = super().get_sync(key, **options)
        if options.get("byte_range") is None:
            self._check(key, found)
        return found

    def _check(self, key: str, found: Buffer | None) -> None:
        recorded = self.files.get(key)
        if recorded is None:
            return
        path = self.root / key
        if found is None:
            raise damage_error(path, "missing", f"{recorded[0]} bytes")
        size = len(found)
        end = found if path.name == DOCUMENT else found[max(0, size - CHECKSUM_BYTES) :]
        data = end.to_bytes()
        crc = checksum(data) if end is found else int.from_bytes(data, "little")
        if (size, crc) != recorded:
            what = f"{size} bytes, crc32c {crc:08x}: not the file written here"
            raise damage_error(path, what, f"{recorded[0]} bytes, {recorded[1]:08x}, as recorded")
