"""Folders of images as a source, decoded one by one with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import canonical_digest, stat_signature
from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.array_rows import FileSignature, check_unchanged
from krepes_ooc.sources.array_source import ArraySource, Labels, array_source
from krepes_ooc.sources.base import Int64, SourceSpec, locate
from krepes_ooc.sources.image_check import PictureCheck, check_pictures, refuse_damaged
from krepes_ooc.sources.image_files import SUFFIXES, FolderListing, list_pictures
from krepes_ooc.sources.image_format import FolderFormat, choose_format
from krepes_ooc.sources.image_pixels import PictureFacts, PixelFormat, decode

MAX_LISTED = 20


@dataclass(frozen=True)
class ImageFileRows:
    """Rows that are image files; each is decoded when it is read.

    Args:
        folder: where the names begin.
        files: names relative to the folder.
        signatures: ``stat_signature`` of each file when the folder was opened.
        form: channels, depth and size that all are brought to.
        shape: samples, y, x, channel.
    """

    folder: Path
    files: tuple[str, ...]
    signatures: tuple[FileSignature, ...]
    form: PixelFormat
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type that holds the values of all files."""
        return np.dtype(self.form.depth)

    @property
    def resident_bytes(self) -> int:
        """Estimate for the list of file names, in bytes."""
        return 300 * len(self.files)

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Decoded images [sample, y, x, channel].

        Raises:
            DataError: a file changed, cannot be decoded, or has another shape.
        """
        images = np.empty((len(positions), *self.shape[1:]), dtype=self.dtype)
        for row, position in enumerate(positions.tolist()):
            path = self.folder / self.files[position]
            # An image that was replaced under the run would mix two data sets.
            check_unchanged(path, self.signatures[position])
            pixels = decode(path, self.form)
            if pixels.shape != self.shape[1:]:
                raise _wrong_size(path, pixels.shape[0], pixels.shape[1], self.shape[1:3])
            images[row] = pixels
        return images


def open_images(spec: SourceSpec, base: Path, cache: Path) -> ArraySource:
    """All images under a folder in the order of their names; sub-folders, if any, are the classes.

    Every file is decoded and hashed once, before anything is computed; results are cached by size,
    times and inode. An image is cropped to its central square and scaled if ``size`` is set. If one
    image has colour, all are read as colour.

    Raises:
        SourceError: no such folder, no image in it, or images whose scale is unknown.
        DataError: images that cannot be decoded, or have different sizes.
    """
    folder = locate(spec.path, base, folder=True)
    listing = list_pictures(folder)
    # Sorted by name before the limit: the same samples on every file system.
    names = listing.pictures[: spec.limit]
    if not names and not listing.broken_links:
        raise SourceError(
            "no images" + (f"; {text}" if (text := listing.describe_left_out()) else ""),
            where=str(folder),
            expected="files named " + ", ".join(sorted(SUFFIXES)),
        )
    signatures = tuple(stat_signature(folder / name) for name in names)
    checks = check_pictures(folder, names, signatures, spec.page, cache)
    # All damaged files at once, before any block: repairing them one run after the other is slow.
    problems = [(name, "a link that leads nowhere") for name in listing.broken_links]
    problems += [(n, c.problem) for n, c in zip(names, checks, strict=True) if c.problem]
    if not spec.skip_damaged or len(problems) == len(names) + len(listing.broken_links):
        n_files = len(names) + len(listing.broken_links)
        refuse_damaged(folder, sorted(problems), n_files, cache)
    kept = [index for index, check in enumerate(checks) if not check.problem]
    files = [names[index] for index in kept]
    facts = [fact for check in checks if (fact := check.facts) is not None]
    # One depth and number of channels for all: the network's input has one shape.
    chosen = choose_format(spec, folder, files, facts)
    shape = _common_shape(folder, files, facts, chosen.form)
    rows = ImageFileRows(
        folder,
        tuple(files),
        tuple(signatures[index] for index in kept),
        chosen.form,
        (len(files), *shape),
    )
    identity = _identity(folder, files, [checks[index] for index in kept], chosen.form)
    if problems:
        identity["skipped"] = sorted(name for name, _ in problems)
    source = array_source(spec, rows, _folder_labels(names, kept), identity, files)
    source.warnings = (*_listing_warnings(listing, problems), *chosen.warnings)
    source.summary = _summary(listing, files, facts, chosen)
    return source


def _identity(
    folder: Path, files: Sequence[str], checks: Sequence[PictureCheck], form: PixelFormat
) -> dict[str, Any]:
    """Identity of the files and of how they are decoded, as JSON."""
    digests = [[name, check.sha256] for name, check in zip(files, checks, strict=True)]
    identity: dict[str, Any] = {
        "kind": "images",
        "name": folder.name,
        "sha256": canonical_digest(digests),
        "size": form.side,
        "mode": form.mode,
    }
    # Keys that were added later leave no trace at their default.
    if form.alpha != "drop":
        identity["alpha"] = form.alpha
    if form.page is not None:
        identity["page"] = form.page
    if form.interpolation not in ("", "bilinear"):
        identity["interpolation"] = form.interpolation
    return identity


def _common_shape(
    folder: Path, files: Sequence[str], facts: Sequence[PictureFacts], form: PixelFormat
) -> tuple[int, int, int]:
    """Shape y, x, channel of every decoded picture.

    Raises:
        DataError: names the pictures that have another size than the first one.
    """
    if form.side:
        return form.side, form.side, form.channels
    first = (facts[0].height, facts[0].width)
    others = [i for i, fact in enumerate(facts) if (fact.height, fact.width) != first]
    if others:
        fact = facts[others[0]]
        raise _wrong_size(folder / files[others[0]], fact.height, fact.width, first, len(others))
    return *first, form.channels


def _wrong_size(
    path: Path, height: int, width: int, first: tuple[int, ...], count: int = 1
) -> DataError:
    more = f", and {count - 1} more of another size than the first" if count > 1 else ""
    return DataError(
        f"image of {height} x {width} pixels{more}",
        where=str(path),
        expected=f"{first[0]} x {first[1]} as in the first image",
        advice="set source.size to scale all images to one square",
    )


def _listing_warnings(
    listing: FolderListing, problems: Sequence[tuple[str, str]]
) -> tuple[str, ...]:
    """Lines on files that are no samples, for log and report."""
    lines = []
    if left_out := listing.describe_left_out():
        lines.append(left_out)
    if listing.repeated_links:
        named = ", ".join(listing.repeated_links[:MAX_LISTED])
        lines.append(
            f"{len(listing.repeated_links)} links to folders that are read already: {named}"
        )
    if problems:
        named = "; ".join(f"{name} ({problem})" for name, problem in sorted(problems))
        lines.append(f"skip_damaged leaves out {len(problems)} files: {named}")
    return tuple(lines)


def _summary(
    listing: FolderListing,
    files: Sequence[str],
    facts: Sequence[PictureFacts],
    chosen: FolderFormat,
) -> tuple[str, ...]:
    """Lines that show a misreading before a run: counts, depth, channels, sizes."""
    sizes = sorted({(fact.height, fact.width) for fact in facts})
    size = "{} x {}".format(*sizes[0])
    if len(sizes) > 1:
        size += " to {} x {}".format(*sizes[-1]) + f" ({len(sizes)} sizes)"
    if chosen.form.side:
        size += f", central squares scaled to {chosen.form.side} x {chosen.form.side}"
    channels = "grey" if chosen.form.mode == "L" else "colour"
    lines = [f"{len(files):,} pictures, {channels}, {chosen.form.depth}, {size}"]
    if listing.hidden:
        lines.append(f"{listing.hidden} names that begin with a dot, or __MACOSX, are skipped")
    return tuple(lines)


def _folder_labels(names: Sequence[str], kept: Sequence[int]) -> Labels | None:
    """Labels by the first sub-folder; an image outside any has none.

    Args:
        names: all files, so that a class whose files are all skipped keeps its code.
        kept: indices of the files that are samples.
    """
    groups = [name.split("/")[0] if "/" in name else "" for name in names]
    classes = tuple(sorted({group for group in groups if group}))
    if not classes:
        return None
    # Sorted names, so that codes do not depend on which images are there.
    code = {name: index for index, name in enumerate(classes)}
    codes = [code.get(groups[index], -1) for index in kept]
    return Labels(np.asarray(codes, dtype=np.int64), classes)
