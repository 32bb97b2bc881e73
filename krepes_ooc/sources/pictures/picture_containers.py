"""Pictures inside parquet files and tar shards as a source, read one by one by their offset."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import canonical_digest, remembered_sha256, stat_signature
from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.arrays.array_labels import index_labels, plain_labels
from krepes_ooc.sources.arrays.array_rows import FileSignature, check_unchanged
from krepes_ooc.sources.arrays.array_source import ArraySource, Labels
from krepes_ooc.sources.base import Int64, SourceSpec
from krepes_ooc.sources.cache import CachedFile, find_cached, read_scan_result, write_scan_result
from krepes_ooc.sources.image_pixels import PixelFormat, decode_bytes
from krepes_ooc.sources.pictures.container_files import TAR
from krepes_ooc.sources.pictures.image_check import (
    CHECK_VERSION,
    PictureCheck,
    check_content,
    checks_from_json,
    checks_to_json,
    run_checks,
)
from krepes_ooc.sources.pictures.picture_source import (
    CheckedPictures,
    PictureRows,
    folder_labels,
    picture_source,
)

_NO_BYTES = "holds no bytes"


@dataclass(frozen=True)
class PictureFile:
    """One file that holds pictures one after the other.

    Args:
        path: the tar shard, or the unpacked pictures of a parquet file.
        signature: ``stat_signature`` of the shard when it was opened.
        cached: checksums of unpacked pictures; None for a file of the user.
    """

    path: Path
    signature: FileSignature
    cached: CachedFile | None = None

    def check(self, starts: Int64, stops: Int64) -> None:
        """Raise if bytes are not those that were checked when the source was opened.

        Raises:
            DataError: the file of the user changed.
            DamageError: unpacked bytes fail their checksum.
        """
        if self.cached is None:
            check_unchanged(self.path, self.signature)
        elif starts.size:
            self.cached.check_all(starts, stops)


@dataclass(frozen=True)
class ContainedRows(PictureRows):
    """Rows that are pictures inside files; each is decoded when it is read.

    Args:
        files: the files.
        names: of the pictures, for messages [sample].
        file: index of the file of each picture [sample].
        offset: of its first byte [sample].
        size: in bytes [sample].
    """

    files: tuple[PictureFile, ...]
    names: tuple[str, ...]
    file: Int64
    offset: Int64
    size: Int64

    @property
    def resident_bytes(self) -> int:
        """Estimate for names and places of the pictures, in bytes."""
        return 200 * len(self.names)

    def _decode(self, positions: Int64) -> Iterator[tuple[int, Path, npt.NDArray[Any]]]:
        for index in np.unique(self.file[positions]).tolist():
            rows = np.flatnonzero(self.file[positions] == index)
            chosen = positions[rows]
            file = self.files[index]
            file.check(self.offset[chosen], self.offset[chosen] + self.size[chosen])
            contents = read_ranges(file.path, self.offset[chosen], self.size[chosen])
            for row, position, content in zip(rows, chosen.tolist(), contents, strict=True):
                name = self.names[position]
                yield int(row), Path(name), decode_bytes(content, self.form, name)


@dataclass(frozen=True)
class _Contents:
    """Pictures of one file, as they are kept between runs."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[Any]
    classes: list[str]
    left_out: dict[str, int]
    checks: list[PictureCheck]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "checks": checks_to_json(self.checks)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> _Contents:
        return cls(**values | {"checks": checks_from_json(values["checks"])})


def open_containers(
    spec: SourceSpec,
    where: Path,
    containers: list[Path],
    cache: Path,
    check_stop: Callable[[], None],
) -> ArraySource:
    """All pictures of parquet files or tar shards, in the order of the files.

    Every picture is decoded and hashed once, before anything is computed; results are cached file
    by file. Labels are a class label or column ``label`` of parquet, members ``cls`` of a tar, or
    folders inside a tar without these.

    Args:
        spec: recipe key ``source``.
        where: folder or file that the recipe names.
        containers: the files.
        cache: where checks and unpacked pictures are kept.
        check_stop: raises when the run is to stop; files that are checked by then are kept.

    Raises:
        SourceError: a file cannot be read, holds no picture, or several columns or members may be
            the picture; labels that do not fit.
        DataError: pictures that cannot be decoded, or have different sizes.
    """
    opened: list[tuple[PictureFile, _Contents]] = []
    limit = spec.limit or math.inf
    # Files behind the limit are not opened.
    for path in containers:
        if sum(len(content.names) for _, content in opened) < limit:
            opened.append(_open(spec, path, where, cache, check_stop))
    files = tuple(file for file, _ in opened)
    contents = [content for _, content in opened]
    counts = [len(content.names) for content in contents]
    count = min(sum(counts), spec.limit or sum(counts))
    if not count:
        raise SourceError("no pictures", where=str(where), expected="at least one")
    # Positions run over the files in order.
    file = np.repeat(np.arange(len(files)), counts)[:count]
    offset = np.asarray([i for each in contents for i in each.offsets][:count], dtype=np.int64)
    size = np.asarray([i for each in contents for i in each.sizes][:count], dtype=np.int64)
    names = [name for each in contents for name in each.names][:count]

    def open_rows(valid: list[int], form: PixelFormat, shape: tuple[int, ...]) -> ContainedRows:
        index = np.asarray(valid, dtype=np.int64)
        chosen = tuple(names[i] for i in valid)
        return ContainedRows(form, shape, files, chosen, file[index], offset[index], size[index])

    left_out = sum((Counter(content.left_out) for content in contents), Counter[str]())
    described = ", ".join(f"{name} {total:,}" for name, total in sorted(left_out.items()))
    pictures = CheckedPictures(
        where,
        names,
        [check for content in contents for check in content.checks][:count],
        _labels(contents, names, where),
        {"container": containers[0].suffix.lower().lstrip(".")},
        (f"not read: {described}",) if described else (),
        (f"in {len(files):,} {containers[0].suffix.lower()} files",),
    )
    return picture_source(spec, pictures, open_rows, cache)


def read_ranges(path: Path, offsets: Int64, sizes: Int64) -> list[bytes]:
    """Contents of some ranges of a file.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            contents = []
            for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
                stream.seek(offset)
                contents.append(stream.read(size))
            return contents
    except OSError as error:
        raise unreadable(path, error, source=True) from error


def _open(
    spec: SourceSpec, path: Path, where: Path, cache: Path, check_stop: Callable[[], None]
) -> tuple[PictureFile, _Contents]:
    """One file with its pictures, from the cache where the file is unchanged."""
    opener = _open_tar if path.suffix.lower() in TAR else _open_parquet
    name = path.name if path == where else path.relative_to(where).as_posix()
    return opener(spec, path, name, cache, check_stop)


def _open_tar(
    spec: SourceSpec, path: Path, name: str, cache: Path, check_stop: Callable[[], None]
) -> tuple[PictureFile, _Contents]:
    from krepes_ooc.sources.pictures.tar_pictures import index_tar

    signature = stat_signature(path)
    file = PictureFile(path, signature)
    options = [CHECK_VERSION, str(path), list(signature), spec.key, spec.label, spec.page]
    record = cache / f"shard-{canonical_digest(options)[:16]}.json"
    if known := read_scan_result(record):
        return file, _Contents.from_json(known)
    index = index_tar(path, spec.key, spec.label)
    checks = _check(path, index.offsets, index.sizes, spec.page, check_stop)
    names = [f"{name}/{member}" for member in index.names]
    places = (index.offsets, index.sizes, list(index.labels))
    contents = _Contents(names, *places, [], index.left_out, checks)
    write_scan_result(record, contents.to_json())
    return file, contents


def _open_parquet(
    spec: SourceSpec, path: Path, name: str, cache: Path, check_stop: Callable[[], None]
) -> tuple[PictureFile, _Contents]:
    from krepes_ooc.sources.pictures.parquet_pictures import find_columns, unpack_pictures

    columns = find_columns(path, spec.key, spec.label)
    # Pages of parquet are compressed: pictures are unpacked once, named by the file's content.
    options = [remembered_sha256(path, cache), columns.picture, columns.label, spec.page]
    digest = canonical_digest(options)[:16]
    target = cache / f"unpacked-{digest}.pictures"
    record = cache / f"unpacked-{digest}-{CHECK_VERSION}.json"
    known = read_scan_result(record)
    cached = find_cached(target)
    if not known or cached is None:
        unpacked = unpack_pictures(path, columns, target, check_stop)
        checks = _check(target, unpacked.offsets, unpacked.sizes, spec.page, check_stop)
        names = [f"{name}/{row}" for row in range(len(checks))]
        places = (unpacked.offsets, unpacked.sizes, unpacked.labels)
        left_out = {f"column {column}": 1 for column in columns.left_out}
        contents = _Contents(names, *places, list(columns.classes), left_out, checks)
        write_scan_result(record, known := contents.to_json())
        cached = find_cached(target)
    # Files of the same content share one cache, under their own names.
    contents = _Contents.from_json(known)
    contents.names[:] = [f"{name}/{row}" for row in range(len(contents.checks))]
    return PictureFile(target, (0, 0, 0, 0), cached), contents


def _check(
    path: Path,
    offsets: list[int],
    sizes: list[int],
    page: int | None,
    check_stop: Callable[[], None],
) -> list[PictureCheck]:
    """Checks of all pictures of a file."""

    def check(start: int, stop: int) -> list[PictureCheck]:
        ranges = (np.asarray(offsets[start:stop]), np.maximum(sizes[start:stop], 0))
        contents = read_ranges(path, *ranges)
        return [
            check_content(content, page) if size >= 0 else PictureCheck("", None, _NO_BYTES)
            for content, size in zip(contents, sizes[start:stop], strict=True)
        ]

    return list(run_checks([max(size, 0) for size in sizes], check, check_stop))


def _labels(contents: list[_Contents], names: list[str], where: Path) -> Labels | None:
    """Labels of all pictures [position], or None if there are none.

    Raises:
        SourceError: values that are no labels, or files that name other classes.
    """
    values = [label for content in contents for label in content.labels][: len(names)]
    if all(value is None for value in values):
        # Folders inside tar shards: the name of the shard is no class.
        members = [name.partition(".tar/")[2] for name in names]
        return folder_labels(members) if all(members) else None
    classes = {tuple(content.classes) for content in contents}
    if len(classes) > 1:
        raise SourceError(
            "files name different classes", where=str(where), expected="the same classes"
        )
    plain = plain_labels(np.asarray(_as_numbers(values), dtype=object))
    if plain is None:
        raise SourceError(
            f"labels such as {next(v for v in values if v is not None)!r}",
            where=str(where),
            expected="whole numbers or texts",
            advice="choose another column or member by source.label",
        )
    return index_labels(plain, list(classes.pop()) or None, str(where))


def _as_numbers(values: list[Any]) -> list[Any]:
    """Texts that are all whole numbers, as members of a tar hold them, as numbers."""
    texts = [value for value in values if value is not None]
    if all(isinstance(text, str) and text.lstrip("-").isdecimal() for text in texts):
        return [None if value is None else int(value) for value in values]
    return values
