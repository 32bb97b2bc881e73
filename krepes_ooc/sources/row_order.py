"""Order of store rows: a keyed permutation from store row to position in the source.

A store whose rows keep the order of the source would hold one class after the other for a folder of
images sorted by class, so rows are shuffled: by a keyed bijection of [0, n) where the source has
random access, and by shuffled row groups with a bounded buffer where it is a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng

Int64 = npt.NDArray[np.int64]
WINDOW_ROWS = 65_536
# Streams of the counter-based generator.
_GROUPS_STREAM, _WINDOW_STREAM, _ROWS_STREAM = 1, 2, 3


class ShuffledOrder:
    """A keyed bijection of [0, n_samples): store row to position in the source.

    Args:
        n_samples: rows of the store.
        row_groups: rows of each row group of a streamed source; None for random access.
        seed: key of the shuffle.
        kind: ``shuffled``, or ``source`` for the order of the source.
        window_rows: most rows of neighbouring row groups that are shuffled together; a single
            row group may be larger.
        valid_positions: ascending positions of the samples where others are skipped [sample].

    Raises:
        ValueError: the row groups do not add up to ``n_samples``.
    """

    def __init__(
        self,
        n_samples: int,
        row_groups: Sequence[int] | None,
        seed: int,
        kind: Literal["shuffled", "source"] = "shuffled",
        window_rows: int = WINDOW_ROWS,
        valid_positions: Int64 | None = None,
    ) -> None:
        self.n_samples = n_samples
        self._valid_positions = valid_positions
        self.kind = kind
        self._seed = seed
        groups = np.asarray([n_samples] if row_groups is None else row_groups, dtype=np.int64)
        if int(groups.sum()) != n_samples:
            raise ValueError(f"row groups hold {int(groups.sum())} rows, the source {n_samples}")
        self._random_access = row_groups is None
        # A bijection, so that any row is found without a permutation in memory.
        self._bijection = counter_rng.Bijection(
            n_samples, int(counter_rng.bits(seed, _ROWS_STREAM))
        )
        # Row groups in shuffled order: where each begins in the source and in the store.
        shuffled = np.argsort(
            counter_rng.bits(seed, _GROUPS_STREAM, np.arange(groups.size)), kind="stable"
        )
        self._group_first = (np.cumsum(groups) - groups)[shuffled]
        self._group_end = np.cumsum(groups[shuffled])
        self._group_start = self._group_end - groups[shuffled]
        self._window_end = _window_ends(groups[shuffled], window_rows)

    def positions(self, start: int, stop: int) -> Int64:
        """Positions in the source of store rows [start, stop), int64 [sample]."""
        indices = self._indices(start, stop)
        return indices if self._valid_positions is None else self._valid_positions[indices]

    def _indices(self, start: int, stop: int) -> Int64:
        """Index among the samples of every store row."""
        rows = np.arange(start, min(stop, self.n_samples), dtype=np.int64)
        if self.kind == "source" or not rows.size:
            return rows
        # Random access: one permutation of all rows.
        if self._random_access:
            return self._bijection(rows)
        return self._source_position(self._inside_windows(rows))

    def _inside_windows(self, rows: Int64) -> Int64:
        """Shuffle the rows inside each window of row groups; windows keep their place."""
        shuffled = rows.copy()
        # Each window is permuted by itself, keyed by its index: its row groups fit one buffer.
        windows = np.searchsorted(self._window_end, rows, side="right")
        for window in np.unique(windows):
            first = self._window_end[window - 1] if window else 0
            size = int(self._window_end[window] - first)
            shuffle = counter_rng.Bijection(
                size, int(counter_rng.bits(self._seed, _WINDOW_STREAM, window))
            )
            inside = windows == window
            shuffled[inside] = first + shuffle(rows[inside] - first)
        return shuffled

    def _source_position(self, rows: Int64) -> Int64:
        # Store row -> row group -> row inside the group -> position in the source.
        group = np.searchsorted(self._group_end, rows, side="right")
        return np.asarray(self._group_first[group] + rows - self._group_start[group])


def _window_ends(groups: Int64, window_rows: int) -> Int64:
    """Ends of greedy windows: as many whole row groups as fit ``window_rows`` rows."""
    ends: list[int] = []
    window = total = 0
    for rows in groups.tolist():
        if window and window + rows > window_rows:
            ends.append(total)
            window = 0
        window += rows
        total += rows
    return np.asarray([*ends, total], dtype=np.int64)
