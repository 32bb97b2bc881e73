"""Passes of a landmark sampler over view 0 of the feature store, in the centred cosine kernel.

The rows are the feature rows, or condensed ones where those are not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.feature_layout import CONDENSED_WIDTH, FeatureLayout, sketch_layout
from krepes_ooc.engine.device import to_device
from krepes_ooc.stages.base.inputs import Rows
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.featurizer import keeps_features, unscale_rows
from krepes_ooc.stages.kernel import kernel_map
from krepes_ooc.stages.kernel.kernel_map import KernelMap
from krepes_ooc.stages.kernel.normalisation import Normalisation, normalise
from krepes_ooc.stages.landmarks.sampling import nearest
from krepes_ooc.storage.store_reader import StoreReader

Ids = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


class _CandidateRows(NamedTuple):
    """Arrays of the features store that landmarks are chosen by."""

    rows: str
    own: str
    centre: str


FULL_ROWS = _CandidateRows("values", "self_kernel", "centre")
CONDENSED_ROWS = _CandidateRows("condensed", "condensed_self", "condensed_centre")


@dataclass(frozen=True)
class SelectionPasses:
    """What every sampler reads of the features.

    Args:
        context: the landmarks stage.
        count: number of landmarks.
    """

    context: StageContext
    count: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach a worker without what this process has found."""
        return type(self), (self.context, self.count)

    @property
    def seed(self) -> int:
        """Seed of the recipe."""
        return self.context.recipe.seed

    def partial(self, name: str) -> Path:
        """File of one finished round; removed when the stage is sealed."""
        return self.context.record.partials / f"{name}.npz"

    def weights(self, chosen: Ids) -> Float:
        """Number of samples nearest to each of the chosen store rows; one pass."""
        mapped = self.map(chosen)

        def count(block: Block) -> Float:
            owner = self.per_rows(block, mapped, nearest)
            return np.bincount(owner, minlength=len(chosen)).astype(np.float64)

        return self.context.executor().reduce(count, list(self.context.plan.blocks()), np.add)

    def per_rows(
        self, block: Block, mapped: KernelMap, reduce: Callable[[Any], Any]
    ) -> npt.NDArray[Any]:
        """Apply a row-wise reduction to the kernel of one block, in short row ranges.

        Map and reduction go to the device, what it gives comes back.
        """
        device, stored = self.context.device, self.features.block(self._names.rows, block)
        own = self.features.block(self._names.own, block)
        there, reduce = to_device(device, mapped), to_device(device, reduce)
        known, parts = self._centre_rows.get(block.index), []
        centre = np.empty(block.rows) if known is None else known
        row_bytes = 16 * len(mapped.landmarks) + 8 * self.layout.n_features
        step = device.rows_per_product(self.context.plan.sub_rows, block.rows, row_bytes)
        for start in range(0, block.rows, step):
            part = slice(start, start + step)
            rows = unscale_rows(stored[part], self.layout, device)
            if known is None:
                centre[part] = device.to_host(there.centre_rows(rows))
            near = there.rows(rows, device.to_device(own[part]), device.to_device(centre[part]))
            parts.append(device.to_host(reduce(near)))
        self._centre_rows[block.index] = centre
        return np.concatenate(parts)

    def map(self, rows: Ids) -> KernelMap:
        """The kernel against some store rows."""
        return kernel_map.kernel_map(
            self.read_rows(rows), self.layout, self._centre, self._normalisation
        )

    def kernel_to(self, rows: Ids) -> Float:
        """Kernel of some store rows among themselves [row, row_], in float64."""
        device, exact = self.context.device, self.read_rows(rows).astype(np.float64)
        there = (
            device.to_device(exact),
            self.layout,
            device.to_device(self._centre),
            self._normalisation,
        )
        found: Float = device.to_host(kernel_map.landmark_kernel(*there))
        return found

    def kernel_among(self, rows: Rows) -> Callable[[Ids], Float]:
        """The function from indices to kernel values [index, row] among gathered rows.

        What a row needs of the centre is computed once, not for every index.
        """
        layout, device = self.layout, self.context.device
        row_bytes = 8 * self.layout.n_features
        step = device.rows_per_product(self.context.plan.sub_rows, len(rows), row_bytes)
        spans = [slice(i, min(i + step, len(rows))) for i in range(0, len(rows), step)]
        there, middle = device.to_device(rows), device.to_device(self._centre)
        parts = [there[span, :] for span in spans]
        own = [device.to_host(inner_products.self_kernel(part, layout)) for part in parts]
        centred = [
            device.to_host(inner_products.centre_kernel(part, middle, layout)) for part in parts
        ]
        ends = np.concatenate(centred), np.concatenate(own)
        beside = [tuple(device.to_device(end[span]) for end in ends) for span in spans]

        def against(index: Ids) -> Float:
            near, found = device.to_device(rows[index]), []
            to_centre, near_own = (device.to_device(end[index]) for end in ends)
            for part, (c_x, s_x) in zip(parts, beside, strict=True):
                raw = inner_products.gram(part, near, layout)
                k = normalise(raw, c_x, to_centre, s_x, near_own, self._normalisation)
                found.append(device.to_host(k))
            return np.concatenate(found).astype(np.float64).T

        return against

    def read_rows(self, rows: Ids) -> Rows:
        """Unscaled rows of view 0 [row, column], read block by block."""
        out = np.empty((len(rows), self.layout.n_features), dtype=np.float32)
        index = rows // self.context.plan.block_rows
        for block_index in np.unique(index).tolist():
            block, here = self.context.plan.block(block_index), index == block_index
            stored = self.features.block(self._names.rows, block)[rows[here] - block.start]
            out[here] = unscale_rows(stored, self.layout)
        return out

    @property
    def features(self) -> StoreReader:
        """The feature store."""
        return self.context.reader("features")

    @cached_property
    def layout(self) -> FeatureLayout:
        """Layout of a row."""
        if not keeps_features(self.context):
            return sketch_layout(CONDENSED_WIDTH)
        return FeatureLayout.from_attributes(self.features.attributes["layout"])

    @cached_property
    def _centre_rows(self) -> dict[int, Float]:
        """c_x of view 0 [sample] of every block that a pass has seen in this process."""
        return {}

    @cached_property
    def _centre(self) -> Float:
        return np.asarray(self.features.array(self._names.centre))

    @property
    def _names(self) -> _CandidateRows:
        return FULL_ROWS if keeps_features(self.context) else CONDENSED_ROWS

    @cached_property
    def _normalisation(self) -> Normalisation:
        return Normalisation("ccos", inner_products.centre_self(self._centre))
