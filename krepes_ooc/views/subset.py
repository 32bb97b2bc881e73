"""Some samples of a source: what a user's train function is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.sources.base import Source
from krepes_ooc.views.views import Views

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SourceSubset:
    """Some samples of a source, indexed from 0, with their views.

    Args:
        source: all samples.
        positions: positions of the samples in the source, ascending [sample].
        drawn: views under the seed of the training.
    """

    source: Source
    positions: Int64
    drawn: Views

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.positions)

    def read(self, index: npt.ArrayLike) -> npt.NDArray[Any]:
        """Raw samples [sample, ...] at some indices, as the source gives them."""
        return np.asarray(self.source.read(self._positions(index)))

    def inputs(self, index: npt.ArrayLike) -> Float32:
        """Network inputs [sample, ...] of the clean samples at some indices."""
        return np.asarray(self.source.encode(self.read(index)))

    def views(self, index: npt.ArrayLike, epoch: int) -> tuple[Float32, ...]:
        """Network inputs [sample, ...] of every view, drawn anew for each epoch.

        Args:
            index: of the samples.
            epoch: key of the draws beside the seed.
        """
        return self.drawn.batch(self._positions(index), epoch)

    def _positions(self, index: npt.ArrayLike) -> Int64:
        """Positions in the source.

        Raises:
            IndexError: an index outside the subset.
        """
        chosen = np.atleast_1d(np.asarray(index, dtype=np.int64))
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"index {chosen.min()} to {chosen.max()} of {len(self)} samples")
        return np.asarray(self.positions[chosen], dtype=np.int64)
