"""Items of a user's data set: which entry is the sample, and which its label."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import SourceError
from krepes_ooc.sources.arrays.array_labels import plain_labels

# Entries of a mapping that hold its label, the first that is there.
LABEL_ENTRIES = ("label", "labels", "target", "targets", "y")
_SHOWN_ENTRIES = 12
Entry = str | int | None


def find_entry(item: Any, key: str, where: str) -> Entry:
    """Name or index of the entry of an item that is the sample; None: the item itself.

    A tuple begins with its sample, and so does a list whose first entry is an array; any other
    list of numbers is the sample itself. Of a mapping the only array of numbers is the sample.

    Args:
        item: the first item of the data set.
        key: the recipe's ``source.key``; empty: by the rules above.
        where: the data set, for messages.

    Raises:
        SourceError: no such entry, or a mapping with several arrays and no key.
    """
    if isinstance(item, Mapping):
        return _find_in_mapping(item, key, where)
    fields = getattr(item, "_fields", ())
    if isinstance(item, tuple | list) and len(item) and _is_sequence_of_entries(item):
        if not key:
            return 0
        names = [*fields, *map(str, range(len(item)))]
        if key in names:
            return names.index(key) % len(item)
        raise _no_entry(key, names, where)
    if key:
        raise SourceError(
            f"items are of type {type(item).__name__} and have no entry {key!r}",
            where=where,
            expected="no source.key",
        )
    return None


def _find_in_mapping(item: Mapping[Any, Any], key: str, where: str) -> str:
    names = [str(name) for name in item]
    if key:
        if key in names:
            return key
        raise _no_entry(key, names, where)
    arrays = [str(name) for name, value in item.items() if _is_array(value)]
    if len(arrays) == 1:
        return arrays[0]
    found = ", ".join(map(repr, arrays[:_SHOWN_ENTRIES])) or "none"
    raise SourceError(
        f"{len(arrays)} entries of an item are arrays of numbers ({found})",
        where=where,
        expected="one array, or source.key",
        advice="set source.key to one of " + ", ".join(map(repr, names[:_SHOWN_ENTRIES])),
    )


def _no_entry(key: str, names: list[str], where: str) -> SourceError:
    return SourceError(
        f"items have no entry {key!r}",
        where=where,
        expected="source.key one of " + ", ".join(map(repr, names[:_SHOWN_ENTRIES])),
    )


def _is_sequence_of_entries(item: tuple[Any, ...] | list[Any]) -> bool:
    if isinstance(item, tuple):
        return True
    return getattr(item[0], "ndim", 0) > 0 or not _is_array(item)


def _is_array(value: Any) -> bool:
    try:
        array = np.asarray(value)
    # What is no array fails in as many ways as there are types.
    except Exception:
        return False
    return array.dtype.kind in "uifb" and array.ndim > 0


def split_item(item: Any, entry: Entry) -> tuple[Any, Any]:
    """Sample and label of an item; the label is None where there is none.

    Raises:
        KeyError: a mapping without that entry.
        IndexError: a tuple without that entry.
        TypeError: no mapping, though the first item is one.
    """
    # A bare array among tuples is its own sample; its shape is checked like any other.
    if entry is None or (isinstance(entry, int) and not isinstance(item, tuple | list)):
        return item, None
    if isinstance(item, Mapping):
        by_name = {str(name): value for name, value in item.items()}
        label = next((n for n in LABEL_ENTRIES if n in by_name and n != entry), None)
        return by_name[str(entry)], None if label is None else by_name[label]
    if isinstance(entry, str):
        raise TypeError(f"a {type(item).__name__}, but sample 0 is a mapping")
    # The label of a pair is its other entry.
    other = 1 if entry == 0 else 0 if len(item) == 2 else None
    label = item[other] if other is not None and other < len(item) else None
    return item[entry], label


def sample_array(entry: Any) -> npt.NDArray[Any]:
    """Copy of a sample as an array; the data set may give the same buffer again.

    Raises:
        ValueError: masked values, several arrays in place of one, or a tensor without plain values.
    """
    # The values behind a mask are not meant.
    if isinstance(entry, np.ma.MaskedArray) and np.ma.is_masked(entry):
        n_masked = int(np.ma.getmaskarray(entry).sum())
        raise ValueError(f"{n_masked} of {entry.size} values are masked")
    # Two views of one shape would be stacked to one sample.
    if isinstance(entry, tuple | list) and len(entry) and getattr(entry[0], "ndim", 0) > 0:
        raise ValueError(
            f"a {type(entry).__name__} of {len(entry)} arrays in place of one array: views are "
            "drawn by views, and arrays that belong together are stacked in the data set"
        )
    return np.asarray(_plain_tensor(entry)).copy()


def _plain_tensor(entry: Any) -> Any:
    """A tensor of torch without its graph, and with a type that NumPy has; all else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(entry, torch.Tensor):
        return entry
    if entry.layout != torch.strided or entry.is_quantized or entry.is_meta:
        kind = "meta" if entry.is_meta else "quantised" if entry.is_quantized else "sparse"
        raise ValueError(f"a {kind} tensor, and a plain one is needed")
    # bfloat16 is float32 with fewer digits.
    entry = entry.detach()
    return entry.float() if entry.dtype == torch.bfloat16 else entry


def listed_entries(dataset: Any, name: str) -> Any:
    """Attribute of a data set that lists one entry for each sample; None where there is none.

    Subsets and concatenations of torch list what the data sets below them list.

    Args:
        dataset: the data set of the user.
        name: ``targets``, ``labels`` or ``classes``.
    """
    try:
        listed = getattr(dataset, name, None)
        # The convention of torchvision; a method of that name is something else.
        if listed is not None:
            return None if callable(listed) else listed
        utils = sys.modules.get("torch.utils.data")
        if utils is None:
            return None
        if isinstance(dataset, utils.Subset):
            inner = listed_entries(dataset.dataset, name)
            return inner if inner is None or name == "classes" else _taken(inner, dataset.indices)
        if isinstance(dataset, utils.ConcatDataset):
            parts = [listed_entries(part, name) for part in dataset.datasets]
            return _joined(parts, name)
    # What lists nothing fails in as many ways as there are data sets.
    except Exception:
        return None
    return None


def _taken(listed: Any, indices: Sequence[int]) -> list[Any]:
    values = list(np.asarray(listed))
    return [values[int(index)] for index in indices]


def _joined(parts: list[Any], name: str) -> list[Any] | None:
    """Entries of all parts behind each other; classes only where all parts have the same."""
    if any(part is None for part in parts):
        return None
    lists = [list(np.asarray(part)) for part in parts]
    if name != "classes":
        return [value for values in lists for value in values]
    return lists[0] if all(values == lists[0] for values in lists) else None


def label_array(labels: list[Any]) -> npt.NDArray[Any] | None:
    """Labels [sample] of items, as ``plain_labels`` gives them; None if they are no labels."""
    try:
        values = [None if label is None else np.asarray(label) for label in labels]
        # A class, or a one-hot row of classes, for each sample.
        shapes = {value.shape for value in values if value is not None}
        if shapes == {()}:
            plain = np.empty(len(values), dtype=object)
            plain[:] = [None if value is None else value.item() for value in values]
            return plain_labels(plain)
        present = [value for value in values if value is not None]
        # Different shapes, or a one-hot row that is not there: no labels.
        if len(shapes) != 1 or len(present) < len(values):
            return None
        return plain_labels(np.stack(present))
    except (ValueError, TypeError, RuntimeError):
        return None


def same_label(one: Any, other: Any) -> bool:
    """Whether two reads of a label agree; what is no array of plain values is not compared."""
    try:
        first, second = np.asarray(one), np.asarray(other)
    except (ValueError, TypeError, RuntimeError):
        return True
    if "O" in (first.dtype.kind, second.dtype.kind):
        return True
    return first.shape == second.shape and first.tobytes() == second.tobytes()
