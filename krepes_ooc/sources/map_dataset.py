"""Any map-style data set (``len`` and ``[i]``) of the user as a source."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.import_object import factory_sha256, load_callable
from krepes_ooc.errors import DataError, SourceError, UsageError
from krepes_ooc.sources.array_source import CHANNELS, ArraySource, Labels, array_source
from krepes_ooc.sources.base import Int64, SourceSpec

FIXED_SAMPLES = 64


def open_dataset(spec: SourceSpec, base: Path) -> ArraySource:
    """The data set that the recipe's factory returns; that code is run.

    An item is a sample, or a tuple or mapping whose first entry is the sample and whose second is
    a whole number, its label. Samples [channel, y, x] are images; other shapes are taken as they
    are. Labels are used if the data set lists all of them in ``targets`` or ``labels``, names of
    the samples (of text: the text itself) if it lists them in ``names``.

    Raises:
        SourceError: the factory fails, or gives nothing that has a length and items.
        DataError: the first sample is no array of numbers.
    """
    rows = DatasetRows(spec.factory, dict(spec.arguments), base, spec.limit)
    # The items themselves cannot be hashed without reading all: sample them evenly.
    positions = np.unique(np.linspace(0, rows.shape[0] - 1, FIXED_SAMPLES).astype(np.int64))
    content = np.ascontiguousarray(rows.take(positions)).tobytes()
    identity = {
        "kind": "factory",
        "name": spec.factory,
        "factory_sha256": factory_sha256(spec.factory, base),
        "sha256_of_fixed_samples": hashlib.sha256(content).hexdigest(),
        "length": rows.length,
    }
    return array_source(spec, rows, rows.find_labels(), identity, rows.find_names())


class DatasetRows:
    """Samples of a user's data set, channels last; serialised by a lock.

    Args:
        factory: ``module:callable`` or ``file.py:callable``.
        arguments: its keyword arguments.
        base: folder of the recipe.
        limit: use the first samples only.
    """

    def __init__(
        self, factory: str, arguments: dict[str, Any], base: Path, limit: int | None
    ) -> None:
        self._recipe = (factory, arguments, base, limit)
        self._factory = factory
        # Data sets often share a file handle or a cache: one thread at a time.
        self._lock = threading.Lock()
        try:
            self._dataset = load_callable(factory, base, "source.factory")(**arguments)
            self.length = len(self._dataset)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(
                f"{type(error).__name__}: {error}",
                where=f"source.factory {factory}",
                expected="a data set with a length and items",
            ) from error
        count = min(self.length, limit or self.length)
        if not count:
            raise SourceError("no samples", where=factory, expected="at least one")
        first = self._sample(0)
        self._shape = first.shape
        self.dtype = first.dtype
        # torch's convention is [channel, y, x]; sources give [y, x, channel].
        self._channels_first = (
            first.ndim == 3 and first.shape[0] in CHANNELS and first.dtype.kind in "uf"
        )
        shape = (*first.shape[1:], first.shape[0]) if self._channels_first else first.shape
        self.shape: tuple[int, ...] = (count, *shape)

    @property
    def resident_bytes(self) -> int:
        """0: the memory of the user's data set is unknown."""
        return 0

    def take(self, positions: Int64) -> npt.NDArray[Any]:
        """Samples [sample, ...] at these positions.

        Raises:
            DataError: an item fails or is unlike the first one.
        """
        samples = np.empty((len(positions), *self._shape), dtype=self.dtype)
        for row, position in enumerate(positions.tolist()):
            sample = self._sample(position)
            self._check_like_first(sample, f"sample {position}")
            samples[row] = sample
        return np.moveaxis(samples, 1, -1) if self._channels_first else samples

    def from_text(self, texts: list[str]) -> npt.NDArray[Any]:
        """Samples [sample, ...] of new texts, by the data set's ``from_text``.

        Raises:
            UsageError: the data set has no ``from_text``.
            DataError: it fails, or gives what is unlike the data set's items.
        """
        from_text = getattr(self._dataset, "from_text", None)
        if from_text is None:
            raise UsageError(
                "the data set has no from_text",
                where=self._factory,
                expected="a method from_text(text) that returns an item",
                advice="give the item itself as .npy",
            )
        samples = [self._sample_of(partial(from_text, text), repr(text[:40])) for text in texts]
        for sample in samples:
            self._check_like_first(sample, "new text")
        return np.stack(samples)

    def find_labels(self) -> Labels | None:
        """Labels that the data set lists in ``targets`` or ``labels``; names from ``classes``.

        Raises:
            SourceError: a label without a class.
        """
        listed = getattr(self._dataset, "targets", getattr(self._dataset, "labels", None))
        # The convention of torchvision; a method of that name is something else.
        if listed is None or callable(listed):
            return None
        codes = np.asarray(listed)
        if codes.ndim != 1 or codes.dtype.kind not in "uib" or len(codes) != self.length:
            return None
        # Any negative number means "no label".
        codes = np.maximum(codes.astype(np.int64), -1)
        # Without names the classes are called 0, 1, 2 ...
        names = getattr(self._dataset, "classes", None) or range(int(codes.max()) + 1)
        if codes.max() >= len(names):
            raise SourceError(
                f"label {int(codes.max())} but {len(names)} classes",
                where=f"source.factory {self._factory}",
                expected="a class for every label",
            )
        return Labels(codes, tuple(str(name) for name in names))

    def find_names(self) -> Sequence[str] | None:
        """Names that the data set lists in ``names``: a list or tuple, one for each sample.

        Raises:
            SourceError: another number of names than samples.
        """
        names = getattr(self._dataset, "names", None)
        if not isinstance(names, list | tuple):
            return None
        if len(names) != self.length:
            raise SourceError(
                f"{len(names)} names for {self.length} samples",
                where=f"source.factory {self._factory}",
                expected="one name for each sample",
            )
        return [str(name) for name in names[: self.shape[0]]]

    def _check_like_first(self, sample: npt.NDArray[Any], which: str) -> None:
        # A ragged data set cannot be stored in one array.
        if sample.shape != self._shape or sample.dtype != self.dtype:
            raise DataError(
                f"{sample.dtype} of shape {list(sample.shape)}",
                where=f"{self._factory}, {which}",
                expected=f"{self.dtype} of shape {list(self._shape)} as in sample 0",
            )

    def _sample(self, position: int) -> npt.NDArray[Any]:
        return self._sample_of(lambda: self._dataset[position], f"sample {position}")

    def _sample_of(self, get: Callable[[], Any], which: str) -> npt.NDArray[Any]:
        where = f"{self._factory}, {which}"
        try:
            with self._lock:
                item = get()
            # The first entry of a mapping or a tuple is the sample, the second its label.
            if isinstance(item, dict):
                item = next(iter(item.values()))
            sample = np.asarray(item[0] if isinstance(item, tuple | list) else item)
        except Exception as error:
            raise DataError(f"{type(error).__name__}: {error}", where=where) from error
        # Scalars and texts are no input of a network.
        if sample.dtype.kind not in "uif" or not sample.ndim:
            raise DataError(f"{sample.dtype} sample", where=where, expected="an array of numbers")
        return sample

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name: another process calls the factory again."""
        return (DatasetRows, self._recipe)
