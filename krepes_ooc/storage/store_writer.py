"""Writer of one store: the template first, then whole chunks, each by one rename."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import (
    CHECKSUM_BYTES,
    Files,
    checksum,
    disk_errors,
    read_bytes,
    sync_path,
    to_json,
    write_atomic,
)
from krepes_ooc.errors import DamageError, PlanRefused, StageFailed, WorkspaceError
from krepes_ooc.storage.contracts import StoreSpec
from krepes_ooc.storage.file_checks import MAX_CHUNK_BYTES, confine
from krepes_ooc.storage.zarr_metadata import (
    DOCUMENT,
    ArrayInfo,
    array_document,
    fill_value,
    group_document,
    padded,
    read_document,
    read_info,
    to_bytes,
    write_root,
)


class StoreWriter:
    """The one writer of one store; any number of threads may write different chunks.

    A chunk file holds the little-endian values followed by their crc32c, which is what the Zarr
    codecs ``[bytes, crc32c]`` read; it is written beside the store and renamed into it, so it is
    whole or absent.

    Args:
        path: the store's group inside ``audit.zarr``.
        temp: folder for unfinished files, on the same file system and outside ``audit.zarr``.
        spec: contract with sizes.
        digest: digest of the stage that writes.
    """

    def __init__(self, path: Path, temp: Path, spec: StoreSpec, digest: str) -> None:
        self.path = path
        self.temp = temp
        self.spec = spec
        self.digest = digest
        self._arrays = {name: self._info(name) for name in spec.names()}

    def create(self) -> None:
        """Create the group and its empty arrays by one rename, or check those that are there.

        Raises:
            PlanRefused: a chunk would be 2 GiB or larger.
            WorkspaceError: the store on disk belongs to another digest.
            DamageError: a document cannot be read.
        """
        # Refused before anything is written.
        for name, info in self._arrays.items():
            self._check_chunk_bytes(name, info)
        # The template appears whole, under its name, or not at all.
        if not self.path.exists():
            template = self.temp / f"{uuid.uuid4().hex}.template"
            try:
                self._write_template(template)
            finally:
                shutil.rmtree(template, ignore_errors=True)
        self._check_template()
        write_root(self.path.parent, self.temp)

    def write_block(
        self, name: str, block: Block, values: npt.NDArray[Any], view: int = 0
    ) -> Files:
        """Write the rows of one block (of one view) of one array, shape as the contract's dims.

        Returns:
            The chunk file with its size and crc32c, for the journal.

        Raises:
            StageFailed: a block, view, dtype or shape that the store has not, or a value that is
                not finite; the disk is full.
        """
        info = self._known(name)
        if not info.is_chunk(block):
            what = f"block {block.index}, rows {block.start} to {block.stop}"
            raise self._unfit(name, what, f"a chunk of shape {info.shape}, chunks {info.chunks}")
        if info.row_axis and not 0 <= view < info.shape[0]:
            raise self._unfit(name, f"view {view}", f"0 to {info.shape[0] - 1}")
        # A view is one chunk thick; the rows missing in the last block are filled up.
        chunk = info.chunks[1:] if info.row_axis else info.chunks
        values = self._checked(name, values, (block.rows, *chunk[1:]))
        values = padded(values, chunk, fill_value(info.dtype))
        return self._write_chunk(name, info.chunk_of(block.index, view), values)

    def write_array(self, name: str, values: npt.NDArray[Any]) -> Files:
        """Write one whole array; an empty one has no file.

        Returns:
            The chunk file with its size and crc32c, for the seal.

        Raises:
            StageFailed: as ``write_block``; or the array is written in blocks.
        """
        info = self._known(name)
        values = self._checked(name, np.asarray(values), info.shape)
        # Zarr writes no chunk of an empty array.
        if not values.size:
            return {}
        if info.chunks != info.shape:
            raise self._unfit(
                name, "a whole array", f"chunks {info.chunks}, written piece by piece"
            )
        return self._write_chunk(name, (0,) * values.ndim, values)

    def write_tile(self, name: str, row: int, column: int, values: npt.NDArray[Any]) -> Files:
        """Write one tile of an array in tiles: ``values`` [..., landmark, landmark_] of its ranges.

        Args:
            name: of the array.
            row: index of the tile along ``landmark``.
            column: index of the tile along ``landmark_``.
            values: what the tile holds; tiles at the end are short.

        Returns:
            The chunk file with its size and crc32c, for the seal.

        Raises:
            StageFailed: as ``write_block``.
        """
        info = self._known(name)
        shape = info.tile_shape(row, column)
        if shape is None:
            expected = f"a chunk of shape {info.shape}, chunks {info.chunks}"
            raise self._unfit(name, f"tile {row}, {column}", expected)
        # Tiles at the end are filled up; leading dims are a single chunk each.
        values = self._checked(name, values, shape)
        values = padded(values, info.chunks, fill_value(info.dtype))
        return self._write_chunk(name, (*(0,) * (len(shape) - 2), row, column), values)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace the store's attributes by those of the contract, checked for completeness.

        The arrays' documents are made good too, so that the seal covers what was meant.

        Raises:
            RecipeError: an attribute is missing or not in the contract.
        """
        self.spec.check_attributes(attributes)
        # Only documents that differ are written: a stage that is sealed again changes no file.
        for key, data in self._documents(attributes).items():
            if read_bytes(self.path / key) != data:
                write_atomic(self.path / key, data, self.temp, sync=True)
        write_root(self.path.parent, self.temp)

    def metadata_files(self) -> Files:
        """The metadata documents of the store with size and crc32c, for the seal."""
        files = {}
        for key in (DOCUMENT, *(f"{name}/{DOCUMENT}" for name in self._arrays)):
            data = read_bytes(self.path / key) or b""
            files[key] = (len(data), checksum(data))
        return files

    def _documents(self, attributes: Mapping[str, Any]) -> dict[str, bytes]:
        group = {**attributes, "krepes": self._stamp()}
        arrays = {
            f"{name}/{DOCUMENT}": to_bytes(array_document(info))
            for name, info in self._arrays.items()
        }
        return {DOCUMENT: to_bytes(group_document(group)), **arrays}

    def _stamp(self) -> dict[str, Any]:
        contract = self.spec.contract
        return {"store": contract.store, "version": contract.version, "digest": self.digest}

    def _info(self, name: str) -> ArrayInfo:
        spec = self.spec
        array = spec.contract.arrays[name]
        # Through JSON, so that the attributes compare equal to those read back from the disk.
        extra = json.loads(to_json(spec.array_attributes.get(name, {})))
        dtype = spec.dtype(name).newbyteorder("<")
        return ArrayInfo(
            spec.shape(name),
            spec.chunk_shape(name),
            dtype,
            array.dims,
            {"long_name": array.about, **extra},
        )

    def _write_template(self, template: Path) -> None:
        documents = self._documents({})
        with disk_errors(self.path, sum(map(len, documents.values()))):
            for key, data in documents.items():
                (template / key).parent.mkdir(parents=True, exist_ok=True)
                (template / key).write_bytes(data)
            # Flushed before the rename: a store that has its name is whole after a power loss too.
            for key in documents:
                sync_path(template / key)
                sync_path((template / key).parent)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                template.rename(self.path)
            except OSError:
                # Another process may have created the same store first.
                if not self.path.exists():
                    raise
            sync_path(self.path.parent)

    def _check_template(self) -> None:
        """Refuse to write into a store of another digest; put back lost and damaged documents."""
        # A document that is lost is the one that this stage would write, and so is a damaged one.
        documents = self._documents({})
        for key in documents:
            if not self._is_usable(confine(self.path / key, self.path)):
                write_atomic(self.path / key, documents[key], self.temp, sync=True)
        # The stamp names store, contract version and digest: two digests never share a store.
        stamp = read_document(self.path).get("attributes", {}).get("krepes")
        if stamp != self._stamp():
            raise WorkspaceError(
                f"the store was written as {stamp}",
                where=str(self.path),
                expected=f"{self._stamp()}",
                advice="delete the store and run again: it is computed anew",
            )

    def _is_usable(self, path: Path) -> bool:
        """Whether a document can be read and has the layout that the chunks are written in."""
        try:
            if path.parent == self.path:
                stamp = read_document(self.path)["attributes"]["krepes"]
                # Another digest is refused; the rest of the stamp follows from it.
                return stamp == self._stamp() or self.digest != str(stamp["digest"])
            return _layout(read_info(path.parent)) == _layout(self._arrays[path.parent.name])
        except (DamageError, WorkspaceError, KeyError, TypeError):
            return False

    def _check_chunk_bytes(self, name: str, info: ArrayInfo) -> None:
        if info.chunk_bytes > MAX_CHUNK_BYTES:
            raise PlanRefused(
                f"one chunk of {name!r} would take {info.chunk_bytes} bytes",
                where=f"store {self.spec.contract.store}",
                expected=f"at most {MAX_CHUNK_BYTES}",
                advice="choose fewer landmarks or fewer features",
            )

    def _known(self, name: str) -> ArrayInfo:
        if name not in self._arrays:
            raise self._unfit(name, "the store has no such array", f"one of {[*self._arrays]}")
        return self._arrays[name]

    def _checked(
        self, name: str, values: npt.NDArray[Any], shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        dtype = self._arrays[name].dtype
        if values.dtype.name != dtype.name:
            raise self._unfit(name, f"dtype {values.dtype}", f"dtype {dtype}")
        if values.shape != shape:
            raise self._unfit(name, f"shape {values.shape}", f"shape {shape}")
        # NaN marks what is missing, so it may never be a value.
        if dtype.kind == "f" and (bad := self._not_allowed(name, values)).any():
            at = np.argwhere(bad)[0].tolist()
            raise self._unfit(name, f"{values[tuple(at)]} at {at}", "finite numbers")
        return values

    def _not_allowed(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Infinite values, and NaN where the contract gives it no meaning."""
        if self.spec.contract.arrays[name].missing:
            return np.asarray(np.isinf(values))
        return _not_finite(values)

    def _write_chunk(self, name: str, at: tuple[int, ...], values: npt.NDArray[Any]) -> Files:
        key = "/".join([name, "c", *map(str, at)])
        path = self.path / key
        confine(path.parent, self.path)
        # Values in C order, little-endian, then their crc32c: what the codecs [bytes, crc32c] read.
        payload = np.ascontiguousarray(values, self._arrays[name].dtype).reshape(-1).view(np.uint8)
        crc = checksum(payload)
        parts = (payload.data, crc.to_bytes(CHECKSUM_BYTES, "little"))
        write_atomic(path, parts, self.temp, sync=False)
        return {key: (sum(map(len, parts)), crc)}

    def _unfit(self, name: str, what: str, expected: str) -> StageFailed:
        where = f"store {self.spec.contract.store}, array {name}"
        return StageFailed(what, where=where, expected=expected)


def _not_finite(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Mask of infinite and NaN values; float16 by its exponent bits, several times faster."""
    # All exponent bits set: infinite or NaN (IEEE 754).
    half = values.dtype == np.float16
    return np.asarray((values.view(np.uint16) & 0x7C00) == 0x7C00 if half else ~np.isfinite(values))


def _layout(info: ArrayInfo) -> tuple[Any, ...]:
    return info.shape, info.chunks, info.dtype.name, info.dims
