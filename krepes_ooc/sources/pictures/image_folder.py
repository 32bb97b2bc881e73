"""Folders of images as a source, decoded one by one with Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from krepes_ooc.errors import SourceError
from krepes_ooc.sources.arrays.array_rows import FileSignature, check_unchanged
from krepes_ooc.sources.arrays.array_source import ArraySource
from krepes_ooc.sources.base import Int64, SourceSpec, locate
from krepes_ooc.sources.image_pixels import PixelFormat, decode
from krepes_ooc.sources.pictures.container_files import find_containers
from krepes_ooc.sources.pictures.image_check import check_pictures
from krepes_ooc.sources.pictures.image_files import SUFFIXES, FolderListing, list_pictures
from krepes_ooc.sources.pictures.picture_containers import open_containers
from krepes_ooc.sources.pictures.picture_source import (
    CheckedPictures,
    PictureRows,
    folder_labels,
    picture_source,
)

MAX_LISTED = 20


@dataclass(frozen=True)
class ImageFileRows(PictureRows):
    """Rows that are image files; each is decoded when it is read.

    Args:
        folder: where the names begin.
        files: names relative to the folder.
        signatures: ``stat_signature`` of each file when the folder was opened.
    """

    folder: Path
    files: tuple[str, ...]
    signatures: tuple[FileSignature, ...]

    @property
    def resident_bytes(self) -> int:
        """Estimate for the list of file names, in bytes."""
        return 300 * len(self.files)

    def _decode(self, positions: Int64) -> Iterator[tuple[int, Path, npt.NDArray[Any]]]:
        for row, position in enumerate(positions.tolist()):
            path = self.folder / self.files[position]
            # An image that was replaced under the run would mix two data sets.
            check_unchanged(path, self.signatures[position])
            yield row, path, decode(path, self.form)


def open_images(
    spec: SourceSpec, base: Path, cache: Path, check_stop: Callable[[], None] = lambda: None
) -> ArraySource:
    """All images under a folder in the order of their names; sub-folders, if any, are the classes.

    A folder without images, or a file, may hold them in parquet or tar: see ``open_containers``.
    Every file is decoded and hashed once, before anything is computed; results are cached by size,
    times and inode. An image is cropped to its central square and scaled if ``size`` is set. If one
    image has colour, all are read as colour.

    Args:
        spec: recipe key ``source``.
        base: folder that paths start from.
        cache: where checks are kept.
        check_stop: raises when the run is to stop; what is checked by then is kept.

    Raises:
        SourceError: no such folder, no image in it, or images whose scale is unknown.
        DataError: images that cannot be decoded, or have different sizes.
    """
    folder = (base / Path(spec.path).expanduser()).absolute()
    if spec.path and folder.is_file():
        return open_containers(spec, folder, find_containers(folder), cache, check_stop)
    folder = locate(spec.path, base, folder=True)
    listing = list_pictures(folder)
    # Sorted by name before the limit: the same samples on every file system.
    names = sorted((*listing.pictures, *listing.broken_links))[: spec.limit]
    # Pictures in files come second: what lies beside pictures is counted as left out.
    if not names and (containers := find_containers(folder)):
        return open_containers(spec, folder, containers, cache, check_stop)
    if not names:
        raise SourceError(
            "no images" + (f"; {text}" if (text := listing.describe_left_out()) else ""),
            where=str(folder),
            expected="files named " + ", ".join(sorted(SUFFIXES)),
        )
    for setting in ("key", "label"):
        if getattr(spec, setting):
            raise SourceError(
                f"source.{setting} means nothing for a folder of picture files",
                where=str(folder),
                expected="parquet files or tar shards",
                advice="sub-folders are the classes" if setting == "label" else "",
            )
    checks, signatures = check_pictures(folder, names, spec.page, cache, check_stop)

    def open_rows(valid: list[int], form: PixelFormat, shape: tuple[int, ...]) -> ImageFileRows:
        files = tuple(names[index] for index in valid)
        chosen = tuple(signatures[index] for index in valid)
        return ImageFileRows(form, shape, folder, files, chosen)

    pictures = CheckedPictures(
        folder,
        names,
        checks,
        folder_labels(names),
        warnings=_listing_warnings(listing),
        summary=_listing_summary(listing),
    )
    return picture_source(spec, pictures, open_rows, cache)


def _listing_warnings(listing: FolderListing) -> tuple[str, ...]:
    """Lines on files that are no samples, for log and report."""
    lines = []
    if left_out := listing.describe_left_out():
        lines.append(left_out)
    if listing.repeated_links:
        named = ", ".join(listing.repeated_links[:MAX_LISTED])
        lines.append(
            f"{len(listing.repeated_links)} links to folders that are read already: {named}"
        )
    return tuple(lines)


def _listing_summary(listing: FolderListing) -> tuple[str, ...]:
    if not listing.hidden:
        return ()
    return (f"{listing.hidden} names that begin with a dot, or __MACOSX, are skipped",)
