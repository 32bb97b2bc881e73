"""Where the feature rows of a block come from: read from their store, or computed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from krepes_ooc.blocks import Block
from krepes_ooc.engine.device import Array
from krepes_ooc.errors import DataError
from krepes_ooc.stages.base import StageContext
from krepes_ooc.stages.featurizer import Featurizer, Half, open_featurizer, self_kernel
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.storage.reader import StoreReader

# Rounding of another processor stays far below, another sample far above.
SAME = 1e-3


class RowSupply(Protocol):
    """Stored feature rows of blocks; the same bits from any supply."""

    def rows(self, block: Block, view: int) -> Array:
        """Stored feature rows [sample, feature] of one block in one view, for the device.

        They lie there already, or on the host.
        """


@dataclass(frozen=True)
class StoredRows:
    """Rows that the features store keeps."""

    features: StoreReader

    def rows(self, block: Block, view: int) -> Half:
        """Rows as they lie on the disk."""
        return self.features.block("values", block, view)


@dataclass(frozen=True)
class ComputedRows:
    """Rows computed through the network, for a features store that keeps none."""

    featurizer: Featurizer
    features: StoreReader

    def rows(self, block: Block, view: int) -> Array:
        """Rows as the features stage computed them.

        Raises:
            DataError: k(x, x) is no longer what that stage noted; names the sample.
        """
        context = self.featurizer.context
        positions = context.inputs.order.positions(block.start, block.stop)
        stored, _ = self.featurizer.rows_there(positions, view)
        noted = self.features.block("self_kernel", block, view)
        own = self_kernel(stored, self.featurizer.layout, context.device)
        wrong = np.flatnonzero(~(np.abs(own - noted) <= SAME * np.abs(noted)))
        if len(wrong):
            raise DataError(
                f"k(x, x) is {own[wrong[0]]:.6g} and was {noted[wrong[0]]:.6g}",
                where=f"sample {int(positions[wrong[0]])}, view {view}",
                expected="the sample that the features stage saw",
                advice="undo the change of source, view or network, or set features.persist to "
                "always",
            )
        return stored


def keeps_features(context: StageContext) -> bool:
    """Whether the features store keeps its rows, decided once."""
    assert context.shape is not None
    return context.shape.keeps_features


def open_supply(context: StageContext) -> RowSupply:
    """The rows behind a sealed features store."""
    features = context.reader("features")
    if keeps_features(context):
        return StoredRows(features)
    return ComputedRows(open_featurizer(context), features)


def computing_bytes(shape: AuditShape, rows: int | None = None) -> int:
    """Memory of a worker that computes some rows of one view: joining its batches, and one batch.

    Args:
        shape: sizes.
        rows: how many, by default those of a block.
    """
    rows, width = shape.plan.block_rows if rows is None else rows, shape.n_features
    return rows * width * 6 + 16 * shape.plan.forward_batch * width


def computing_flops(shape: AuditShape) -> float:
    """Operations that all rows of all views take: three times the forward pass."""
    return 6.0 * shape.n_parameters * shape.plan.n_samples * shape.n_views
