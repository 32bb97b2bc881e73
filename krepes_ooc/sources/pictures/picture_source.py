"""Source of pictures that are checked already: format, identity, skipped ones, summary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import pairs_digest
from krepes_ooc.errors import DataError
from krepes_ooc.sources.arrays.array_rows import Rows
from krepes_ooc.sources.arrays.array_source import ArraySource, Labels, array_source
from krepes_ooc.sources.base import Int64, SourceSpec
from krepes_ooc.sources.file_digests import record_file_digests
from krepes_ooc.sources.image_pixels import PictureFacts, PixelFormat
from krepes_ooc.sources.pictures.image_check import PictureCheck, refuse_damaged
from krepes_ooc.sources.pictures.image_format import FolderFormat, choose_format

# Rows of some of the pictures: their indices, how they are decoded, their shape [sample, ...].
OpenRows = Callable[[list[int], PixelFormat, tuple[int, ...]], Rows]


@dataclass(frozen=True)
class PictureRows(ABC):
    """Rows that are pictures; each is decoded when it is read.

    Args:
        form: channels, depth and size that all are brought to.
        shape: samples, y, x, channel.
    """

    form: PixelFormat
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type that holds the values of all pictures."""
        return np.dtype(self.form.depth)

    @property
    @abstractmethod
    def resident_bytes(self) -> int:
        """Estimate for names and places of the pictures, in bytes."""

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Decoded pictures [sample, y, x, channel].

        Raises:
            SourceError: a file cannot be read.
            DataError: a file changed, or a picture cannot be decoded or has another shape.
            DamageError: unpacked pictures fail their checksum.
        """
        images = np.empty((len(positions), *self.shape[1:]), dtype=self.dtype)
        for row, path, pixels in self._decode(positions):
            if pixels.shape != self.shape[1:]:
                raise wrong_size(path, pixels.shape[0], pixels.shape[1], self.shape[1:3])
            images[row] = pixels
        return images

    @abstractmethod
    def _decode(self, positions: Int64) -> Iterator[tuple[int, Path, npt.NDArray[Any]]]:
        """Row, path for messages and pixels [y, x, channel] of each position, in any order."""


@dataclass(frozen=True)
class CheckedPictures:
    """All pictures of a source, good and damaged, in the order of their positions.

    Args:
        where: folder or file that holds them.
        names: of the pictures [position].
        checks: of the pictures [position].
        labels: codes of the pictures [position], or None.
        identity: what identifies the source beside pictures and decoding.
        warnings: lines on what is left out.
        summary: lines for a plan.
    """

    where: Path
    names: list[str]
    checks: list[PictureCheck]
    labels: Labels | None
    identity: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()


def picture_source(
    spec: SourceSpec, pictures: CheckedPictures, open_rows: OpenRows, cache: Path
) -> ArraySource:
    """Source of the pictures that can be decoded; positions count all of them.

    Args:
        spec: recipe key ``source``.
        pictures: what was found.
        open_rows: opens the rows of the good ones.
        cache: where digests are kept.

    Raises:
        SourceError: pictures whose scale is unknown.
        DataError: damaged pictures that are not to be skipped, all of them, or different sizes.
    """
    names = pictures.names
    checks = pictures.checks
    where = pictures.where
    # All damaged ones at once, before any block: repairing them one run after the other is slow.
    problems = [(n, c.problem) for n, c in zip(names, checks, strict=True) if c.problem]
    if not spec.skip_damaged or len(problems) == len(names):
        refuse_damaged(where, problems, len(names), cache)
    valid = [index for index, check in enumerate(checks) if not check.problem]
    files = [names[index] for index in valid]
    facts = [fact for check in checks if (fact := check.facts) is not None]
    # One depth and number of channels for all: the network's input has one shape.
    chosen = choose_format(spec, where, files, facts)
    shape = _common_shape(where, files, facts, chosen.form)
    rows = open_rows(valid, chosen.form, (len(files), *shape))
    identity = _identity(where, files, [checks[index] for index in valid], chosen.form)
    identity |= pictures.identity
    if problems:
        # Positions count all files; the skipped ones are never rows.
        identity |= {"skipped": [name for name, _ in problems], "positions": len(names)}
    labels = pictures.labels
    if labels is not None:
        labels = Labels(labels.codes[valid], labels.classes)
    source = array_source(spec, rows, labels, identity, files)
    if problems:
        source.skip_positions(np.asarray(valid, dtype=np.int64), len(names))
    source.warnings = (*pictures.warnings, *_skipped_warnings(problems), *chosen.warnings)
    repeated = _repeated(files, [checks[index] for index in valid], labels)
    source.summary = (_summary(files, facts, chosen), *repeated, *pictures.summary)
    digests = ["" if check.problem else check.sha256 for check in checks]
    record_file_digests(source, names, digests, cache)
    return source


def folder_labels(names: Sequence[str]) -> Labels | None:
    """Labels by the first folder of each name; a picture outside any has none.

    Names of skipped pictures count, so that a class whose files are all skipped keeps its code.
    """
    groups = [name.split("/")[0] if "/" in name else "" for name in names]
    classes = tuple(sorted({group for group in groups if group}))
    if not classes:
        return None
    # Sorted names, so that codes do not depend on which images are there.
    code = {name: index for index, name in enumerate(classes)}
    return Labels(np.asarray([code.get(group, -1) for group in groups], np.int64), classes)


def _skipped_warnings(problems: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    if not problems:
        return ()
    named = "; ".join(f"{name} ({problem})" for name, problem in problems)
    return (f"skip_damaged leaves out {len(problems)} files: {named}",)


def _summary(files: Sequence[str], facts: Sequence[PictureFacts], chosen: FolderFormat) -> str:
    """Line that shows a misreading before a run: counts, depth, channels, sizes."""
    sizes = sorted({(fact.height, fact.width) for fact in facts})
    size = "{} x {}".format(*sizes[0])
    if len(sizes) > 1:
        size += " to {} x {}".format(*sizes[-1]) + f" ({len(sizes)} sizes)"
    if chosen.form.side:
        size += f", central squares scaled to {chosen.form.side} x {chosen.form.side}"
    channels = "grey" if chosen.form.mode == "L" else "colour"
    return f"{len(files):,} pictures, {channels}, {chosen.form.depth}, {size}"


def _repeated(
    files: Sequence[str], checks: Sequence[PictureCheck], labels: Labels | None
) -> tuple[str, ...]:
    """Line on pictures whose bytes are those of an earlier one; none if there is none."""
    seen: dict[str, int] = {}
    pairs = [
        (first, index)
        for index, check in enumerate(checks)
        if (first := seen.setdefault(check.sha256, index)) != index
    ]
    if not pairs:
        return ()
    first, second = pairs[0]
    line = f"{len(pairs):,} repeat another byte for byte (such as {files[first]} = {files[second]})"
    apart = 0 if labels is None else sum(labels.codes[i] != labels.codes[j] for i, j in pairs)
    return (line + (f", {apart:,} of them under another label" if apart else ""),)


def _identity(
    folder: Path, files: Sequence[str], checks: Sequence[PictureCheck], form: PixelFormat
) -> dict[str, Any]:
    """Identity of the files and of how they are decoded, as JSON."""
    sha256 = pairs_digest(files, [check.sha256 for check in checks])
    identity: dict[str, Any] = {
        "kind": "images",
        "name": folder.name,
        "sha256": sha256,
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
        raise wrong_size(folder / files[others[0]], fact.height, fact.width, first, len(others))
    return *first, form.channels


def wrong_size(
    path: Path, height: int, width: int, first: tuple[int, ...], count: int = 1
) -> DataError:
    """The error for a picture that has another size than the first one, and ``count - 1`` more."""
    more = f", and {count - 1} more of another size than the first" if count > 1 else ""
    return DataError(
        f"image of {height} x {width} pixels{more}",
        where=str(path),
        expected=f"{first[0]} x {first[1]} as in the first image",
        advice="set source.size to scale all images to one square",
    )
