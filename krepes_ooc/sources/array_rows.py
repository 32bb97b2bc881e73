"""Arrays whose rows are read on demand: in memory, mapped from a file, or in HDF5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.digests import stat_signature
from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.base import Int64
from krepes_ooc.sources.cache import CachedFile

SCAN_BYTES = 16 * 2**20


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
        """Memory that the array keeps."""

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
        """All of it."""
        return int(self.values.nbytes)

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the rows at these positions."""
        return np.asarray(self.values[positions])


@dataclass(frozen=True)
class MappedRows:
    """Rows of a plain array inside a file, mapped afresh for every reading.

    Args:
        path: the file.
        offset: bytes before the first row.
        dtype: type of the values as they lie in the file.
        shape: size of every dimension, samples first, in C order.
        seal: ``stat_signature`` of the file when it was opened.
        kept: checksums of a file that was unpacked, or None for the user's own.
    """

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    seal: tuple[int, int, int, int]
    kept: CachedFile | None = None

    @property
    def resident_bytes(self) -> int:
        """Nothing stays mapped."""
        return 0

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the rows at these positions, in native byte order.

        Raises:
            DataError: the file changed since it was opened.
            DamageError: an unpacked file is not what was written.
        """
        if self.kept is None:
            check_unchanged(self.path, self.seal)
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        if not positions.size or not row_bytes:
            return np.empty((len(positions), *self.shape[1:]), self.dtype.newbyteorder("="))
        if self.kept is not None:
            starts = self.offset + positions * row_bytes
            self.kept.check_all(starts, starts + row_bytes)
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        return np.asarray(mapped[positions], dtype=self.dtype.newbyteorder("="))


@dataclass(frozen=True)
class Hdf5Rows:
    """Rows of an HDF5 data set; the file is opened for every reading."""

    path: Path
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    seal: tuple[int, int, int, int]

    @property
    def resident_bytes(self) -> int:
        """Nothing stays open."""
        return 0

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Copies of the rows at these positions.

        Raises:
            DataError: the file changed since it was opened, or cannot be read.
        """
        check_unchanged(self.path, self.seal)
        # HDF5 takes only increasing, unique indices.
        wanted, places = np.unique(positions, return_inverse=True)
        try:
            with import_hdf5().File(self.path, "r") as file:
                found = np.asarray(file[self.name][wanted]) if wanted.size else None
        except OSError as error:
            raise DataError(f"cannot be read: {error}", where=str(self.path)) from error
        empty = np.empty((0, *self.shape[1:]), self.dtype)
        return empty if found is None else found[places.reshape(positions.shape)]


def mapped_rows(
    path: Path,
    offset: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    kept: CachedFile | None,
) -> MappedRows:
    """Rows of a plain array inside a file.

    Raises:
        SourceError: the file is too short for the shape.
    """
    needed = offset + dtype.itemsize * math.prod(shape)
    size = path.stat().st_size
    if size < needed:
        raise SourceError(
            f"{size} bytes", where=str(path), expected=f"{needed} bytes for shape {list(shape)}"
        )
    return MappedRows(path, offset, dtype, shape, stat_signature(path), kept)


def choose_array(names: list[str], wanted: str, path: Path) -> str:
    """The name of the array that is meant: the one that is wanted, or the only one.

    Raises:
        SourceError: there is no such array, or none is wanted among several.
    """
    if wanted in names:
        return wanted
    if not wanted and len(names) == 1:
        return names[0]
    raise SourceError(
        f"no array {wanted!r}" if wanted else f"{len(names)} arrays and none is chosen",
        where=str(path),
        expected="source.array (or label_array) one of " + ", ".join(sorted(names)),
    )


def check_unchanged(path: Path, seal: tuple[int, int, int, int]) -> None:
    """Refuse a file that is no longer the one that was opened.

    Raises:
        DataError: size, time or inode differ.
    """
    if stat_signature(path) != seal:
        raise DataError(
            "the file changed while it was read",
            where=str(path),
            advice="start again with the file as it is now",
        )


def check_finite(raw: npt.NDArray[Any], positions: Int64, where: str) -> None:
    """Refuse NaN and infinity in samples [sample, ...].

    Raises:
        DataError: names the first bad sample.
    """
    if raw.dtype.kind != "f" or not raw.size:
        return
    bad = ~np.isfinite(raw).reshape(len(raw), -1).all(axis=1)
    if bad.any():
        raise DataError(
            "NaN or infinity",
            where=f"{where}, sample {int(positions[np.flatnonzero(bad)[0]])} (from 0)",
            expected="finite values",
            advice="repair or remove the sample",
        )


def check_all_finite(rows: Rows, where: str) -> None:
    """Read every row once, in pieces, and refuse NaN and infinity.

    Raises:
        DataError: names the first bad sample.
    """
    if rows.dtype.kind != "f":
        return
    row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    step = max(1, SCAN_BYTES // max(1, row_bytes))
    for start in range(0, rows.shape[0], step):
        positions = np.arange(start, min(start + step, rows.shape[0]))
        check_finite(rows.take(positions), positions, where)


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


MARGINAL_ROWS = 4_096
_MARGINAL_SEED, _HASH_ROWS = 0x6B72, 2**20


def marginal_positions(n_samples: int) -> Int64:
    """Positions of the bank's rows, ascending: those with the smallest keyed hash."""
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, n_samples, _HASH_ROWS):
        kept = np.concatenate([kept, np.arange(start, min(start + _HASH_ROWS, n_samples))])
        if kept.size > MARGINAL_ROWS:
            order = np.argsort(counter_rng.bits(_MARGINAL_SEED, kept), kind="stable")
            kept = kept[order[:MARGINAL_ROWS]]
    return np.sort(kept)
