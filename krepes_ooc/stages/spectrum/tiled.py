"""Products with the landmark kernel and with second moments, tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import tile_slices
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TiledKernel:
    """K_mm as it lies on disk, multiplied tile by tile and never held whole.

    Args:
        context: a stage that reads the sealed kernel.
    """

    context: StageContext

    @property
    def n_landmarks(self) -> int:
        """Rows of K_mm."""
        return self._reader.info("landmark_kernel").shape[0]

    def product(self, V: Float) -> Float:
        """K_mm V [landmark, column], one task of the block graph for each row of tiles."""
        ranges = tile_slices(self.n_landmarks)

        def rows(row: int) -> Float:
            device = self.context.device
            total = device.to_device(np.zeros((ranges[row].stop - ranges[row].start, V.shape[1])))
            for column, there in enumerate(ranges):
                self.context.stop.check()
                tile = device.to_device(self._reader.tile("landmark_kernel", row, column))
                total += tile @ device.to_device(V[there])
            product: Float = device.to_host(total)
            return product

        return np.concatenate(list(self.context.executor().map(rows, range(len(ranges)))))

    def trace(self) -> float:
        """Trace of K_mm."""
        diagonal = range(len(tile_slices(self.n_landmarks)))
        tiles = (self._reader.tile("landmark_kernel", i, i) for i in diagonal)
        return float(np.concatenate([np.diagonal(tile) for tile in tiles]).sum())

    @property
    def _reader(self) -> StoreReader:
        return self.context.reader("kernel")


@dataclass(frozen=True)
class UncentredMoment:
    """The mean over views of C_aa + mu_a mu_a^T, multiplied tile by tile without being formed.

    Args:
        context: a stage that reads the sealed moments.
        mean: mu_a [view, landmark].
    """

    context: StageContext
    mean: Float

    def __matmul__(self, V: Float) -> Float:
        total, ranges = np.zeros(V.shape), tile_slices(len(V))
        for row, column in np.ndindex(len(ranges), len(ranges)):
            second = self._tile(row, column)
            for a in range(len(self.mean)):
                total[ranges[row]] += second[a, a] @ V[ranges[column]]
        for mu in self.mean:
            total += np.outer(mu, mu @ V)
        return total / len(self.mean)

    def trace(self) -> float:
        """The mean squared length of a kernel row."""
        diagonal = range(len(tile_slices(self.mean.shape[1])))
        tiles = [self._tile(i, i) for i in diagonal]
        own = sum(float(np.trace(tile[a, a])) for tile in tiles for a in range(len(self.mean)))
        return (own + float(np.sum(self.mean**2))) / len(self.mean)

    def _tile(self, row: int, column: int) -> Float:
        return np.asarray(self.context.reader("moments").tile("second", row, column))
