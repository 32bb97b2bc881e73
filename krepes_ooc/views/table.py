"""Views of table rows: SCARF corruption by draws from the marginal of each column."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import Float64, Int64, Tabular
from krepes_ooc.views.spec import ViewSpec

# Streams of the counter-based generator.
_CORRUPT, _ROW, _NOISE = 1, 2, 3


class TableViews:
    """SCARF (Bahri et al. 2022): cells replaced by draws from their marginal, then noise.

    Args:
        spec: the recipe key ``views``.
        source: a source with marginal rows.

    Raises:
        SourceError: ``keep`` names no column.
    """

    def __init__(self, spec: ViewSpec, source: Tabular) -> None:
        names = [column.name for column in source.columns]
        width = source.marginal_rows.shape[1]
        unknown = [name for name in spec.keep if name not in names]
        if unknown:
            raise SourceError(
                f"no column {unknown[0]!r} to keep",
                where="views.keep",
                expected="one of " + ", ".join(map(repr, names)),
            )
        # Columns that the network does not see are audited as they are.
        changed = [c.shown and c.name not in spec.keep for c in source.columns]
        # Vectors have numbers without names: all of them change.
        self._columns = np.flatnonzero(changed) if names else np.arange(width)
        self._corruption = spec.corruption
        self._marginal_rows = source.marginal_rows
        # Tokens and counts stay whole: they are replaced by draws from their column only.
        self._whole = bool(spec.noise) and getattr(source, "whole_numbers", False)
        self._noise = (0.0 if self._whole else spec.noise) * source.spread

    def __call__(self, raw: npt.NDArray[Any], sample_id: Int64, view: int, seed: int) -> Float64:
        """One view of raw rows [sample, column], in raw units."""
        changed = np.array(raw, dtype=np.float64)
        # Each cell has its own key (sample, column), so that no draw depends on the batch.
        sample = sample_id[:, None]
        column = self._columns[None, :]
        cells = changed[:, self._columns]
        replaced = counter_rng.uniform(seed, view, _CORRUPT, sample, column) < self._corruption
        # An entry of a random marginal row is a draw from the empirical marginal of its column.
        row = counter_rng.integers(seed, len(self._marginal_rows), view, _ROW, sample, column)
        cells = np.where(replaced, self._marginal_rows[row, column], cells)
        # Noise in standard deviations of the column; categories have none.
        noisy = np.flatnonzero(self._noise[self._columns])
        if noisy.size:
            drawn = counter_rng.normal(seed, view, _NOISE, sample, column[:, noisy])
            cells[:, noisy] += drawn * self._noise[self._columns[noisy]]
        changed[:, self._columns] = cells
        return changed

    def describe(self) -> dict[str, Any]:
        """Whether noise is left out; else {}: settings and source identify these views."""
        return {"noise_of_integers": 0} if self._whole else {}
