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
from krepes_ooc.stages.features.featurizer import unscale_rows
from krepes_ooc.stages.kernel.kernel_map import KernelMap, kernel_map
from krepes_ooc.stages.kernel.normalisation import Mode, Normalisation
from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LandmarkKernel:
    """Kernel rows against the sealed landmarks: for the store, the audit and new samples.

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

    def rows(self, stored: Array, self_kernel_x: Float) -> Rows:
        """Normalised kernel rows [sample, landmark] of stored feature rows [sample, feature].

        Args:
            stored: float16 rows, on host or device.
            self_kernel_x: k(x, x) [sample] of these rows.
        """
        out = np.empty((stored.shape[0], len(self.kernel_map.landmarks)), dtype=np.float32)
        for part, rows in self._parts(stored, self_kernel_x):
            out[part] = self.device.to_host(rows)
        return out

    def rows_on_device(self, stored: Array, self_kernel_x: Float) -> Any:
        """The rows of ``rows``, on the device."""
        if is_host(self.device):
            return self.rows(stored, self_kernel_x)
        parts = [rows for _, rows in self._parts(stored, self_kernel_x)]
        return parts[0] if len(parts) == 1 else array_namespace(*parts).concat(parts)

    def _parts(self, stored: Array, self_kernel_x: Float) -> Iterator[tuple[slice, Any]]:
        """Row ranges and their kernel rows on the device, one matrix product each."""
        # A row takes its kernel values, their product and its features in float32 and float16.
        row_bytes = 12 * self._on_device.landmarks.shape[0] + 8 * self.layout.n_features
        count = stored.shape[0]
        step = self.device.rows_per_product(self.sub_rows, count, row_bytes)
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            rows = unscale_rows(stored[part, ...], self.layout, self.device)
            yield part, self._on_device.rows(rows, self.device.to_device(self_kernel_x[part]))

    @cached_property
    def _on_device(self) -> KernelMap:
        return to_device(self.device, self.kernel_map)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the host's arrays; another process uploads them to its own device."""
        return LandmarkKernel, (self.kernel_map, self.layout, self.sub_rows, self.device)


def open_landmark_kernel(
    features: StoreReader, landmarks: StoreReader, normalise: Mode, context: StageContext
) -> LandmarkKernel:
    """The kernel against the sealed landmarks, on the device of a stage.

    Args:
        features: the store ``features``; read for ``mean-diagonal`` alone.
        landmarks: the store ``landmarks``.
        normalise: mode of the normalisation.
        context: the running stage.
    """
    scale = mean_self_kernel(features, context) if normalise == "mean-diagonal" else 1.0
    sub_rows = context.plan.sub_rows
    return read_landmark_kernel(landmarks, normalise, scale, sub_rows, context.device)


def read_landmark_kernel(
    landmarks: StoreReader, normalise: Mode, scale: float, sub_rows: int, device: Device = HOST
) -> LandmarkKernel:
    """The kernel against the sealed landmarks, from their store alone.

    Args:
        landmarks: the store ``landmarks``.
        normalise: mode of the normalisation.
        scale: the mean self kernel for ``mean-diagonal``, else 1.
        sub_rows: rows of one matrix product.
        device: where rows are computed.
    """
    layout = FeatureLayout.from_attributes(landmarks.attributes["layout"])
    centre = landmarks.array("centre")
    # c0 comes from the store: one value for every stage and every explained sample.
    centre_self = float(landmarks.attributes["centre_self"])
    normalisation = Normalisation(normalise, centre_self, scale)
    rows = unscale_rows(landmarks.array("features"), layout)
    return LandmarkKernel(kernel_map(rows, layout, centre, normalisation), layout, sub_rows, device)


def mean_self_kernel(features: StoreReader, context: StageContext) -> float:
    """Mean of k(x, x) over all views and samples, block sums in fixed order."""
    # One sum per chunk, so that no copy of an n-sized array is made.
    views = range(features.info("self_kernel").shape[0])
    total = sum(
        float(features.block("self_kernel", block, view).sum())
        for block in context.plan.blocks()
        for view in views
    )
    return total / (context.plan.n_samples * len(views))
