"""Products with the landmark kernel, tile by tile."""

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
    """K_mm on the disk, multiplied tile by tile and never in memory as a whole.

    Args:
        kernel: reader of the sealed kernel.
        context: the stage: its executor, device and stop flag.
    """

    kernel: StoreReader
    context: StageContext

    @property
    def n_landmarks(self) -> int:
        """Rows of K_mm."""
        return self.kernel.info("landmark_kernel").shape[0]

    def product(self, V: Float) -> Float:
        """K_mm V [landmark, column], one task of the block graph for each row of tiles."""
        ranges = tile_slices(self.n_landmarks)
        device = self.context.device

        def row_product(row: int) -> Float:
            height = ranges[row].stop - ranges[row].start
            total = device.to_device(np.zeros((height, V.shape[1])))
            # (K V)_row = sum over columns of K_row,column V_column, in a fixed order.
            for column, landmarks in enumerate(ranges):
                self.context.stop.check()
                tile = device.to_device(self.kernel.tile("landmark_kernel", row, column))
                total += tile @ device.to_device(V[landmarks])
            product: Float = device.to_host(total)
            return product

        return np.concatenate(list(self.context.executor().map(row_product, range(len(ranges)))))

    def trace(self) -> float:
        """Trace of K_mm, from the tiles on its diagonal."""
        diagonal = range(len(tile_slices(self.n_landmarks)))
        tiles = (self.kernel.tile("landmark_kernel", i, i) for i in diagonal)
        return float(np.concatenate([np.diagonal(tile) for tile in tiles]).sum())
