"""Arrays as a source: idx (MNIST family), npy, npz, HDF5 and Zarr; never read whole."""

from __future__ import annotations

import gzip
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from krepes_ooc.core.digests import (
    canonical_digest,
    remembered_sha256,
    write_cache_file,
)
from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.arrays.array_labels import code_labels, rename_classes
from krepes_ooc.sources.arrays.array_rows import (
    Hdf5Rows,
    MappedRows,
    MemoryRows,
    Rows,
    check_all_finite,
    choose_array,
    mapped_rows,
)
from krepes_ooc.sources.arrays.array_source import ArraySource, ImageSource, Labels, array_source
from krepes_ooc.sources.arrays.hdf5_arrays import SUFFIXES, hdf5_rows
from krepes_ooc.sources.arrays.hdf5_arrays import filled_words as hdf5_filled_words
from krepes_ooc.sources.arrays.picture_rows import check_pixel_range
from krepes_ooc.sources.arrays.zarr_arrays import filled_words as zarr_filled_words
from krepes_ooc.sources.arrays.zarr_arrays import is_zarr, zarr_rows, zarr_sha256
from krepes_ooc.sources.base import SourceSpec, locate
from krepes_ooc.sources.cache import CachedFile, find_cached, writing_cached

RowReader = Callable[[Path, str, str, Path], Rows]
# The third byte of an idx header: NumPy type of the values, big-endian.
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
# What the decoders of gzip, zip and npy raise on a damaged file.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, struct.error)


def open_idx(spec: SourceSpec, base: Path, cache: Path) -> ArraySource:
    """Images and labels in idx files, plain or gzipped (unpacked once into the cache).

    Raises:
        SourceError: a file is missing, damaged or of another format.
        DataError: a value is NaN or infinite.
    """
    return _open(spec, base, cache, _idx_rows)


def open_arrays(spec: SourceSpec, base: Path, cache: Path) -> ArraySource:
    """An array in a npy, npz or HDF5 file or a Zarr folder; uint8 [sample, y, x] are grey images.

    Raises:
        SourceError: a file is missing, damaged, of another format, or holds no such array.
        DataError: a value is NaN or infinite.
    """
    reader = partial(_array_rows, fill=spec.missing_chunks == "fill")
    return _open(spec, base, cache, reader)


def _open(spec: SourceSpec, base: Path, cache: Path, reader: RowReader) -> ArraySource:
    path = _locate(spec.path, base)
    sha256 = _sha256(path, spec.array, cache)
    identity: dict[str, Any] = {
        "kind": spec.kind,
        "name": path.name,
        "bytes": 0 if path.is_dir() else path.stat().st_size,
        "sha256": sha256,
        "array": spec.array,
    }
    rows = reader(path, sha256, spec.array, cache)
    # Values behind links and in virtual data sets are part of the content.
    if isinstance(rows, Hdf5Rows) and rows.linked:
        linked = [file for file, _ in rows.linked]
        identity["linked"] = [[file.name, remembered_sha256(file, cache)] for file in linked]
    # Labels: a second file, or another array of the same file.
    labels: Labels | None = None
    if spec.labels or spec.label_array:
        label_path = _locate(spec.labels, base, "labels") if spec.labels else path
        label_sha256 = _sha256(label_path, spec.label_array, cache)
        label_rows = reader(label_path, label_sha256, spec.label_array, cache)
        labels = _read_labels(label_rows, spec.classes, str(label_path))
        if len(labels.codes) != rows.shape[0]:
            raise SourceError(
                f"{len(labels.codes)} labels for {rows.shape[0]} samples",
                where=str(label_path),
                expected="one label for each sample",
            )
        identity |= {"labels": [label_path.name, label_sha256, spec.label_array]}
    # The limit comes last: labels are counted against the whole file.
    rows = _first_rows(rows, spec.limit)
    source = array_source(spec, rows, labels, identity)
    # Whole numbers that look like pictures reach the network unscaled, through views of the user.
    if type(source) is ArraySource and rows.dtype.kind in "ui" and source.advice:
        source.warnings = (f"values are taken as they are: {source.advice}",)
    if spec.missing_chunks == "fill":
        source.warnings = (*source.warnings, *_filled_words(path, spec.array))
    # On opening, not hours into the run: every row is read once.
    digest = canonical_digest(source.fingerprint())
    _check_finite_once(rows, str(path), cache, digest)
    if isinstance(source, ImageSource) and not spec.range:
        check_pixel_range(rows, str(path), cache, digest)
    return source


def _locate(path: str, base: Path, key: str = "path") -> Path:
    """The file or Zarr folder that a recipe names.

    Raises:
        SourceError: there is none; of a folder that is no Zarr array, what it is.
    """
    located = (base / Path(path).expanduser()).absolute()
    if is_zarr(located):
        if located.is_file():
            raise SourceError(
                "a file, but Zarr stores are folders",
                where=str(located),
                expected="a folder",
                advice="unpack it if it is an archive",
            )
        return locate(path, base, key, folder=True)
    if path and located.is_dir():
        raise SourceError(
            "a folder without Zarr metadata",
            where=str(located),
            expected="a .npy, .npz or .h5 file, or a Zarr array or group",
            advice="pictures in a folder are read by source.kind: images",
        )
    return locate(path, base, key)


def _read_labels(rows: Rows, classes: tuple[str, ...], where: str) -> Labels:
    """Codes and classes of a label array; ``classes`` are the recipe's names of 0, 1, 2 ..."""
    if not rows.shape:
        raise SourceError("a single value", where=where, expected="labels [sample]")
    values = rows.take(np.arange(rows.shape[0]))
    # Named classes: False is the first, True the second.
    if classes and values.dtype.kind == "b":
        values = values.astype(np.int64)
    labels = code_labels(values, where)
    return rename_classes(labels, classes, where) if classes else labels


def _filled_words(path: Path, array: str) -> list[str]:
    """Warnings of parts that are not on disk and read as the fill value."""
    if is_zarr(path):
        words = zarr_filled_words(path, array)
    elif path.suffix.lower() in SUFFIXES:
        words = hdf5_filled_words(path, array)
    else:
        words = []
    return [f"{path.name}: {text}" for text in words]


def _sha256(path: Path, array: str, cache: Path) -> str:
    return zarr_sha256(path, array, cache) if is_zarr(path) else remembered_sha256(path, cache)


def _check_finite_once(rows: Rows, where: str, cache: Path, digest: str) -> None:
    """Check every row for NaN on the first run; a marker in the cache spares later runs."""
    marker = cache / f"finite-{digest[:16]}"
    if rows.dtype.kind == "f" and not marker.is_file():
        check_all_finite(rows, where)
        write_cache_file(marker, b"")


def _first_rows(rows: Rows, limit: int | None) -> Rows:
    if limit is None or limit >= rows.shape[0]:
        return rows
    # A view of memory, or a smaller shape over the same file: nothing is copied.
    if isinstance(rows, MemoryRows):
        return MemoryRows(rows.values[:limit])
    on_disk = cast("MappedRows | Hdf5Rows", rows)
    return replace(on_disk, shape=(limit, *rows.shape[1:]))


def _idx_rows(path: Path, sha256: str, array: str, cache: Path) -> Rows:
    """Rows of an idx file: magic 0 0 type dims, big-endian sizes, then the values."""
    cached: CachedFile | None = None
    with path.open("rb") as stream:
        # The magic number of gzip, whatever the suffix.
        compressed = stream.read(2) == b"\x1f\x8b"
    if compressed:
        target = cache / f"unpacked-{sha256[:16]}.idx"
        cached = _unpack(path, target, lambda: cast("BinaryIO", gzip.GzipFile(path)))
        path = target
    try:
        with path.open("rb") as stream:
            # Magic 0 0, type code, number of dimensions; then one big-endian size a dimension.
            zero, code, dims = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{dims}I", stream.read(4 * dims))
        if zero or code not in _IDX_TYPES or not dims:
            raise ValueError("no idx header")
    except (struct.error, ValueError) as error:
        raise SourceError("no idx header", where=str(path), expected="an idx file") from error
    dtype = np.dtype(_IDX_TYPES[code])
    # Grey pictures: add the channel axis.
    if len(shape) == 3:
        shape = (*shape, 1)
    return mapped_rows(path, 4 + 4 * dims, dtype, shape, cached)


def _array_rows(path: Path, sha256: str, array: str, cache: Path, *, fill: bool) -> Rows:
    suffix = path.suffix.lower()
    if is_zarr(path):
        return zarr_rows(path, sha256, array, cache, fill=fill)
    if suffix in SUFFIXES:
        return hdf5_rows(path, array, fill=fill)
    if suffix not in (".npy", ".npz"):
        raise SourceError(
            "unknown kind of array file",
            where=str(path),
            expected="a .npy, .npz or .h5 file, or a .zarr folder",
        )
    try:
        return _numpy_rows(path, sha256, array, cache)
    except _DAMAGE as error:
        raise unreadable(path, error, source=True) from error


def _refuse_sparse(names: Sequence[str], path: Path) -> None:
    """Raise on the parts of a sparse matrix, none of which is an array of samples.

    Raises:
        SourceError: the names are those that scipy writes.
    """
    if {"data", "format", "shape"} <= set(names):
        raise SourceError(
            "holds the parts of a sparse matrix",
            where=str(path),
            expected="an array [sample, ...]",
            advice="save matrix.toarray()",
        )


def _numpy_rows(path: Path, sha256: str, array: str, cache: Path) -> Rows:
    cached: CachedFile | None = None
    where = str(path)
    if path.suffix.lower() == ".npz":
        # A compressed member cannot be mapped: unpack it once, named by content and member.
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            _refuse_sparse(names, path)
            name = choose_array(names, array, path)
            target = cache / f"unpacked-{canonical_digest([sha256, name])[:16]}.npy"
            cached = _unpack(path, target, lambda: cast("BinaryIO", archive.open(name + ".npy")))
            path = target
            where = f"{where}, array {name}"
    with path.open("rb") as stream:
        # Read the header alone; the values are mapped in place.
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(stream)
        offset = stream.tell()
    # Loading objects would run pickled code.
    if dtype.hasobject:
        raise SourceError(
            "holds Python objects, which are never loaded", where=where, expected="numbers"
        )
    if fortran and len(shape) > 1:
        raise SourceError(
            "columns lie first (Fortran order)",
            where=where,
            expected="C order",
            advice="save numpy.ascontiguousarray(array)",
        )
    if len(shape) == 3 and dtype == np.uint8:
        shape = (*shape, 1)
    # Texts and booleans are labels: few and small.
    if dtype.kind in "USb":
        if cached is not None:
            cached.check(0, cached.size)
        return MemoryRows(np.load(path, allow_pickle=False))
    return mapped_rows(path, offset, dtype, shape, cached)


def _unpack(path: Path, target: Path, open_stream: Callable[[], BinaryIO]) -> CachedFile | None:
    """Unpack one compressed stream into the cache, once."""
    cached = find_cached(target)
    # The first piece holds the header: the shape must be right before rows are mapped.
    if cached is None or cached.problem(1):
        try:
            with (
                writing_cached(target) as temporary,
                temporary.open("wb") as stream,
                open_stream() as compressed,
            ):
                shutil.copyfileobj(compressed, stream, 2**20)
        except _DAMAGE as error:
            raise SourceError(
                f"cannot be unpacked into the cache: {error}",
                where=str(path),
                expected="an undamaged file and a writable workspace",
            ) from error
        # Read back what was recorded: later reads are checked against it.
        cached = find_cached(target)
    return cached
