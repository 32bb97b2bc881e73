"""Images and vectors held in one array, and the digits that come with scikit-learn."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import canonical_digest, file_sha256
from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import DataError, SourceError, UsageError
from krepes_ooc.sources.arrays.array_rows import MemoryRows, Rows, marginal_positions
from krepes_ooc.sources.arrays.picture_rows import CHANNELS, channels_last, image_advice
from krepes_ooc.sources.base import (
    Column,
    Float32,
    Float64,
    Int64,
    SampleKind,
    SourceSpec,
    check_finite,
    check_positions,
)
from krepes_ooc.sources.image_pixels import PixelFormat

__all__ = ["CHANNELS", "ArraySource", "ImageSource", "Labels", "Scaling", "VectorSource"]

DIGITS_SIDE = 8
DIGITS_LEVELS = 16.0
FULL_SCALES = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}


@dataclass(frozen=True)
class Labels:
    """Label codes [sample], -1 where missing, and the names of the codes."""

    codes: Int64
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Scaling:
    """Affine map from raw pixels to the network's input: ``(raw / full - mean) / std``.

    Args:
        full: raw value of a full-scale pixel, counted from black.
        mean: mean of each channel after division, or () for 0.
        std: standard deviation of each channel after division, or () for 1.
        black: stored value of a black pixel; raw pixels are counted from it.
    """

    full: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    black: float = 0.0

    def from_black(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Raw pixels: stored ones, less black; as they are where black is 0."""
        if not self.black:
            return stored
        # Whole numbers first become float64, which holds all of 32 bits.
        return (stored.astype(np.float64) - self.black).astype(np.float32)

    def __call__(self, raw: npt.NDArray[Any]) -> Float32:
        """Scaled float32 values, shape kept."""
        # Division, then centring, all in float32: the order is part of the stored bits.
        scaled: npt.NDArray[Any] = raw.astype(np.float32) / np.float32(self.full)
        if self.mean:
            scaled = scaled - np.asarray(self.mean, dtype=np.float32)
        if self.std:
            scaled = scaled / np.asarray(self.std, dtype=np.float32)
        return np.asarray(scaled, dtype=np.float32)


class ArraySource:
    """Samples [sample, ...] of one array, shown to the network as they are.

    Args:
        rows: the array.
        labels: label codes of the rows, or None.
        identity: identity of the files, as JSON; ``name`` is used in messages.
        sample_names: the user's names, by default the positions.
    """

    kind: SampleKind = "array"
    columns: tuple[Column, ...] = ()
    row_groups: tuple[int, ...] | None = None

    def __init__(
        self,
        rows: Rows,
        labels: Labels | None,
        identity: dict[str, Any],
        sample_names: Sequence[str] | None = None,
    ) -> None:
        self._rows = rows
        self._names = sample_names
        # Labels are no part of what the network sees: other labels must not restale the features.
        self._identity = {key: value for key, value in identity.items() if key != "labels"}
        self._label_identity = identity.get("labels")
        self._where = str(identity.get("name", "source"))
        self.n_samples = rows.shape[0]
        self.n_positions = self.n_samples
        self.valid_positions: Int64 | None = None
        if not self.n_samples:
            raise SourceError("no samples", where=self._where, expected="at least one")
        if 0 in rows.shape:
            raise SourceError(
                f"samples without a value, shape {list(rows.shape)}",
                where=self._where,
                expected="at least one number a sample",
            )
        if labels is not None and len(labels.codes) < self.n_samples:
            raise SourceError(
                f"{len(labels.codes)} labels for {self.n_samples} samples",
                where=self._where,
                expected="one label for each sample",
            )
        self._codes = labels.codes if labels else None
        self.classes = labels.classes if labels else ()
        self.input_shape = tuple(rows.shape[1:])
        # Eight bytes for each label code.
        self.resident_bytes = rows.resident_bytes + (8 * self.n_samples if labels else 0)
        self.warnings: tuple[str, ...] = ()
        # Lines for people that a plan shows, and what may be set if views refuse the source.
        self.summary: tuple[str, ...] = ()
        self.advice = ""

    def skip_positions(self, valid_positions: Int64, n_positions: int) -> None:
        """Count positions over all files, so that a mended one moves no other sample.

        Args:
            valid_positions: ascending positions of the samples [sample].
            n_positions: number of files, those that are skipped too.
        """
        self.valid_positions = valid_positions
        self.n_positions = n_positions
        self.resident_bytes += int(valid_positions.nbytes)

    def read(self, positions: Int64) -> npt.NDArray[Any]:
        """Raw samples [sample, ...].

        Raises:
            DataError: a value is NaN or infinite, or the file changed.
            UsageError: a position lies outside the source.
        """
        positions = check_positions(positions, self.n_positions)
        raw = self._rows.take(self._indices(positions))
        check_finite(raw, positions, "a value", self._where)
        self._check_range(raw, positions)
        return raw

    def _check_range(self, raw: npt.NDArray[Any], positions: Int64) -> None:
        """Raise on float64 values that are infinite as float32, which the network gets.

        Raises:
            DataError: names the first such sample.
        """
        if raw.dtype.kind != "f" or raw.dtype.itemsize <= 4:
            return
        beyond = np.argwhere(np.abs(raw) > np.finfo(np.float32).max)
        if len(beyond):
            place = tuple(beyond[0].tolist())
            raise DataError(
                f"a value is {raw[place]:g}, which float32 does not hold",
                where=f"{self._where}, sample {int(positions[place[0]])}, "
                f"position {list(place[1:])}",
                expected=f"values up to {np.finfo(np.float32).max:g}",
                advice="rescale the values",
            )

    def read_text(self, texts: list[str]) -> npt.NDArray[Any]:
        """Raw samples [sample, ...] of new texts, by the user's data set.

        Raises:
            UsageError: the source has no way from text to a sample.
            DataError: the data set's ``from_text`` fails or gives another shape.
        """
        read = getattr(self._rows, "from_text", None)
        if read is None:
            raise UsageError(
                "this source takes no text",
                where=self._where,
                expected="a factory whose data set has from_text(text)",
            )
        return np.asarray(read(texts))

    def labels(self, positions: Int64) -> Int64:
        """Codes of ``classes`` [sample], -1 where there is none."""
        indices = self._indices(positions)
        if self._codes is None:
            return np.full(indices.shape, -1, dtype=np.int64)
        return self._codes[indices]

    def names(self, positions: Int64) -> list[str]:
        """The user's names, by default the positions as text."""
        if not self._names:
            return [str(i) for i in check_positions(positions, self.n_positions).tolist()]
        return [self._names[i] for i in self._indices(positions).tolist()]

    def _indices(self, positions: Int64) -> Int64:
        """Indices of the samples [sample] at these positions.

        Raises:
            UsageError: a position lies outside the source, or its file is skipped.
        """
        positions = check_positions(positions, self.n_positions)
        valid = self.valid_positions
        if valid is None:
            return positions
        skipped = np.setdiff1d(positions, valid)
        if skipped.size:
            raise UsageError(
                f"the file of sample {int(skipped[0])} is skipped",
                where=self._where,
                expected="a sample",
            )
        return np.asarray(np.searchsorted(valid, positions), dtype=np.int64)

    def encode(self, raw: npt.NDArray[Any]) -> Float32:
        """Network input float32 [sample, ...]: the raw values."""
        return np.asarray(raw, dtype=np.float32)

    def fingerprint(self) -> dict[str, Any]:
        """Identity of the files, rows used, shape and dtype, as JSON."""
        return self._identity | {
            "rows": self.n_samples,
            "shape": list(self._rows.shape[1:]),
            "dtype": str(self._rows.dtype),
        }

    def label_fingerprint(self) -> dict[str, Any]:
        """Origin of the labels, the classes, and sha256 of codes and names, as JSON."""
        # Only the rows in use: a longer label file under a limit is the same audit.
        codes = b"" if self._codes is None else self._codes[: self.n_samples].tobytes()
        return {
            "file": self._label_identity,
            "classes": list(self.classes),
            "sha256": hashlib.sha256(codes).hexdigest(),
            "names": canonical_digest(list(self._names or ())[: self.n_samples]),
        }


class VectorSource(ArraySource):
    """Vectors [sample, column]: numbers without names, with what table views draw from."""

    @property
    def whole_numbers(self) -> bool:
        """Whether the values are integers (tokens, counts), which noise would turn into others."""
        return self._rows.dtype.kind in "ui"

    @cached_property
    def marginal_rows(self) -> Float64:
        """Rows drawn by a keyed hash, float64 [row, column]."""
        return np.asarray(self.read(marginal_positions(self.n_samples)), dtype=np.float64)

    @cached_property
    def spread(self) -> Float64:
        """Standard deviation of each column over the marginal rows."""
        return np.asarray(self.marginal_rows.std(axis=0))


class ImageSource(ArraySource):
    """Images [sample, y, x, channel], shown to the network scaled and with channels first."""

    kind: SampleKind = "image"

    def __init__(
        self,
        rows: Rows,
        labels: Labels | None,
        identity: dict[str, Any],
        scaling: Scaling,
        sample_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(rows, labels, identity, sample_names)
        self.scaling = scaling
        # How files are decoded into such images; None for images in an array.
        self.picture_format: PixelFormat | None = getattr(rows, "form", None)
        # Stored channels last, as pictures are; shown to the network channels first.
        height, width, channels = rows.shape[1:]
        self.input_shape = (channels, height, width)

    def read(self, positions: Int64) -> npt.NDArray[Any]:
        """Raw images [sample, y, x, channel], counted from black.

        Raises:
            DataError: a value is NaN or infinite, or the file changed.
            UsageError: a position lies outside the source.
        """
        return self.scaling.from_black(super().read(positions))

    def encode(self, raw: npt.NDArray[Any]) -> Float32:
        """Network input float32 [sample, channel, y, x], scaled."""
        return np.ascontiguousarray(np.moveaxis(self.scaling(raw), -1, 1))

    def fingerprint(self) -> dict[str, Any]:
        """Identity of the files, rows used, shape, dtype and scaling, as JSON."""
        scaling = [self.scaling.full, list(self.scaling.mean), list(self.scaling.std)]
        # Black was added later: it leaves no trace where it is 0.
        scaling += [self.scaling.black] if self.scaling.black else []
        return super().fingerprint() | {"scaling": scaling}


def array_source(
    spec: SourceSpec,
    rows: Rows,
    labels: Labels | None,
    identity: dict[str, Any],
    sample_names: Sequence[str] | None = None,
) -> ArraySource:
    """Source of the class that an array's shape and type imply.

    uint8 and uint16 [sample, y, x, channel], and floats of that shape within [0, 1], are images (1,
    3 or 4 channels), and so is every type with a declared ``range``; [sample, column] are vectors;
    all else is taken as it is.

    Raises:
        SourceError: no samples, empty ones, values that are no numbers, fewer labels than samples,
            or an image scaling that does not fit.
    """
    # Texts, complex numbers and a single column of scalars have no encoding.
    if rows.dtype.kind not in "uif" or len(rows.shape) < 2:
        raise SourceError(
            f"{rows.dtype} values of shape {list(rows.shape)}",
            where=str(identity.get("name", "source")),
            expected="numbers [sample, ...]",
        )
    rows = channels_last(spec, rows, identity)
    if spec.layout == "nchw":
        # The same bytes in another layout are other pictures.
        identity = identity | {"layout": spec.layout}
    shape = rows.shape
    if len(shape) == 4 and shape[3] in CHANNELS and (rows.dtype.kind in "uf" or spec.range):
        # The scale is fixed by the dtype alone, never by the data: a limit must not change it.
        full = _full_scale(spec, rows.dtype, identity)
        return ImageSource(
            rows, labels, identity, check_scaling(spec, full, shape[3]), sample_names
        )
    if spec.mean or spec.std or spec.range:
        keys = "range is" if spec.range else "mean and std are"
        raise SourceError(
            f"{keys} for images, and this is {rows.dtype} of shape {tuple(shape)}",
            where=str(identity.get("name", "source")),
            expected="images [sample, y, x, channel]",
        )
    if len(shape) == 2:
        return VectorSource(rows, labels, identity, sample_names)
    source = ArraySource(rows, labels, identity, sample_names)
    source.advice = image_advice(rows, identity)
    return source


def _full_scale(spec: SourceSpec, dtype: np.dtype[Any], identity: dict[str, Any]) -> float:
    """Stored value of a full-scale pixel where the recipe does not say one.

    Raises:
        SourceError: the type has no full scale.
    """
    if spec.range or dtype.kind == "f":
        # Floats are taken as already scaled to [0, 1].
        return 1.0
    if dtype.newbyteorder("=") not in FULL_SCALES:
        raise SourceError(
            f"images of {dtype} have no known full scale",
            where=str(identity.get("name", "source")),
            expected="uint8, uint16, floats within [0, 1], or source.range",
            advice="say which values are black and full scale, such as source.range: [0, 4095]",
        )
    return FULL_SCALES[dtype.newbyteorder("=")]


def check_scaling(spec: SourceSpec, full: float, channels: int) -> Scaling:
    """The declared scaling of images with this many channels.

    Args:
        spec: recipe key ``source``.
        full: stored value of a full-scale pixel where ``range`` is not set.
        channels: number of channels.

    Raises:
        SourceError: mean or std do not fit the channels, a std is not positive, or a range is not
            two rising numbers.
    """
    if spec.range and (len(spec.range) != 2 or spec.range[0] >= spec.range[1]):
        raise SourceError(
            f"{list(spec.range)} is no range",
            where="source.range",
            expected="two numbers, black below full scale, such as [0, 4095]",
        )
    for key in ("mean", "std"):
        values = getattr(spec, key)
        if values and len(values) != channels:
            raise SourceError(
                f"{len(values)} values for {channels} channels",
                where=f"source.{key}",
                expected="one for each channel",
            )
    if any(value <= 0 for value in spec.std):
        raise SourceError("a value is not positive", where="source.std", expected="values above 0")
    if spec.range:
        black, white = spec.range
        return Scaling(white - black, spec.mean, spec.std, black)
    return Scaling(full, spec.mean, spec.std)


def open_digits(spec: SourceSpec) -> ImageSource:
    """The 1,797 handwritten digits (8 x 8, 16 levels) that come with scikit-learn.

    The file is read without importing scikit-learn.

    Raises:
        SourceError: scikit-learn is not installed or its file is damaged.
    """
    # Only the location of the package: importing scikit-learn is slow.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise SourceError(
            "scikit-learn is not installed", where="source", advice="pip install scikit-learn"
        )
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        # One line a digit: 64 pixels from 0 to 16, then the class.
        lines = np.loadtxt(path, delimiter=",", dtype=np.uint8, max_rows=spec.limit, ndmin=2)
    except (OSError, ValueError) as error:
        raise unreadable(path, error, source=True) from error
    pixels = lines[:, :-1].reshape(-1, DIGITS_SIDE, DIGITS_SIDE, 1).copy()
    labels = Labels(lines[:, -1].astype(np.int64), tuple("0123456789"))
    identity = {"kind": "digits", "name": path.name, "sha256": file_sha256(path)}
    scaling = check_scaling(spec, DIGITS_LEVELS, 1)
    return ImageSource(MemoryRows(pixels), labels, identity, scaling)
