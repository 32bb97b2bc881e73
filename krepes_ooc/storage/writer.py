"""Write one store: the template first, then whole chunks, each by one rename."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.blocks import Block
from krepes_ooc.errors import PlanRefused, StageFailed
from krepes_ooc.storage.contracts import ArrayContract, StoreSpec
from krepes_ooc.storage.files import CHECKSUM_BYTES, checksum, disk_errors, to_json, write_atomic

MAX_CHUNK_BYTES = 2**31 - 1
Files = dict[str, tuple[int, int]]


class StoreWriter:
    """The one writer of one store.

    A chunk file holds the little-endian values followed by their crc32c, which is what the Zarr codecs
    ``[bytes, crc32c]`` read; it is written beside the store and renamed into it, so it is whole or absent.

    Args:
        path: the store's group inside ``audit.zarr``.
        temp: folder for unfinished files, on the same file system and outside ``audit.zarr``.
        spec: contract with sizes.
        digest: digest of the stage that writes.
    """

    def __init__(self, path: Path, temp: Path, spec: StoreSpec, digest: str) -> None:
        self.path, self.temp, self.spec, self.digest = path, temp, spec, digest

    def create(self) -> None:
        """Create the group and its empty arrays by one rename; does nothing if they are there.

        Raises:
            PlanRefused: a chunk would be 2 GiB or larger.
        """
        if self.path.exists():
            return
        template = self.temp / f"{uuid.uuid4().hex}.template"
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write_template(template)
            try:
                template.rename(self.path)
            except OSError:
                # Another process created the same store first: the template is the same.
                shutil.rmtree(template, ignore_errors=True)
                if not self.path.exists():
                    raise

    def write_block(self, name: str, block: Block, values: npt.NDArray[Any], view: int = 0) -> Files:
        """Write the rows of one block (of one view) of one array, shape as the contract's dims.

        Returns:
            The chunk file with its size and crc32c, for the journal.
        """
        dims = self.spec.contract.arrays[name].dims
        coordinates = tuple(
            {"view": view, "sample": block.index, "audited": block.index}.get(dim, 0) for dim in dims
        )
        chunk = self.spec.chunk_shape(name)
        full = self._checked(name, values.reshape((1,) + values.shape if dims[0] == "view" else values.shape))
        if full.shape != chunk:
            full = self._padded(name, full, chunk)
        return self._write_chunk(name, coordinates, full)

    def write_array(self, name: str, values: npt.NDArray[Any]) -> Files:
        """Write one whole array; an empty one has no file."""
        values = self._checked(name, np.asarray(values))
        if values.shape != self.spec.shape(name):
            raise self._mismatch(name, f"shape {values.shape}", f"shape {self.spec.shape(name)}")
        if values.size == 0:
            return {}
        return self._write_chunk(name, (0,) * values.ndim, values)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace the store's attributes by those of the contract, checked for completeness."""
        self.spec.check_attributes(attributes)
        path = self.path / "zarr.json"
        group = json.loads(path.read_text(encoding="utf-8"))
        group["attributes"] = json.loads(to_json({**attributes, "krepes": self._stamp()}))
        write_atomic(path, json.dumps(group, indent=2).encode(), self.temp, sync=True)

    def metadata_files(self) -> Files:
        """The metadata documents of the store with size and crc32c, for the seal."""
        files = {}
        for path in sorted(self.path.glob("**/zarr.json")):
            data = path.read_bytes()
            files[path.relative_to(self.path).as_posix()] = (len(data), checksum(data))
        return files

    def _stamp(self) -> dict[str, Any]:
        contract = self.spec.contract
        return {"store": contract.store, "version": contract.version, "digest": self.digest}

    def _write_template(self, template: Path) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec

        group = zarr.create_group(template, attributes={"krepes": self._stamp()})
        for name in self.spec.names():
            array, shape, dtype = self.spec.contract.arrays[name], self.spec.shape(name), self.spec.dtype(name)
            chunks = self.spec.chunk_shape(name)
            self._check_chunk_bytes(name, chunks, dtype)
            group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=fill_value(dtype),
                compressors=[Crc32cCodec()],
                dimension_names=array.dims,
                attributes=self._array_attributes(name, array),
                config={"write_empty_chunks": True},
            )

    def _array_attributes(self, name: str, array: ArrayContract) -> dict[str, Any]:
        extra = json.loads(to_json(self.spec.array_attributes.get(name, {})))
        return {"long_name": array.about, **extra}

    def _check_chunk_bytes(self, name: str, chunks: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        size = int(np.prod(chunks, dtype=object)) * dtype.itemsize
        if size > MAX_CHUNK_BYTES:
            raise PlanRefused(
                f"one chunk of {name!r} would take {size} bytes",
                where=f"store {self.spec.contract.store}",
                expected=f"at most {MAX_CHUNK_BYTES}",
                advice="choose fewer landmarks or fewer features",
            )

    def _checked(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        dtype = self.spec.dtype(name)
        if values.dtype != dtype:
            raise self._mismatch(name, f"dtype {values.dtype}", f"dtype {dtype}")
        if dtype.kind == "f" and not np.isfinite(values).all():
            where = np.argwhere(~np.isfinite(values))[0].tolist()
            raise self._mismatch(name, f"a value that is not finite at {where}", "finite numbers")
        return np.ascontiguousarray(values)

    def _padded(
        self, name: str, values: npt.NDArray[Any], chunk: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        if any(size > limit for size, limit in zip(values.shape, chunk, strict=True)):
            raise self._mismatch(name, f"shape {values.shape}", f"at most one chunk {chunk}")
        full = np.full(chunk, fill_value(values.dtype), dtype=values.dtype)
        full[tuple(slice(size) for size in values.shape)] = values
        return full

    def _write_chunk(self, name: str, coordinates: tuple[int, ...], values: npt.NDArray[Any]) -> Files:
        key = "/".join([name, "c", *map(str, coordinates)])
        payload = memoryview(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))).cast("B")
        crc = checksum(values)
        data = b"".join((payload, crc.to_bytes(CHECKSUM_BYTES, "little")))
        write_atomic(self.path / key, data, self.temp, sync=False)
        return {key: (len(data), crc)}

    def _mismatch(self, name: str, what: str, expected: str) -> StageFailed:
        where = f"store {self.spec.contract.store}, array {name}"
        return StageFailed(what, where=where, expected=expected)


def fill_value(dtype: np.dtype[Any]) -> float | int:
    """NaN for floats, -1 for integers, 0 for pictures."""
    return float("nan") if dtype.kind == "f" else (0 if dtype.kind == "u" else -1)
