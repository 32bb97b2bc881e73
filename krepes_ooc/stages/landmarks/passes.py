"""Passes of a landmark sampler over view 0 of the features store, in the centred cosine kernel.

The rows are feature rows, or condensed rows where feature rows are not stored.
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
    """Names of the arrays of the features store that landmarks are chosen by."""

    rows: str
    self_kernel: str
    centre: str


FULL_ROWS = _CandidateRows("values", "self_kernel", "centre")
CONDENSED_ROWS = _CandidateRows("condensed", "condensed_self", "condensed_centre")


@dataclass(frozen=True)
class SelectionPasses:
    """Passes over the features that every sampler is made of.

    Args:
        features: the store ``features``.
        context: the landmarks stage.
        seed: seed of the recipe.
        count: number of landmarks.
    """

    features: StoreReader
    context: StageContext
    seed: int
    count: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments; a worker computes layout, centre and c_x itself."""
        return type(self), (self.features, self.context, self.seed, self.count)

    def partial(self, name: str) -> Path:
        """File of one finished round; removed when the stage is sealed."""
        return self.context.record.partials / f"{name}.npz"

    def weights(self, chosen: Ids) -> Float:
        """Number of samples nearest to each of the chosen store rows [landmark]; one pass."""
        to_chosen = self.kernel_to(chosen)

        def count(block: Block) -> Float:
            owner = self.per_rows(block, to_chosen, nearest)
            return np.bincount(owner, minlength=len(chosen)).astype(np.float64)

        return self.context.executor().reduce(count, list(self.context.plan.blocks()), np.add)

    def per_rows(
        self, block: Block, kernel: KernelMap, reduce: Callable[[Any], Any]
    ) -> npt.NDArray[Any]:
        """Apply a row-wise reduction to the kernel rows of one block, in short row ranges.

        Args:
            block: of samples, in view 0.
            kernel: map to the kernel rows; it goes to the device, and so does the reduction.
            reduce: from kernel rows [sample, landmark] to [sample, ...], an array of the host
                again in the result.
        """
        device = self.context.device
        stored = self.features.block(self._names.rows, block)
        s_x = self.features.block(self._names.self_kernel, block)
        on_device = to_device(device, kernel)
        reduce = to_device(device, reduce)
        # c_x does not depend on the landmarks: the first pass computes it for all later ones.
        known = self._centre_rows.get(block.index)
        c_x = np.empty(block.rows) if known is None else known
        # One product at a time: its rows in two types, the kernel and what its normalisation takes.
        row_bytes = 16 * len(kernel.landmarks) + 8 * self.layout.n_features
        step = device.rows_per_product(self.context.plan.sub_rows, block.rows, row_bytes)
        parts = []
        for start in range(0, block.rows, step):
            part = slice(start, start + step)
            rows = unscale_rows(stored[part], self.layout, device)
            if known is None:
                c_x[part] = device.to_host(on_device.centre_rows(rows))
            K = on_device.rows(rows, device.to_device(s_x[part]), device.to_device(c_x[part]))
            parts.append(device.to_host(reduce(K)))
        self._centre_rows[block.index] = c_x
        return np.concatenate(parts)

    def kernel_to(self, rows: Ids) -> KernelMap:
        """The kernel map of some store rows [row]."""
        return kernel_map.kernel_map(
            self.read_rows(rows), self.layout, self._centre, self._normalisation
        )

    def kernel_among(self, rows: Ids) -> Float:
        """Kernel of some store rows among themselves [row, row_], in float64."""
        device = self.context.device
        exact = device.to_device(self.read_rows(rows).astype(np.float64))
        centre = device.to_device(self._centre)
        K = kernel_map.landmark_kernel(exact, self.layout, centre, self._normalisation)
        values: Float = device.to_host(K)
        return values

    def kernel_rows_among(self, rows: Rows) -> Callable[[Ids], Float]:
        """The function from indices to kernel values [index, row] among the given rows.

        Args:
            rows: unscaled rows [row, column]; they stay on the device while the function lives.
        """
        layout = self.layout
        device = self.context.device
        row_bytes = 8 * self.layout.n_features
        step = device.rows_per_product(self.context.plan.sub_rows, len(rows), row_bytes)
        ranges = [slice(i, min(i + step, len(rows))) for i in range(0, len(rows), step)]
        on_device = device.to_device(rows)
        parts = [on_device[part, :] for part in ranges]
        # c_x and k(x, x) of all rows, once and not for every index.
        centre = device.to_device(self._centre)
        s = np.concatenate(
            [device.to_host(inner_products.self_kernel(part, layout)) for part in parts]
        )
        c = np.concatenate(
            [device.to_host(inner_products.centre_kernel(part, centre, layout)) for part in parts]
        )
        ends = [(device.to_device(c[part]), device.to_device(s[part])) for part in ranges]

        def kernel_rows(index: Ids) -> Float:
            # Few rows y against all rows x, whose products are those of a tall matrix.
            y = device.to_device(rows[index])
            c_y = device.to_device(c[index])
            s_y = device.to_device(s[index])
            values = []
            for part, (c_x, s_x) in zip(parts, ends, strict=True):
                raw = inner_products.gram(part, y, layout)
                k = normalise(raw, c_x, c_y, s_x, s_y, self._normalisation)
                values.append(device.to_host(k))
            return np.concatenate(values).astype(np.float64).T

        return kernel_rows

    def read_rows(self, rows: Ids) -> Rows:
        """Unscaled rows of view 0 [row, column], read block by block."""
        out = np.empty((len(rows), self.layout.n_features), dtype=np.float32)
        # Chunks are read once each, whatever the order of the rows.
        index = rows // self.context.plan.block_rows
        for block_index in np.unique(index).tolist():
            block = self.context.plan.block(block_index)
            in_block = index == block_index
            stored = self.features.block(self._names.rows, block)[rows[in_block] - block.start]
            out[in_block] = unscale_rows(stored, self.layout)
        return out

    @cached_property
    def layout(self) -> FeatureLayout:
        """Layout of a row."""
        # A condensed row is a plain vector: its kernel is the inner product, as of a sketch.
        if not keeps_features(self.context):
            return sketch_layout(CONDENSED_WIDTH)
        return FeatureLayout.from_attributes(self.features.attributes["layout"])

    @cached_property
    def _centre_rows(self) -> dict[int, Float]:
        """c_x of view 0 [sample] by block, computed in the first pass of this process."""
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
