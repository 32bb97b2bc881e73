"""Sizes of an audit, known before its first block; plan and budget are computed from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from krepes_ooc.core.blocks import TILE, BlockPlan
from krepes_ooc.core.feature_layout import CONDENSED_WIDTH

MEASURED = ("n_weights", "fixed_bytes", "sample_bytes", "opening_bytes", "row_flops")
FEATURE_SIZES = ("n_views", "n_features", "n_moments", "n_outputs", "n_parameters")


@dataclass(frozen=True)
class AuditSizes:
    """Numbers of views, samples, features, landmarks and components of an audit.

    Args:
        n_views: views of a sample.
        n_features: columns of a feature row.
        n_moments: numbers in the centre.
        n_outputs: audited outputs of the network.
        n_parameters: audited parameters of the network.
        keeps_features: whether feature rows are stored.
        n_landmarks: landmarks m.
        n_components: components h at most.
        n_audited: audited samples, fit samples included.
        n_explained: those of them that are explained.
        n_classes: classes of the source's labels; 0: it has none.
        kernel_itemsize: bytes of one stored kernel value.
        plan: block plan of the n-sized stores.
        n_groups: groups of samples that are left out one by one.
        n_partitions: partitions that they belong to.
        n_weights: numbers in all parameters of the network; 0: not known.
        fixed_bytes: measured bytes of a batch of feature rows, whatever its samples; 0: not known.
        sample_bytes: further measured bytes of every sample of the batch.
        opening_bytes: bytes at the peak of opening and self-check of the network.
        row_flops: measured operations of one feature row; 0: not known.
        n_retrained: groups that networks are trained again without.
        training_epochs: epochs of the demo trainer.
        n_inputs: numbers of an encoded sample.
        n_values: numbers of a sample as the source reads it.
        n_columns: named columns of a table; 0: no table.
        row_bytes: bytes of a sample as the source reads it.
    """

    n_views: int
    n_features: int
    n_moments: int
    n_outputs: int
    n_parameters: int
    keeps_features: bool
    n_landmarks: int
    n_components: int
    n_audited: int
    n_explained: int
    n_classes: int
    kernel_itemsize: int
    plan: BlockPlan
    n_groups: int = 0
    n_partitions: int = 0
    n_weights: int = 0
    fixed_bytes: int = 0
    sample_bytes: int = 0
    opening_bytes: int = 0
    row_flops: float = 0.0
    n_retrained: int = 0
    training_epochs: int = 0
    n_inputs: int = 0
    n_values: int = 0
    n_columns: int = 0
    row_bytes: int = 0

    @property
    def batch_bytes(self) -> int:
        """Measured bytes of the largest batch of feature rows; 0: not known."""
        n_samples = min(self.plan.forward_batch, self.plan.n_samples)
        return self.fixed_bytes + self.sample_bytes * n_samples

    @property
    def copied_square(self) -> int:
        """Bytes of a landmark matrix in several tiles, read as a copy; one tile is mapped: 0."""
        return 8 * self.n_landmarks**2 if self.n_landmarks > TILE else 0

    @property
    def row_operations(self) -> float:
        """Operations of one feature row; from the parameters where they are not measured."""
        # A backward pass costs two forward passes.
        return self.row_flops or 6.0 * self.n_parameters

    @property
    def stored_rows(self) -> int:
        """Rows on disk: the last chunk is stored whole."""
        return self.plan.n_blocks * self.plan.block_rows

    @property
    def n_selection(self) -> int:
        """Columns of the rows that landmarks are chosen by."""
        # Without stored feature rows, landmarks are chosen by condensed rows.
        return self.n_features if self.keeps_features else CONDENSED_WIDTH

    def of_features(self) -> dict[str, Any]:
        """The sizes that are fixed when the features are begun, as JSON, for their fingerprint."""
        # Later stages choose their sizes anew when their settings change; these are fixed.
        sizes = {key: getattr(self, key) for key in FEATURE_SIZES}
        return sizes | {"keeps_features": self.keeps_features, "plan": self.plan.to_attributes()}

    def to_attributes(self) -> dict[str, Any]:
        """All sizes as JSON."""
        return dataclasses.asdict(self)
