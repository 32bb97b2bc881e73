"""Folders of images as a source, decoded one by one with Pillow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from krepes_ooc.core.digests import stat_signature
from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.array_rows import FileSignature, check_unchanged
from krepes_ooc.sources.array_source import ArraySource, Labels, array_source
from krepes_ooc.sources.base import Int64, SourceSpec, locate
from krepes_ooc.sources.cache import folder_sha256

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class ImageFileRows:
    """Rows that are image files; each is decoded when it is read.

    Args:
        folder: where the names begin.
        files: names relative to the folder.
        signatures: ``stat_signature`` of each file when the folder was opened.
        mode: Pillow's mode, L or RGB.
        side: side to scale to, or None if all images must have the shape of the first.
        shape: samples, y, x, channel.
    """

    folder: Path
    files: tuple[str, ...]
    signatures: tuple[FileSignature, ...]
    mode: str
    side: int | None
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always uint8."""
        return np.dtype(np.uint8)

    @property
    def resident_bytes(self) -> int:
        """Estimate for the list of file names, in bytes."""
        return 300 * len(self.files)

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Decoded images uint8 [sample, y, x, channel].

        Raises:
            DataError: a file changed, cannot be decoded, or has another shape.
        """
        images = np.empty((len(positions), *self.shape[1:]), dtype=np.uint8)
        for row, position in enumerate(positions.tolist()):
            path = self.folder / self.files[position]
            # An image that was replaced under the run would mix two data sets.
            check_unchanged(path, self.signatures[position])
            pixels = decode(path, self.mode, self.side)
            if pixels.shape != self.shape[1:]:
                raise DataError(
                    f"image of {pixels.shape[0]} x {pixels.shape[1]} pixels",
                    where=str(path),
                    expected=f"{self.shape[1]} x {self.shape[2]} as in the first image",
                    advice="set source.size to scale all images to one square",
                )
            images[row] = pixels
        return images


def open_images(spec: SourceSpec, base: Path, cache: Path) -> ArraySource:
    """All images under a folder in the order of their names; sub-folders, if any, are the classes.

    An image is cropped to its central square and scaled if ``size`` is set. The first image decides
    whether all are read as grey or as colour.

    Raises:
        SourceError: no such folder, or no image in it.
        DataError: the first image cannot be decoded.
    """
    folder = locate(spec.path, base, folder=True)
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    # Sorted by name before the limit: the same samples on every file system.
    files = files[: spec.limit]
    if not files:
        raise SourceError(
            "no images", where=str(folder), expected="files named " + ", ".join(sorted(SUFFIXES))
        )
    signatures = tuple(stat_signature(folder / name) for name in files)
    # One mode for all: the number of channels is the network's input shape.
    mode = "L" if _pillow_mode(folder / files[0]) in ("1", "L", "LA", "I;16") else "RGB"
    shape = decode(folder / files[0], mode, spec.size).shape
    rows = ImageFileRows(folder, tuple(files), signatures, mode, spec.size, (len(files), *shape))
    identity = {
        "kind": "images",
        "name": folder.name,
        "sha256": folder_sha256(folder, files, signatures, cache),
        "size": spec.size,
        "mode": mode,
    }
    return array_source(spec, rows, _folder_labels(files), identity, files)


def decode(path: Path, mode: str, side: int | None) -> npt.NDArray[np.uint8]:
    """Pixels uint8 [y, x, channel] of one image.

    Raises:
        DataError: the file is no image, is damaged, or is too large to be decoded safely.
    """
    with _decoding(path), Image.open(path) as file:
        # Cameras store the rotation beside the pixels: apply it before anything is measured.
        image = ImageOps.exif_transpose(file).convert(mode)
        if side:
            image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.uint8)
    # Grey images come without a channel axis.
    return pixels.reshape(*pixels.shape[:2], -1)


def _pillow_mode(path: Path) -> str:
    """Pillow's name of the pixel format, read from the header alone."""
    with _decoding(path), Image.open(path) as image:
        return str(image.mode)


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Guard around Pillow, whose many decoders raise exceptions of any class."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"cannot be decoded: {type(error).__name__}: {error}",
            where=str(path),
            expected="an image",
            advice="repair or remove the file",
        ) from error


def _folder_labels(files: list[str]) -> Labels | None:
    """Labels by the first sub-folder; an image outside any has none."""
    groups = [name.split("/")[0] if "/" in name else "" for name in files]
    classes = tuple(sorted({group for group in groups if group}))
    if not classes:
        return None
    # Sorted names, so that codes do not depend on which images are there.
    code = {name: index for index, name in enumerate(classes)}
    return Labels(np.asarray([code.get(group, -1) for group in groups], dtype=np.int64), classes)
