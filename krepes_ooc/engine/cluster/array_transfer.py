"""Arrays between client and workers: files of plain numbers, never code."""

from __future__ import annotations

import contextlib
import copyreg
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.files import checksum, disk_errors, remove_leftover
from krepes_ooc.errors import Stopped, WorkspaceError

SMALL_BYTES = 2**14  # arrays up to this size are part of the message


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file.

    Args:
        path: of the file: values in C order, little-endian.
        dtype: of the values.
        shape: of the array.
        crc32c: of the bytes.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    crc32c: int

    def read(self) -> npt.NDArray[Any]:
        """The array, in memory.

        Raises:
            Stopped: the file is gone with its run.
            WorkspaceError: it holds other bytes.
        """
        try:
            data = np.fromfile(self.path, dtype=np.uint8)
        except FileNotFoundError:
            raise run_ended() from None
        # A network file system may show a part of what another machine wrote.
        if data.nbytes != self._n_bytes or checksum(data) != self.crc32c:
            raise WorkspaceError(
                "the file is not what was written",
                where=self.path,
                expected=f"{self._n_bytes} bytes with crc32c {self.crc32c:08x}",
                advice="the file system must show one machine what another wrote; run again",
            )
        return data.view(self.dtype).reshape(self.shape)

    @property
    def _n_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def write_array(values: npt.NDArray[Any], folder: Path) -> ArrayFile:
    """Write an array to a new file of a run's folder.

    Raises:
        Stopped: the folder is gone, because the run has ended.
        StageFailed: the disk is full.
    """
    path = folder / f"{uuid.uuid4().hex}.values"
    values = np.ascontiguousarray(values)
    data = values.reshape(-1).view(np.uint8)
    with disk_errors(path, data.nbytes):
        try:
            with path.open("xb") as file:
                file.write(data.data)
        except FileNotFoundError:
            raise run_ended() from None
    return ArrayFile(str(path), values.dtype.str, values.shape, checksum(data))


def run_ended() -> Stopped:
    """The error of a worker whose run is over: its folder is gone."""
    return Stopped("stopped, because its run has ended")


def spill_arrays(value: Any, folder: Path) -> Any:
    """The value with its large arrays replaced by files, in tuples, lists and mappings."""
    if _is_large(value):
        return write_array(value, folder)
    if isinstance(value, tuple | list):
        return _of_parts(value, [spill_arrays(part, folder) for part in value])
    if isinstance(value, dict):
        return {key: spill_arrays(part, folder) for key, part in value.items()}
    return value


def _of_parts(value: Any, parts: list[Any]) -> Any:
    """A tuple or list of the same type with other parts; a named tuple takes them one by one."""
    kind = type(value)
    return kind._make(parts) if hasattr(kind, "_make") else kind(parts)


def load_arrays(value: Any) -> Any:
    """The value before ``spill_arrays``; its files are removed."""
    if isinstance(value, ArrayFile):
        array = value.read()
        remove_leftover(Path(value.path))
        return array
    if isinstance(value, tuple | list):
        return _of_parts(value, [load_arrays(part) for part in value])
    if isinstance(value, dict):
        return {key: load_arrays(part) for key, part in value.items()}
    return value


@contextlib.contextmanager
def arrays_as_files(folder: Path) -> Iterator[None]:
    """Let this process pickle large arrays as files of a folder, for the time of the context.

    Distributed pickles what it sends; this is the one place where that can be changed. The files
    are removed with the folder, or by ``TransferFolder.clear``.
    """

    # Pickled as a call: the array is read where it is unpickled.
    def reduce(values: npt.NDArray[Any]) -> Any:
        if not _is_large(values):
            return values.__reduce__()
        return ArrayFile.read, (write_array(values, folder),)

    before = copyreg.dispatch_table.get(np.ndarray)
    copyreg.pickle(np.ndarray, reduce)
    try:
        yield
    finally:
        del copyreg.dispatch_table[np.ndarray]
        if before is not None:
            copyreg.dispatch_table[np.ndarray] = before


def _is_large(value: Any) -> bool:
    # Arrays of Python objects have no bytes of their own to write.
    if not isinstance(value, np.ndarray):
        return False
    return bool(value.nbytes > SMALL_BYTES) and not value.dtype.hasobject
