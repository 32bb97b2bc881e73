"""Label codes from label arrays: whole numbers, booleans, whole floats, texts or one-hot rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import SourceError
from krepes_ooc.sources.arrays.array_source import Labels

MAX_CLASSES = 1_024
# Whole numbers without class names: one class is listed for each number up to the largest.
MAX_NUMBERED_CLASSES = 2**20


def code_labels(values: npt.NDArray[Any], where: str) -> Labels:
    """Codes and sorted class names of a label array.

    Args:
        values: [sample], [sample, 1], or one-hot [sample, class]; negative whole numbers, NaN and
            empty texts are missing.
        where: file of the array, for messages.

    Raises:
        SourceError: another shape or type, or too many classes.
    """
    plain = plain_labels(values)
    if plain is None:
        raise SourceError(
            f"labels are {values.dtype} of shape {list(values.shape)}",
            where=where,
            expected="whole numbers or text [sample]",
            advice="store one integer for each sample" if values.dtype.kind == "f" else "",
        )
    missing = plain == "" if plain.dtype.kind == "U" else plain.astype(np.int64) < 0
    # Codes follow the sorted names, so they do not depend on the order of the samples.
    names, codes = np.unique(plain[~missing], return_inverse=True)
    if len(names) > MAX_CLASSES:
        raise SourceError(
            f"{len(names)} classes",
            where=where,
            expected=f"at most {MAX_CLASSES} classes",
            advice="leave labels and label_array of the source out: they are not needed",
        )
    all_codes = np.full(plain.shape, -1, dtype=np.int64)
    all_codes[~missing] = codes
    return Labels(all_codes, tuple(str(name) for name in names.tolist()))


def plain_labels(values: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Labels [sample] as integers, booleans or text; None if the values are no labels.

    A missing label is a negative number or an empty text.
    """
    # HDF5 and Zarr label arrays are often [sample, 1].
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind == "O":
        values = _typed(values)
    if values.ndim == 2:
        return _one_hot_codes(values)
    if values.ndim != 1 or values.dtype.kind not in "uibfUS":
        return None
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind != "f":
        return values
    # Tables store classes as 0.0 and 1.0 as soon as one is missing (NaN).
    missing = np.isnan(values)
    whole = np.where(missing, -1, values)
    if not np.array_equal(whole, np.trunc(whole)) or (np.abs(whole) > 2**53).any():
        return None
    return whole.astype(np.int64)


def _typed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Python objects as text or floats, None as missing; unchanged if they are neither."""
    items = values.ravel().tolist()
    present = [item for item in items if item is not None and item == item]
    if present and all(isinstance(item, str) for item in present):
        texts = [item if isinstance(item, str) else "" for item in items]
        return np.asarray(texts, dtype=np.str_).reshape(values.shape)
    if present and all(isinstance(item, bool | int | float) for item in present):
        numbers = [np.nan if item is None else float(item) for item in items]
        return np.asarray(numbers).reshape(values.shape)
    return values


def _one_hot_codes(values: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Index of the single 1 of each row; None if a row has none or several."""
    if values.dtype.kind not in "uifb" or values.shape[1] < 2:
        return None
    ones = values == 1
    if not ((values == 0) | ones).all() or (ones.sum(axis=1) != 1).any():
        return None
    return np.asarray(ones.argmax(axis=1), dtype=np.int64)


def rename_classes(labels: Labels, classes: tuple[str, ...], where: str) -> Labels:
    """Labels with the names that the recipe gives to 0, 1, 2 ...

    Raises:
        SourceError: a label without a name, or a name twice.
    """
    if len(set(classes)) < len(classes):
        raise SourceError(
            "source.classes names a class twice", where=where, expected="different names"
        )
    code_of = {str(code): code for code in range(len(classes))}
    # Labels are whole numbers as text: each must be an index into the given names.
    nameless = [name for name in labels.classes if name not in code_of]
    if nameless:
        raise SourceError(
            f"label {nameless[0]} has no name",
            where=where,
            expected=f"labels from 0 to {len(classes) - 1}, as many as source.classes names",
        )
    # Missing labels have the code -1, which indexes the last entry.
    codes = np.array([*(code_of[name] for name in labels.classes), -1], dtype=np.int64)
    return Labels(codes[labels.codes], classes)


def index_labels(plain: npt.NDArray[Any], classes: Sequence[Any] | None, where: str) -> Labels:
    """Labels that are indices into class names, or are class names themselves.

    Args:
        plain: what ``plain_labels`` gave.
        classes: names of the codes; None: the texts, sorted, or the numbers 0, 1, 2 ...
        where: data set, for messages.

    Raises:
        SourceError: a label without a class, or too many classes.
    """
    if plain.dtype.kind == "U":
        return _named_labels(plain, classes, where)
    # Any negative number means "no label".
    codes = np.maximum(plain.astype(np.int64), -1)
    largest = int(codes.max(initial=-1))
    if not classes and largest >= MAX_NUMBERED_CLASSES:
        raise SourceError(
            f"label {largest}",
            where=where,
            expected=f"labels below {MAX_NUMBERED_CLASSES}, or an attribute classes",
        )
    # Without names the classes are called 0, 1, 2 ...
    names = classes or range(largest + 1)
    if largest >= len(names):
        raise SourceError(
            f"label {largest} but {len(names)} classes",
            where=where,
            expected="a class for every label",
        )
    return Labels(codes, tuple(str(name) for name in names))


def _named_labels(plain: npt.NDArray[Any], classes: Sequence[Any] | None, where: str) -> Labels:
    coded = code_labels(plain, where)
    if not classes:
        return coded
    # The data set's own order of its classes.
    names = tuple(str(name) for name in classes)
    absent = [name for name in coded.classes if name not in names]
    if absent:
        raise SourceError(
            f"label {absent[0]!r} is not among the {len(names)} classes",
            where=where,
            expected="a class for every label",
        )
    codes = np.array([*(names.index(name) for name in coded.classes), -1], dtype=np.int64)
    return Labels(codes[coded.codes], names)
