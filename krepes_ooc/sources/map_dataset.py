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

from krepes_ooc.core.digests import canonical_digest, write_cache_file
from krepes_ooc.core.import_object import factory_sha256, load_callable, locate_arguments
from krepes_ooc.core.live_objects import object_sha256
from krepes_ooc.errors import DataError, KrepesError, SourceError, UsageError
from krepes_ooc.sources.arrays.array_labels import index_labels, plain_labels
from krepes_ooc.sources.arrays.array_source import (
    CHANNELS,
    ArraySource,
    ImageSource,
    Labels,
    array_source,
)
from krepes_ooc.sources.base import Int64, SourceSpec
from krepes_ooc.sources.dataset_items import (
    Entry,
    find_entry,
    label_array,
    listed_entries,
    same_label,
    sample_array,
    split_item,
)

FIXED_SAMPLES = 64
# Labels that stand in the items alone cost one read of every item.
LABELLED_SAMPLES = 4_096
# Standardised pixels lie well within; pixels of 0 to 255 do not.
STANDARDISED = 16.0


def open_dataset(spec: SourceSpec, base: Path, cache: Path, dataset: Any = None) -> ArraySource:
    """The data set that the recipe's factory returns; that code is run. Or ``dataset`` of a script.

    An item is a sample, a tuple (sample, label), or a mapping; see ``dataset_items``. Samples
    [channel, y, x] are images; other shapes are taken as they are. Labels are those that the data
    set lists in ``targets`` or ``labels``, else those of the items of a data set of at most
    ``LABELLED_SAMPLES`` samples; names of the samples (of text: the text itself) are those that it
    lists in ``names``.

    Raises:
        SourceError: the factory fails, gives nothing that has a length and items, or other samples
            at a second call; or labels do not fit.
        DataError: the first sample is no array of numbers, or a sample differs at a second read.
    """
    recipe = (spec.factory, dict(spec.arguments), base, spec.limit, spec.key, dataset)
    rows = DatasetRows(*recipe)
    # The items themselves cannot be hashed without reading all: sample them evenly.
    positions = np.unique(np.linspace(0, rows.shape[0] - 1, FIXED_SAMPLES).astype(np.int64))
    samples = rows.take(positions)
    content = np.ascontiguousarray(samples).tobytes()
    identity = {
        "kind": "factory",
        "name": spec.factory,
        "factory_sha256": (
            factory_sha256(spec.factory, base) if dataset is None else object_sha256(dataset)
        ),
        "sha256_of_fixed_samples": hashlib.sha256(content).hexdigest(),
        "length": rows.length,
    }
    if spec.key:
        identity["key"] = spec.key
    # Once for each content: the second call of the factory may cost as much as the first.
    marker = cache / f"repeatable-{canonical_digest([identity, spec.arguments])[:16]}"
    if not marker.is_file():
        rows.check_repeatable(positions, samples)
        if dataset is None:
            # Not both at once: a data set may fill the memory.
            shape = rows.shape
            del rows
            rows = DatasetRows(*recipe)
            _check_same_samples(rows, positions, samples, shape)
        write_cache_file(marker, b"")
    labels, warnings = rows.find_labels()
    source = array_source(spec, rows, labels, identity, rows.find_names())
    source.warnings = (*source.warnings, *warnings, *_scale_warnings(source, spec, samples))
    return source


def _scale_warnings(
    source: ArraySource, spec: SourceSpec, samples: npt.NDArray[Any]
) -> tuple[str, ...]:
    """A warning where samples look like pictures that no one has scaled.

    Floats that were standardised lie within a few standard deviations.
    """
    low, high = float(samples.min()), float(samples.max())
    found = f"samples of {samples.dtype} {list(samples.shape[1:])} from {low:g} to {high:g}"
    if isinstance(source, ImageSource):
        if spec.range or samples.dtype.kind != "f" or max(-low, high) <= STANDARDISED:
            return ()
        return (f"{found} are taken as they are: source.range says what is black and full scale",)
    # Channels first or last, or grey without a channel axis.
    sides = samples.shape[1:]
    shown = samples.dtype.kind in "ui" and (
        (len(sides) == 3 and (sides[0] in CHANNELS or sides[2] in CHANNELS))
        or (len(sides) == 2 and samples.dtype in (np.uint8, np.uint16))
    )
    if not shown:
        return ()
    return (
        f"{found} are taken as they are: if they are pictures, return uint8 or uint16 "
        "[channel, y, x], or floats within [0, 1]",
    )


def _check_same_samples(
    rows: DatasetRows, positions: Int64, samples: npt.NDArray[Any], shape: tuple[int, ...]
) -> None:
    """Compare the samples of a second call of the factory with those of the first.

    Raises:
        SourceError: the number or the shape of the samples, or a sample, differs.
    """
    where = f"source.factory {rows.factory}"
    if rows.shape == shape:
        again = rows.take(positions)
        if again.tobytes() == samples.tobytes():
            return
        pairs = zip(samples, again, positions.tolist(), strict=True)
        different = next(p for one, other, p in pairs if one.tobytes() != other.tobytes())
        where += f", sample {different}"
    raise SourceError(
        "two calls of the factory gave different samples",
        where=where,
        expected="the same data set at every call",
        advice="seed every random draw of the factory",
    )


def _plain_list(listed: Any) -> npt.NDArray[Any] | None:
    """Listed labels as ``plain_labels`` gives them; None if they are no labels."""
    try:
        values = np.asarray(listed)
    # Lists of different lengths, tensors on a device.
    except Exception:
        return None
    return plain_labels(values)


class DatasetRows:
    """Samples of a user's data set, channels last; serialised by a lock.

    Args:
        factory: ``module:callable`` or ``file.py:callable``.
        arguments: its keyword arguments.
        base: folder of the recipe.
        limit: use the first samples only.
        key: entry of an item that is the sample; empty: by its form.
        dataset: the data set of a script, in place of what the factory returns.
    """

    def __init__(
        self,
        factory: str,
        arguments: dict[str, Any],
        base: Path,
        limit: int | None,
        key: str = "",
        dataset: Any = None,
    ) -> None:
        self._recipe = (factory, arguments, base, limit, key, dataset)
        self.factory = factory
        # Data sets often share a file handle or a cache: one thread at a time.
        self._lock = threading.Lock()
        try:
            if dataset is None:
                given = locate_arguments(arguments, base)
                dataset = load_callable(factory, base, "source.factory")(**given)
            self._dataset = dataset
            if type(dataset).__name__ == "DataFrame":
                raise TypeError("a DataFrame, whose items are columns: source.kind: table reads it")
            self.length = len(self._dataset)
        except KrepesError:
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
        self._entry: Entry = None
        item = self._get(lambda: self._dataset[0], "sample 0")
        self._entry = find_entry(item, key, f"source.factory {factory}")
        first, self._first_label = self._split(item, "sample 0")
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
            sample = self._item(position)[0]
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
                where=self.factory,
                expected="a method from_text(text) that returns an item",
                advice="give the item itself as .npy",
            )
        samples = []
        for text in texts:
            # Copied before the next text: the data set may use one buffer.
            which = repr(text[:40])
            samples.append(self._split(self._get(partial(from_text, text), which), which)[0])
        for sample in samples:
            self._check_like_first(sample, "new text")
        return np.stack(samples)

    def check_repeatable(self, positions: Int64, samples: npt.NDArray[Any]) -> None:
        """Read some samples again, each alone and in the opposite order.

        Args:
            positions: their positions [sample].
            samples: what ``take`` gave for them.

        Raises:
            DataError: a sample or its label differs at the second read; names the sample.
        """
        labels = [self._item(position)[1] for position in positions.tolist()]
        for row in reversed(range(len(positions))):
            again, label = self._item(int(positions[row]))
            if self._channels_first:
                again = np.moveaxis(again, 0, -1)
            same = again.tobytes() == np.ascontiguousarray(samples[row]).tobytes()
            if same and same_label(labels[row], label):
                continue
            raise DataError(
                f"was read twice with different {'labels' if same else 'values'}",
                where=f"source.factory {self.factory}, sample {int(positions[row])}",
                expected="the same item at every read, in any order",
                advice="draw no random numbers in __getitem__; use views for augmentation",
            )

    def find_labels(self) -> tuple[Labels | None, tuple[str, ...]]:
        """Labels of the samples, and a warning where labels are there and cannot be used.

        They are listed in ``targets`` or ``labels``, with names in ``classes``, or are entries of
        the items.

        Raises:
            SourceError: a label without a class, or another number of labels than samples.
        """
        where = f"source.factory {self.factory}"
        for name in ("targets", "labels"):
            listed = listed_entries(self._dataset, name)
            if listed is not None:
                return self._listed_labels(listed, name, where)
        if self._first_label is None:
            return None, ()
        return self._item_labels(where)

    def _listed_labels(
        self, listed: Any, name: str, where: str
    ) -> tuple[Labels | None, tuple[str, ...]]:
        """Labels in an attribute of the data set."""
        count = len(listed) if hasattr(listed, "__len__") else 0
        if count != self.length:
            raise SourceError(
                f"{count} {name} for {self.length} samples",
                where=where,
                expected="one label for each sample",
            )
        plain = _plain_list(listed)
        if plain is None:
            return None, (
                f"the attribute {name} is not used for its {self.length} samples: "
                "it lists neither whole numbers, nor texts, nor one-hot rows",
            )
        return index_labels(plain, self._classes(), where), ()

    def _item_labels(self, where: str) -> tuple[Labels | None, tuple[str, ...]]:
        """Labels in the items, which are all read for it."""
        count = self.shape[0]
        unused = f"the labels inside the items are not used for {count:,} samples: "
        # No pass over the data set for what is no label.
        if label_array([self._first_label]) is None:
            return None, (
                unused + f"sample 0 has {type(self._first_label).__name__}, and neither "
                "a whole number, nor a text, nor a one-hot row",
            )
        if count > LABELLED_SAMPLES:
            return None, (unused + "list them in an attribute targets of the data set",)
        plain = label_array([self._item(position)[1] for position in range(count)])
        if plain is None:
            return None, (unused + "they are not all whole numbers, texts or one-hot rows",)
        return index_labels(plain, self._classes(), where), ()

    def _classes(self) -> Sequence[Any] | None:
        """Names of the classes, if the data set lists them."""
        classes = listed_entries(self._dataset, "classes")
        return None if classes is None else list(classes)

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
                where=f"source.factory {self.factory}",
                expected="one name for each sample",
            )
        return [str(name) for name in names[: self.shape[0]]]

    def _check_like_first(self, sample: npt.NDArray[Any], which: str) -> None:
        # A ragged data set cannot be stored in one array.
        if sample.shape != self._shape or sample.dtype != self.dtype:
            raise DataError(
                f"{sample.dtype} of shape {list(sample.shape)}",
                where=f"{self.factory}, {which}",
                expected=f"{self.dtype} of shape {list(self._shape)} as in sample 0",
            )

    def _item(self, position: int) -> tuple[npt.NDArray[Any], Any]:
        """Copy of the sample at a position, and its label."""
        which = f"sample {position}"
        return self._split(self._get(lambda: self._dataset[position], which), which)

    def _get(self, get: Callable[[], Any], which: str) -> Any:
        try:
            with self._lock:
                return get()
        except Exception as error:
            where = f"{self.factory}, {which}"
            raise DataError(f"{type(error).__name__}: {error}", where=where) from error

    def _split(self, item: Any, which: str) -> tuple[npt.NDArray[Any], Any]:
        where = f"{self.factory}, {which}"
        try:
            entry, label = split_item(item, self._entry)
            sample = sample_array(entry)
        except Exception as error:
            raise DataError(f"{type(error).__name__}: {error}", where=where) from error
        # Scalars and texts are no input of a network.
        if sample.dtype.kind not in "uif" or not sample.ndim:
            raise DataError(
                f"{sample.dtype} sample"
                + (f", of type {type(entry).__name__}" if sample.dtype.kind == "O" else ""),
                where=where,
                expected="an array of numbers",
                advice="an item is an array, a tuple (array, label), "
                "or has an entry that source.key names",
            )
        return sample, label

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name: another process calls the factory again."""
        return (DatasetRows, self._recipe)
