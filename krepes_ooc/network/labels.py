"""Label codes and class names from an array of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import SourceError
from krepes_ooc.network.arrays import Labels

MAX_CLASSES = 1_024


def code_labels(values: npt.NDArray[Any], where: str) -> Labels:
    """Codes and sorted class names of labels [sample]: whole numbers (negative: missing) or text.

    Raises:
        SourceError: another shape or type, or too many classes.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "uibUS":
        raise SourceError(
            f"labels are {values.dtype} of shape {list(values.shape)}",
            where=where,
            expected="whole numbers or text [sample]",
        )
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    missing = values == "" if values.dtype.kind == "U" else values.astype(np.int64) < 0
    names, codes = np.unique(values[~missing], return_inverse=True)
    if len(names) > MAX_CLASSES:
        raise SourceError(
            f"{len(names)} classes", where=where, expected=f"at most {MAX_CLASSES} classes"
        )
    placed = np.full(values.shape, -1, dtype=np.int64)
    placed[~missing] = codes
    return Labels(placed, tuple(str(name) for name in names.tolist()))


def name_labels(labels: Labels, classes: tuple[str, ...], where: str) -> Labels:
    """The same labels under the names that the recipe gives to 0, 1, 2 ...

    Raises:
        SourceError: a label without a name, or a name twice.
    """
    if len(set(classes)) < len(classes):
        raise SourceError(
            "source.classes names a class twice", where=where, expected="different names"
        )
    known = {str(code): code for code in range(len(classes))}
    nameless = [name for name in labels.classes if name not in known]
    if nameless:
        raise SourceError(
            f"label {nameless[0]} has no name",
            where=where,
            expected=f"labels from 0 to {len(classes) - 1}, as many as source.classes names",
        )
    # The last place is that of missing labels.
    code = np.array([*(known[name] for name in labels.classes), -1], dtype=np.int64)
    return Labels(code[labels.codes], classes)
