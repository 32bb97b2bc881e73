"""Arrays whose rows are read on demand: in memory, mapped from a file, or in HDF5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.digests import stat_signature
from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.arrays.packed import Packing
from krepes_ooc.sources.base import Int64, check_finite
from krepes_ooc.sources.cache import CachedFile

SCAN_BYTES = 16 * 2**20
MARGINAL_ROWS = 4_096
_MARGINAL_SEED = 0x6B72
_HASH_ROWS = 2**20
FileSignature = tuple[int, int, int, int]


class Rows(Protocol):
    """Samples [sample, ...] of one array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every dimension, samples first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the array occupies between reads."""

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the rows [sample, ...] at these valid positions."""


@dataclass(frozen=True)
class MemoryRows:
    """Rows of an array in memory."""

    values: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every dimension."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.values.dtype

    @property
    def resident_bytes(self) -> int:
        """Size of the whole array in bytes."""
        return int(self.values.nbytes)

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the rows at these positions."""
        return np.asarray(self.values[positions])


@dataclass(frozen=True)
class MappedRows:
    """Rows of an uncompressed array inside a file, memory-mapped for each read.

    Args:
        path: the file.
        offset: bytes before the first row.
        dtype: type of the values in the file, byte order included.
        shape: size of every dimension, samples first, in C order.
        signature: ``stat_signature`` of the file when it was opened.
        cached: checksums of a file unpacked into the cache; None for a file of the user.
    """

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    signature: FileSignature
    cached: CachedFile | None = None

    @property
    def resident_bytes(self) -> int:
        """0: nothing stays mapped between reads."""
        return 0

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the rows at these positions, in native byte order.

        Raises:
            DataError: the file changed since it was opened.
            DamageError: an unpacked file fails its checksums.
        """
        # A file of the user can change under the run; an unpacked one has checksums instead.
        if self.cached is None:
            check_unchanged(self.path, self.signature)
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        # An empty range can be neither mapped nor checked.
        if not positions.size or not row_bytes:
            return np.empty((len(positions), *self.shape[1:]), self.dtype.newbyteorder("="))
        if self.cached is not None:
            starts = self.offset + positions * row_bytes
            self.cached.check_all(starts, starts + row_bytes)
        # A fresh map each time: pages of a map that stays open count as memory of this process.
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        return np.asarray(mapped[positions], dtype=self.dtype.newbyteorder("="))


@dataclass(frozen=True)
class Hdf5Rows:
    """Rows of an HDF5 data set; the file is opened for each read.

    Args:
        path: the file.
        name: of the data set.
        dtype: type of the values that are given.
        shape: size of every dimension, samples first; grey pictures have a channel axis.
        signature: ``stat_signature`` of the file when it was opened.
        packing: how stored values are decoded; None: as they are.
        linked: other files that hold the values, with their signatures.
    """

    path: Path
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    signature: FileSignature
    packing: Packing | None = None
    linked: tuple[tuple[Path, FileSignature], ...] = ()

    @property
    def resident_bytes(self) -> int:
        """0: nothing stays open between reads."""
        return 0

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the rows at these positions.

        Raises:
            DataError: the file changed since it was opened, cannot be read, or lacks a value.
        """
        for file, signature in ((self.path, self.signature), *self.linked):
            check_unchanged(file, signature)
        # HDF5 takes only increasing, unique indices: read those, then repeat and reorder.
        unique, inverse = np.unique(positions, return_inverse=True)
        try:
            with import_hdf5().File(self.path, "r") as file:
                values = np.asarray(file[self.name][unique]) if unique.size else None
        except OSError as error:
            raise DataError(f"cannot be read: {error}", where=str(self.path)) from error
        if values is None:
            return np.empty((0, *self.shape[1:]), self.dtype)
        if self.packing is not None:
            values = self.packing.decode(values, unique, str(self.path))
        # The channel axis of grey pictures is not in the file.
        values = values.reshape(len(unique), *self.shape[1:])
        return np.asarray(values[inverse.reshape(positions.shape)])


def mapped_rows(
    path: Path,
    offset: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    cached: CachedFile | None,
) -> MappedRows:
    """Rows of an uncompressed array inside a file.

    Raises:
        SourceError: the file is too short for the shape.
    """
    # A short file would only fail when its last rows are touched.
    needed = offset + dtype.itemsize * math.prod(shape)
    size = path.stat().st_size
    if size < needed:
        raise SourceError(
            f"{size} bytes", where=str(path), expected=f"{needed} bytes for shape {list(shape)}"
        )
    return MappedRows(path, offset, dtype, shape, stat_signature(path), cached)


def choose_array(names: list[str], requested: str, path: Path) -> str:
    """Name of the array to read: the requested one, or the only one.

    Raises:
        SourceError: there is no such array, or several and none is requested.
    """
    if requested in names:
        return requested
    if not requested and len(names) == 1:
        return names[0]
    raise SourceError(
        f"no array {requested!r}" if requested else f"{len(names)} arrays and none is chosen",
        where=str(path),
        expected="source.array (or label_array) one of " + ", ".join(sorted(names)),
    )


def check_unchanged(path: Path, signature: FileSignature) -> None:
    """Raise if a file changed since it was opened.

    Raises:
        DataError: size, time or inode differ.
    """
    if stat_signature(path) != signature:
        raise DataError(
            "the file changed while it was read",
            where=str(path),
            advice="start again with the file as it is now",
        )


def check_all_finite(rows: Rows, where: str) -> None:
    """Read every row once, ``SCAN_BYTES`` at a time, and raise on NaN or infinity.

    Raises:
        DataError: a value is not finite; names the first such sample.
    """
    if rows.dtype.kind != "f":
        return
    # Bounded memory: as many whole rows at once as fit SCAN_BYTES.
    row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    step = max(1, SCAN_BYTES // max(1, row_bytes))
    for start in range(0, rows.shape[0], step):
        positions = np.arange(start, min(start + step, rows.shape[0]))
        check_finite(rows.take(positions), positions, "a value", where)


def import_hdf5() -> Any:
    """The h5py package.

    Raises:
        SourceError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise SourceError(
            "HDF5 files need h5py", where="source", advice="pip install 'krepes-ooc[hdf5]'"
        ) from error
    return h5py


def marginal_positions(n_samples: int) -> Int64:
    """Ascending positions of the rows that marginals are drawn from: bottom-k sampling.

    The ``MARGINAL_ROWS`` rows with the smallest keyed hash are a uniform sample without
    replacement that depends on ``n_samples`` alone.
    """
    smallest = np.empty(0, dtype=np.int64)
    for start in range(0, n_samples, _HASH_ROWS):
        # The k smallest of a prefix and one more chunk are the k smallest of both.
        chunk = np.arange(start, min(start + _HASH_ROWS, n_samples))
        smallest = np.concatenate([smallest, chunk])
        if smallest.size > MARGINAL_ROWS:
            order = np.argsort(counter_rng.bits(_MARGINAL_SEED, smallest), kind="stable")
            smallest = smallest[order[:MARGINAL_ROWS]]
    return np.sort(smallest)


class MarginalSample:
    """The rows at ``marginal_positions``, gathered before the number of rows is known."""

    def __init__(self) -> None:
        self._positions = np.empty(0, dtype=np.int64)
        self._hashes = np.empty(0, dtype=np.uint64)
        # The largest hash that can still be among the smallest ones.
        self._bound = np.uint64(2**64 - 1)
        self._rows: list[npt.NDArray[np.float64]] = []

    def add(self, first: int, columns: Sequence[npt.NDArray[np.float64]]) -> None:
        """Add consecutive rows.

        Args:
            first: position of the first of them.
            columns: their values in each column [row].
        """
        positions = first + np.arange(columns[0].size)
        hashes = counter_rng.bits(_MARGINAL_SEED, positions)
        chosen = np.flatnonzero(hashes <= self._bound)
        self._positions = np.concatenate([self._positions, positions[chosen]])
        self._hashes = np.concatenate([self._hashes, hashes[chosen]])
        self._rows.append(np.stack([column[chosen] for column in columns], axis=1))
        # Sorted seldom: few rows come in once the bound is low.
        if self._positions.size > 2 * MARGINAL_ROWS:
            self._shrink()

    def rows(self) -> npt.NDArray[np.float64]:
        """The rows [row, column] in the order of their positions."""
        self._shrink()
        return self._rows[0]

    def _shrink(self) -> None:
        order = np.argsort(self._hashes, kind="stable")[:MARGINAL_ROWS]
        if order.size == MARGINAL_ROWS:
            self._bound = self._hashes[order[-1]]
        # Ascending positions, as the rows came.
        order = np.sort(order)
        self._positions = self._positions[order]
        self._hashes = self._hashes[order]
        self._rows = [np.concatenate(self._rows)[order]]
