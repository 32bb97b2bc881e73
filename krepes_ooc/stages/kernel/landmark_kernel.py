"""The landmark kernel K_mm [landmark, landmark_] and kernel rows of further samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.engine.device import HOST, Array, Device, is_host, to_device
from krepes_ooc.stages.base.inputs import Rows
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.features.featurizer import (
    unscale_rows,
)
from krepes_ooc.stages.kernel.kernel_map import KernelMap, kernel_map
from krepes_ooc.stages.kernel.normalisation import Mode, Normalisation
from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LandmarkKernel:
    """Kernel rows against the sealed landmarks, one definition for store, audit and new samples.

    Args:
        kernel_map: landmarks, centre and normalisation.
        layout: layout of the feature rows.
        sub_rows: rows of one matrix product.
        device: where rows are computed.
    """

    kernel_map: KernelMap
    layout: FeatureLayout
    sub_rows: int
    device: Device = HOST

    def rows(self, stored: Array, own: Float) -> Rows:
        """Normalised kernel rows [sample, landmark] of stored feature rows [sample, feature].

        Args:
            stored: float16 rows, of the host or left on the device.
            own: their k(x, x) [sample].
        """
        out = np.empty((stored.shape[0], len(self.kernel_map.landmarks)), dtype=np.float32)
        for part, rows in self._parts(stored, own):
            out[part] = self.device.to_host(rows)
        return out

    def rows_on_device(self, stored: Array, own: Float) -> Any:
        """The same rows, left on the device."""
        if is_host(self.device):
            return self.rows(stored, own)
        parts = [rows for _, rows in self._parts(stored, own)]
        return parts[0] if len(parts) == 1 else array_namespace(*parts).concat(parts)

    def _parts(self, stored: Array, own: Float) -> Iterator[tuple[slice, Any]]:
        row_bytes = 12 * self._on_device.landmarks.shape[0] + 8 * self.layout.n_features
        count = stored.shape[0]
        step = self.device.rows_per_product(self.sub_rows, count, row_bytes)
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            rows = unscale_rows(stored[part, ...], self.layout, self.device)
            yield part, self._on_device.rows(rows, self.device.to_device(own[part]))

    @cached_property
    def _on_device(self) -> KernelMap:
        return to_device(self.device, self.kernel_map)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach another process without what lies on the device of this one."""
        return LandmarkKernel, (self.kernel_map, self.layout, self.sub_rows, self.device)


def open_landmark_kernel(context: StageContext, normalise: Mode) -> LandmarkKernel:
    """The kernel against the sealed landmarks."""
    scale = mean_self_kernel(context) if normalise == "mean-diagonal" else 1.0
    landmarks, sub_rows = context.reader("landmarks"), context.plan.sub_rows
    return read_landmark_kernel(landmarks, normalise, scale, sub_rows, context.device)


def read_landmark_kernel(
    reader: StoreReader, normalise: Mode, scale: float, sub_rows: int, device: Device = HOST
) -> LandmarkKernel:
    """The kernel against the landmarks of one store, with nothing read besides.

    Args:
        reader: the store landmarks.
        normalise: how values are normalised.
        scale: the mean self kernel for ``mean-diagonal``, else 1.
        sub_rows: rows of one matrix product.
        device: where rows are computed.
    """
    layout = FeatureLayout.from_attributes(reader.attributes["layout"])
    centre = reader.array("centre")
    normalisation = Normalisation(normalise, float(reader.attributes["centre_self"]), scale)
    rows = unscale_rows(reader.array("features"), layout)
    mapped = kernel_map(rows, layout, centre, normalisation)
    return LandmarkKernel(mapped, layout, sub_rows, device)


def mean_self_kernel(context: StageContext) -> float:
    """Mean k(x, x) over all views and samples, block sums in fixed order."""
    features = context.reader("features")
    views = range(features.info("self_kernel").shape[0])
    total = sum(
        float(features.block("self_kernel", block, view).sum())
        for block in context.plan.blocks()
        for view in views
    )
    return total / (context.plan.n_samples * len(views))
