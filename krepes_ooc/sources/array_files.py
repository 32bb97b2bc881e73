"""Arrays as a source: idx (MNIST family), npy, npz, HDF5 and Zarr; never read whole."""

from __future__ import annotations

import gzip
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import (
    canonical_digest,
    remembered_sha256,
    stat_signature,
    write_cache_file,
)
from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.array_rows import (
    Hdf5Rows,
    MappedRows,
    MemoryRows,
    Rows,
    check_all_finite,
    choose_array,
    import_hdf5,
    mapped_rows,
)
from krepes_ooc.sources.arrays import ArraySource, Labels, array_source
from krepes_ooc.sources.base import SourceSpec, locate
from krepes_ooc.sources.cache import CachedFile, find_cached, writing_cached
from krepes_ooc.sources.zarr_arrays import is_zarr, zarr_rows, zarr_sha256

MAX_CLASSES = 1_024
_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_HDF5 = {".h5", ".hdf5", ".hdf"}
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
    return _open(spec, base, cache, _array_rows)


Reader = Callable[[Path, str, str, Path], Rows]


def _open(spec: SourceSpec, base: Path, cache: Path, reader: Reader) -> ArraySource:
    path = locate(spec.path, base, folder=is_zarr(spec.path))
    sha256 = _sha256(path, spec.array, cache)
    identity: dict[str, Any] = {
        "kind": spec.kind,
        "name": path.name,
        "bytes": 0 if is_zarr(path) else path.stat().st_size,
        "sha256": sha256,
        "array": spec.array,
    }
    rows = reader(path, sha256, spec.array, cache)
    labels: Labels | None = None
    if spec.labels or spec.label_array:
        folder = is_zarr(spec.labels)
        label_path = locate(spec.labels, base, "labels", folder=folder) if spec.labels else path
        label_sha256 = _sha256(label_path, spec.label_array, cache)
        found = reader(label_path, label_sha256, spec.label_array, cache)
        labels = code_labels(found.take(np.arange(found.shape[0])), str(label_path))
        labels = _named(labels, spec.classes, str(label_path)) if spec.classes else labels
        if len(labels.codes) != rows.shape[0]:
            raise SourceError(
                f"{len(labels.codes)} labels for {rows.shape[0]} samples",
                where=str(label_path),
                expected="one label for each sample",
            )
        identity |= {"labels": [label_path.name, label_sha256, spec.label_array]}
    rows = _limited(rows, spec.limit)
    source = array_source(spec, rows, labels, identity)
    _check_once(rows, str(path), cache, canonical_digest(source.fingerprint()))
    return source


def _sha256(path: Path, array: str, cache: Path) -> str:
    return zarr_sha256(path, array, cache) if is_zarr(path) else remembered_sha256(path, cache)


def _check_once(rows: Rows, where: str, cache: Path, digest: str) -> None:
    """Look for NaN in every row the first time; later runs find the mark."""
    mark = cache / f"finite-{digest[:16]}"
    if rows.dtype.kind == "f" and not mark.is_file():
        check_all_finite(rows, where)
        write_cache_file(mark, b"")


def code_labels(values: npt.NDArray[Any], where: str) -> Labels:
    """Codes and sorted class names of labels [sample]: whole numbers (negative: missing) or text.

    Raises:
        SourceError: another shape or type, or too many classes.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "uibUS":
        raise SourceError(
            f"labels are {values.dtype} of shape {list(values.shape)}",
            where=where,
            expected="whole numbers or text [sample]",
        )
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    missing = values == "" if values.dtype.kind == "U" else values.astype(np.int64) < 0
    names, codes = np.unique(values[~missing], return_inverse=True)
    if len(names) > MAX_CLASSES:
        raise SourceError(
            f"{len(names)} classes", where=where, expected=f"at most {MAX_CLASSES} classes"
        )
    placed = np.full(values.shape, -1, dtype=np.int64)
    placed[~missing] = codes
    return Labels(placed, tuple(str(name) for name in names.tolist()))


def _named(labels: Labels, classes: tuple[str, ...], where: str) -> Labels:
    """The same labels under the names that the recipe gives to 0, 1, 2 ...

    Raises:
        SourceError: a label without a name, or a name twice.
    """
    if len(set(classes)) < len(classes):
        raise SourceError(
            "source.classes names a class twice", where=where, expected="different names"
        )
    known = {str(code): code for code in range(len(classes))}
    nameless = [name for name in labels.classes if name not in known]
    if nameless:
        raise SourceError(
            f"label {nameless[0]} has no name",
            where=where,
            expected=f"labels from 0 to {len(classes) - 1}, as many as source.classes names",
        )
    # The last place is that of missing labels.
    code = np.array([*(known[name] for name in labels.classes), -1], dtype=np.int64)
    return Labels(code[labels.codes], classes)


def _limited(rows: Rows, limit: int | None) -> Rows:
    if limit is None or limit >= rows.shape[0]:
        return rows
    if isinstance(rows, MemoryRows):
        return MemoryRows(rows.values[:limit])
    cut = cast("MappedRows | Hdf5Rows", rows)
    return replace(cut, shape=(limit, *rows.shape[1:]))


def _idx_rows(path: Path, sha256: str, array: str, cache: Path) -> Rows:
    """Rows of an idx file: magic 0 0 type dims, big-endian sizes, then the values."""
    kept: CachedFile | None = None
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if packed:
        target = cache / f"unpacked-{sha256[:16]}.idx"
        kept = _unpack(path, target, lambda: cast("BinaryIO", gzip.GzipFile(path)))
        path = target
    try:
        with path.open("rb") as stream:
            zero, code, dims = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{dims}I", stream.read(4 * dims))
        if zero or code not in _IDX_TYPES or not dims:
            raise ValueError("no idx header")
    except (struct.error, ValueError) as error:
        raise SourceError("no idx header", where=str(path), expected="an idx file") from error
    dtype = np.dtype(_IDX_TYPES[code])
    if len(shape) == 3:
        shape = (*shape, 1)
    return mapped_rows(path, 4 + 4 * dims, dtype, shape, kept)


def _array_rows(path: Path, sha256: str, array: str, cache: Path) -> Rows:
    suffix = path.suffix.lower()
    if is_zarr(path):
        return zarr_rows(path, sha256, array, cache)
    if suffix in _HDF5:
        return _hdf5_rows(path, array)
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


def _numpy_rows(path: Path, sha256: str, array: str, cache: Path) -> Rows:
    kept: CachedFile | None = None
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            name = choose_array(names, array, path)
            target = cache / f"unpacked-{canonical_digest([sha256, name])[:16]}.npy"
            kept = _unpack(path, target, lambda: cast("BinaryIO", archive.open(name + ".npy")))
            path = target
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        read = read or np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        offset = stream.tell()
    if dtype.hasobject:
        raise SourceError(
            "holds Python objects, which are never loaded", where=str(path), expected="numbers"
        )
    if fortran and len(shape) > 1:
        raise SourceError(
            "columns lie first (Fortran order)",
            where=str(path),
            expected="C order",
            advice="save numpy.ascontiguousarray(array)",
        )
    if len(shape) == 3 and dtype == np.uint8:
        shape = (*shape, 1)
    if dtype.kind in "USb":
        if kept is not None:
            kept.check(0, kept.size)
        return MemoryRows(np.load(path, allow_pickle=False))
    return mapped_rows(path, offset, dtype, shape, kept)


def _hdf5_rows(path: Path, array: str) -> Rows:
    h5py = import_hdf5()
    try:
        with h5py.File(path, "r") as file:
            names: list[str] = []
            file.visititems(lambda n, item: names.append(n) if hasattr(item, "shape") else None)
            name = choose_array(names, array, path)
            data = file[name]
            if data.dtype.kind == "O":
                return MemoryRows(np.asarray(data.asstr()[:], dtype=np.str_))
            shape = tuple(int(size) for size in data.shape)
            return Hdf5Rows(path, name, data.dtype, shape, stat_signature(path))
    except OSError as error:
        raise unreadable(path, error, source=True) from error


def _unpack(path: Path, target: Path, open_stream: Callable[[], BinaryIO]) -> CachedFile | None:
    """Unpack one compressed stream into the cache, once; its first piece holds the header."""
    kept = find_cached(target)
    if kept is None or kept.damage(1):
        try:
            with (
                writing_cached(target) as temporary,
                temporary.open("wb") as stream,
                open_stream() as packed,
            ):
                shutil.copyfileobj(packed, stream, 2**20)
        except _DAMAGE as error:
            raise SourceError(
                f"cannot be unpacked into the cache: {error}",
                where=str(path),
                expected="an undamaged file and a writable workspace",
            ) from error
        kept = find_cached(target)
    return kept
