"""HDF5 data sets as rows: links, virtual and external sources, chunks that were never written."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from krepes_ooc.core.digests import stat_signature
from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.arrays.array_rows import (
    Hdf5Rows,
    MemoryRows,
    Rows,
    choose_array,
    import_hdf5,
)
from krepes_ooc.sources.arrays.packed import find_packing

SUFFIXES = {".h5", ".hdf5", ".hdf"}
# Virtual data sets may be built of virtual data sets.
_MAX_DEPTH = 8
# What h5py raises on a damaged file.
_DAMAGE = (OSError, ValueError, KeyError, RuntimeError, TypeError)


def hdf5_rows(path: Path, array: str, *, fill: bool) -> Rows:
    """Rows of one data set; texts stay in memory.

    Args:
        path: the file.
        array: name of the data set; empty if there is but one.
        fill: whether values that were never written are meant to be the fill value.

    Raises:
        SourceError: no such data set, values of another kind, or values that were never written.
    """
    h5py = import_hdf5()
    try:
        with h5py.File(path, "r") as file:
            name, data = _open_data(h5py, file, array, path)
            where = f"{path}, array {name}"
            if data.shape is None:
                raise SourceError("no values", where=where, expected="an array [sample, ...]")
            holes = list(find_holes(h5py, data, path)) if not fill else []
            if holes:
                raise SourceError(
                    f"{holes[0]} and would read as the fill value {data.fillvalue}",
                    where=where,
                    expected="every value on disk",
                    advice="write or restore it, or set source.missing_chunks: fill "
                    "if the fill value is meant",
                )
            if data.dtype.kind == "O":
                return _texts(h5py, data, where)
            if data.dtype.kind not in "uifbSU":
                raise SourceError(
                    f"values of type {data.dtype}", where=where, expected="numbers or texts"
                )
            return _rows(data, path, name, where)
    except _DAMAGE as error:
        raise unreadable(path, error, source=True) from error


def _rows(data: Any, path: Path, name: str, where: str) -> Hdf5Rows:
    shape = tuple(int(size) for size in data.shape)
    # Grey pictures: add the channel axis.
    if len(shape) == 3 and data.dtype == np.uint8:
        shape = (*shape, 1)
    packing = find_packing(dict(data.attrs), data.dtype, where)
    dtype = packing.dtype(data.dtype) if packing else data.dtype
    linked = tuple((file, stat_signature(file)) for file in linked_files(path, name))
    return Hdf5Rows(path, name, dtype, shape, stat_signature(path), packing, linked)


def _texts(h5py: Any, data: Any, where: str) -> MemoryRows:
    """Texts of variable length, which can only be read whole."""
    if h5py.check_string_dtype(data.dtype) is None:
        items = h5py.check_vlen_dtype(data.dtype)
        kind = f"{np.dtype(items)} values of variable length" if items else "references"
        raise SourceError(
            f"holds {kind}",
            where=where,
            expected="numbers of one shape for all samples, or texts as labels",
            advice="decode them into one array [sample, ...], "
            "or read them with a data set of your own (kind: factory)",
        )
    try:
        return MemoryRows(np.asarray(data.asstr()[...], dtype=np.str_))
    except UnicodeDecodeError as error:
        raise SourceError(
            f"holds bytes that are no UTF-8 text: {error.reason}",
            where=where,
            expected="numbers, or texts in UTF-8",
            advice="bytes of pictures or other encodings: read them with a data set "
            "of your own (kind: factory)",
        ) from error


def _open_data(h5py: Any, file: Any, array: str, path: Path) -> tuple[str, Any]:
    """Name and data set of the array to read; links are followed.

    Raises:
        SourceError: no such data set, or a link whose target is not there.
    """
    names: list[str] = []
    file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
    links = {name: words for name, words in _links(h5py, file) if name not in names}
    # A link counts as an array if it is asked for, or if there is nothing else.
    wanted = array.strip("/")
    if wanted and wanted not in names and wanted not in links:
        with contextlib.suppress(KeyError):
            # Behind a link to a group, or a second name of the same data set.
            if isinstance(file[wanted], h5py.Dataset):
                return wanted, file[wanted]
    name = wanted if wanted in links else choose_array(names or list(links), wanted, path)
    try:
        data = file[name]
    except (KeyError, OSError) as error:
        raise SourceError(
            f"array {name} is {links.get(name, 'a link')}, which cannot be opened",
            where=str(path),
            expected="an existing target of the link",
            advice="restore the target, or name the file itself",
        ) from error
    if not isinstance(data, h5py.Dataset):
        raise SourceError(
            f"{name} is a group",
            where=str(path),
            expected="source.array one of " + ", ".join(sorted(names)),
        )
    return name, data


def filled_words(path: Path, array: str) -> list[str]:
    """Parts that read as the fill value because they were never written, in words.

    Raises:
        SourceError: the file cannot be read, or has no such data set.
    """
    h5py = import_hdf5()
    try:
        with h5py.File(path, "r") as file:
            _, data = _open_data(h5py, file, array, path)
            fill = f"reads as the fill value {data.fillvalue}"
            return [f"{words}: {fill}" for words in find_holes(h5py, data, path)]
    except _DAMAGE as error:
        raise unreadable(path, error, source=True) from error


def _links(h5py: Any, file: Any) -> list[tuple[str, str]]:
    """Names of the soft and external links of a file, and where they lead."""
    links: list[tuple[str, str]] = []

    def visit(name: str, link: Any) -> None:
        if isinstance(link, h5py.ExternalLink):
            links.append((name, f"a link to {link.filename}:{link.path}"))
        elif isinstance(link, h5py.SoftLink):
            links.append((name, f"a link to {link.path}"))

    file.visititems_links(visit)
    return links


def linked_files(path: Path, array: str) -> list[Path]:
    """Other files that the values of a data set lie in, sorted.

    They are the targets of external links, sources of virtual data sets and raw external files.

    Raises:
        SourceError: the file cannot be read, or has no such data set.
    """
    h5py = import_hdf5()
    try:
        with h5py.File(path, "r") as file:
            _, data = _open_data(h5py, file, array, path)
            files = {Path(data.file.filename)} | set(_sources(h5py, data, 0))
    except _DAMAGE as error:
        raise unreadable(path, error, source=True) from error
    return sorted(file for file in files if file.is_file() and not file.samefile(path))


def _sources(h5py: Any, data: Any, depth: int) -> Iterator[Path]:
    folder = Path(data.file.filename).parent
    for name, *_ in data.external or ():
        yield _find(folder, name) or folder / name
    if not data.is_virtual or depth > _MAX_DEPTH:
        return
    for source in data.virtual_sources():
        if source.file_name == ".":
            continue
        found = _find(folder, source.file_name)
        if found is not None:
            yield found
            with h5py.File(found, "r") as file:
                if isinstance(file.get(source.dset_name), h5py.Dataset):
                    yield from _sources(h5py, file[source.dset_name], depth + 1)


def _find(folder: Path, name: str) -> Path | None:
    """An existing file, looked up as HDF5 does: beside the file, here, then by its last name."""
    for candidate in (folder / name, Path(name), folder / Path(name).name):
        if candidate.is_file():
            return candidate.absolute()
    return None


def find_holes(h5py: Any, data: Any, path: Path, depth: int = 0) -> Iterator[str]:
    """Parts of a data set that are not on disk, in words.

    Args:
        h5py: the package.
        data: the data set.
        path: the file that holds it, which is not named again.
        depth: virtual data sets around this one.
    """
    if not data.size:
        return
    if data.is_virtual:
        yield from _virtual_holes(h5py, data, path, depth)
    elif data.chunks:
        yield from _chunk_holes(data)
    elif data.external:
        yield from _external_holes(data)
    # A contiguous data set is laid out as a whole by its first write.
    elif not data.id.get_storage_size():
        yield f"rows 0 to {data.shape[0] - 1} were never written" if data.shape else "no value"


def _chunk_holes(data: Any) -> Iterator[str]:
    counts = [-(-size // edge) for size, edge in zip(data.shape, data.chunks, strict=True)]
    # The usual case costs one look at the index of the chunks.
    if data.id.get_num_chunks() >= math.prod(counts):
        return
    written = np.zeros(counts[0], dtype=np.int64)

    def visit(chunk: Any) -> None:
        # Chunks beyond a shape that was made smaller do not count.
        inside = all(c < n for c, n in zip(chunk.chunk_offset, data.shape, strict=True))
        written[chunk.chunk_offset[0] // data.chunks[0]] += inside

    data.id.chunk_iter(visit)
    holes = np.flatnonzero(written < math.prod(counts[1:]))
    # Neighbouring rows of chunks in one sentence.
    for run in np.split(holes, np.flatnonzero(np.diff(holes) > 1) + 1):
        first = int(run[0]) * data.chunks[0]
        last = min((int(run[-1]) + 1) * data.chunks[0], data.shape[0]) - 1
        share = "" if len(counts) == 1 or not written[run].any() else "parts of "
        yield f"{share}rows {first} to {last} were never written"


def _external_holes(data: Any) -> Iterator[str]:
    folder = Path(data.file.filename).parent
    for name, offset, size in data.external:
        found = _find(folder, name)
        if found is None:
            yield f"the file {name} with its values is not there"
        elif size < 2**63 and found.stat().st_size < offset + size:
            yield f"the file {name} with its values ends early ({found.stat().st_size:,} bytes)"


def _virtual_holes(h5py: Any, data: Any, path: Path, depth: int) -> Iterator[str]:
    folder = Path(data.file.filename).parent
    mapped = 0
    for source in data.virtual_sources():
        name = source.file_name
        mapped += source.vspace.get_select_npoints()
        if depth > _MAX_DEPTH or "%b" in name:
            yield f"whether the source files {name} are complete is not known"
            continue
        if name == ".":
            yield from _source_holes(h5py, data.file, source, path, depth)
            continue
        found = _find(folder, name)
        if found is None:
            yield f"its source file {name} is not there"
            continue
        with h5py.File(found, "r") as file:
            yield from _source_holes(h5py, file, source, found, depth)
    # Sources do not overlap in practice; where they do, a gap may stay unseen.
    if mapped < data.size:
        yield f"{data.size - mapped:,} of its {data.size:,} values have no source"


def _source_holes(h5py: Any, file: Any, source: Any, path: Path, depth: int) -> Iterator[str]:
    """Missing parts of the data set behind one part of a virtual data set."""
    inner = file.get(source.dset_name)
    name = f"{path.name}:{source.dset_name}"
    if not isinstance(inner, h5py.Dataset):
        yield f"its source {name} is not there"
        return
    # The source may have shrunk below the part that is asked for.
    try:
        _, last = source.src_space.get_select_bounds()
        fits = inner.ndim == len(last) and all(
            n > m for n, m in zip(inner.shape, last, strict=True)
        )
    # A whole source has a selection without bounds.
    except ValueError:
        fits = inner.size >= source.vspace.get_select_npoints()
    if not fits:
        yield f"its source {name} has shape {list(inner.shape)}, too small for its part"
        return
    for words in find_holes(h5py, inner, path, depth + 1):
        yield f"in its source {name} {words}"
