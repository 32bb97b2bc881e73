"""Views by a callable of the user: ``view(x, sample_id, view_id, seed)`` of one raw sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.import_object import factory_sha256, load_callable
from krepes_ooc.errors import DataError
from krepes_ooc.sources.base import Int64


class UserViews:
    """Views by a callable of the user, applied sample by sample.

    Args:
        function: ``module:callable`` or ``file.py:callable``.
        base: folder of the recipe.

    Raises:
        SourceError: the callable cannot be loaded.
    """

    def __init__(self, function: str, base: Path) -> None:
        self._function = function
        self._base = base
        self._view: Callable[..., Any] = load_callable(function, base, "views.function")

    def __call__(
        self, raw: npt.NDArray[Any], sample_id: Int64, view: int, seed: int
    ) -> npt.NDArray[Any]:
        """The view of each raw sample, in raw units.

        Raises:
            DataError: the callable failed, or returned another shape, NaN or infinity.
        """
        # A copy: the callable may work in place, and the clean sample is needed again.
        views = [
            self._one(raw[i].copy(), int(sample), view, seed) for i, sample in enumerate(sample_id)
        ]
        return np.stack(views) if views else raw

    def _one(
        self, sample: npt.NDArray[Any], sample_id: int, view: int, seed: int
    ) -> npt.NDArray[Any]:
        where = f"views.function {self._function}, sample {sample_id}, view {view}"
        try:
            result = np.asarray(self._view(sample, sample_id, view, seed))
        except Exception as error:
            raise DataError(f"{type(error).__name__}: {error}", where=where) from error
        # Checked on every call: the code of the user may go wrong on one sample in a million.
        if result.shape != sample.shape or result.dtype.kind not in "uif":
            raise DataError(
                f"returned {result.dtype} of shape {list(result.shape)}",
                where=where,
                expected=f"numbers of shape {list(sample.shape)}",
            )
        if result.dtype.kind == "f" and not np.isfinite(result).all():
            raise DataError("returned NaN or infinity", where=where, expected="finite numbers")
        return result

    def describe(self) -> dict[str, Any]:
        """sha256 of the file that defines the callable, as JSON."""
        return {"function_sha256": factory_sha256(self._function, self._base)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name: another process loads the callable again."""
        return (UserViews, (self._function, self._base))
