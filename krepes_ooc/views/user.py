"""Views by a callable of the user: ``view(x, sample_id, view_id, seed)`` of one raw sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.import_object import factory_sha256, load_callable
from krepes_ooc.core.live_objects import object_sha256
from krepes_ooc.errors import DataError
from krepes_ooc.sources.base import Column, Int64, Source, sample_positions

CHECKED_SAMPLES = 16


class UserViews:
    """Views by a callable of the user, applied sample by sample.

    Args:
        function: ``module:callable`` or ``file.py:callable``.
        base: folder of the recipe.
        columns: columns of a table, whose categories are codes; () for other samples.
        live: the callable of a script, where the recipe says ``live``.

    Raises:
        SourceError: the callable cannot be loaded.
    """

    def __init__(
        self,
        function: str,
        base: Path,
        columns: tuple[Column, ...] = (),
        live: Callable[..., Any] | None = None,
    ) -> None:
        self._function = function
        self._base = base
        self._columns = columns
        self._live = live
        categorical = [(i, c) for i, c in enumerate(columns) if c.kind == "categorical"]
        self._categories = [(i, c.name, len(c.categories)) for i, c in categorical]
        self._view: Callable[..., Any] = live or load_callable(function, base, "views.function")

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

    def check_repeatable(self, source: Source, view_ids: tuple[int, ...], seed: int) -> None:
        """View a few samples twice, the second time in the opposite order.

        Args:
            source: where the samples come from.
            view_ids: the views to draw.
            seed: key of the draws.

        Raises:
            DataError: a view differs at the second call, or the callable fails; names the sample.
        """
        count = min(CHECKED_SAMPLES, source.n_samples)
        # Neighbours where random access is not cheap: they lie in one row group.
        spread = np.linspace(0, source.n_samples - 1, count).astype(np.int64)
        chosen = np.unique(spread) if source.row_groups is None else np.arange(count)
        positions = sample_positions(source, chosen)
        raw = source.read(positions)
        calls = [(row, view) for view in view_ids for row in range(len(positions))]
        first = {}
        for row, view in calls:
            first[row, view] = self._one(raw[row].copy(), int(positions[row]), view, seed)
        # Opposite order: a view that leans on the call before it gives something else.
        for row, view in reversed(calls):
            again = self._one(raw[row].copy(), int(positions[row]), view, seed)
            if again.tobytes() == first[row, view].tobytes():
                continue
            raise DataError(
                "was called twice and gave different values",
                where=f"views.function {self._function}, sample {int(positions[row])}, view {view}",
                expected="the same view for the same sample, view_id and seed, in any order",
                advice="draw from numpy.random.default_rng((seed, view_id, sample_id)) alone",
            )

    def _one(
        self, sample: npt.NDArray[Any], sample_id: int, view: int, seed: int
    ) -> npt.NDArray[Any]:
        where = f"views.function {self._function}, sample {sample_id}, view {view}"
        # Missing numbers of a table are NaN, and may stay so; the callable may work in place.
        missing = np.isnan(sample) if sample.dtype.kind == "f" else np.zeros(sample.shape, bool)
        try:
            # A copy: the callable may return one buffer again and again.
            result = np.asarray(self._view(sample, sample_id, view, seed)).copy()
        except Exception as error:
            raise DataError(f"{type(error).__name__}: {error}", where=where) from error
        # Checked on every call: the code of the user may go wrong on one sample in a million.
        if result.shape != sample.shape or result.dtype.kind not in "uif":
            raise DataError(
                f"returned {result.dtype} of shape {list(result.shape)}",
                where=where,
                expected=f"numbers of shape {list(sample.shape)}",
            )
        if not (np.isfinite(result) | (np.isnan(result) & missing)).all():
            raise DataError("returned NaN or infinity", where=where, expected="finite numbers")
        self._check_codes(result, where)
        return result

    def _check_codes(self, row: npt.NDArray[Any], where: str) -> None:
        """Raise on an entry of a categorical column that is no code of one of its categories.

        Raises:
            DataError: names the view, the sample and the column.
        """
        for index, name, count in self._categories:
            code = float(row[index])
            if not (0 <= code < count and code.is_integer()):
                raise DataError(
                    f"returned {code:g} in the categorical column {name!r}",
                    where=where,
                    expected=f"the code of a category, a whole number from 0 to {count - 1}",
                )

    def describe(self) -> dict[str, Any]:
        """sha256 of the file that defines the callable, or of its own code, as JSON."""
        if self._live is not None:
            return {"function_sha256": object_sha256(self._live)}
        return {"function_sha256": factory_sha256(self._function, self._base)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name: another process loads the callable again."""
        return (UserViews, (self._function, self._base, self._columns, self._live))
