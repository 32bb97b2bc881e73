"""Stored feature rows of any samples: encode, differentiate, scale and round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.core.settings import read_recorded_settings, setting
from krepes_ooc.engine.device import HOST, Array, Device, is_host
from krepes_ooc.errors import DataError, WorkspaceError
from krepes_ooc.jacobian.feature_map import FeatureMap, FeatureSettings
from krepes_ooc.jacobian.float16_rows import store_rows
from krepes_ooc.stages.base.inputs import Rows, check_finite
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.features import inner_products
from krepes_ooc.storage.store_reader import StoreReader

Half = npt.NDArray[np.float16]
Ids = npt.NDArray[np.int64]
PART_ROWS = 512  # decides bits of the centre: a constant


@dataclass(frozen=True)
class FeaturesSettings(FeatureSettings):
    """Recipe key ``stages.features``."""

    persist: Literal["always", "auto", "never"] = setting(
        "always",
        about="whether feature rows are kept; never: the kernel stage computes them again; auto: "
        "never if they are exact factors and longer than a kernel row",
    )
    block_rows: int | Literal["auto"] = setting(
        "auto", about="samples of one block, a power of two", minimum=1
    )
    forward_batch: int = setting(256, about="samples of one forward pass", minimum=1)

    def keeps_rows(self, layout: FeatureLayout, kernel_row_bytes: int) -> bool:
        """Whether feature rows are stored, decided once, when the features are begun."""
        if self.persist != "auto":
            return self.persist == "always"
        return layout.is_sketch or 2 * layout.n_features <= kernel_row_bytes


@dataclass(frozen=True)
class Featurizer:
    """Stored rows of samples: encode, differentiate, scale and round.

    Args:
        context: the stage; its settings or the features store say how.
        shared: the feature map; every thread works on its own copy.
        layout: the layout of the store.
        batch: samples of one forward pass.
    """

    context: StageContext
    shared: FeatureMap
    layout: FeatureLayout
    batch: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach a worker as the probes: it loads the network from its files."""
        probes = self.shared.describe()["probes"]
        return WorkerFeaturizer, (self.context, None, self.layout, self.batch, probes)

    def opened(self) -> FeatureMap:
        """The shared feature map."""
        return self.shared

    def rows(self, positions: Ids, view: int) -> tuple[Half, Rows, str]:
        """Stored feature rows [sample, feature], network embedding [sample, output], source hash.

        Raises:
            DataError: a row is not finite; names the sample.
        """
        own = self.context.recipe.feature_map(self.opened(), self.context.device.torch)
        inputs, content = self.context.recipe.encode(positions, view)
        features, embeddings = [], []
        for start in range(0, len(positions), self.batch):
            self.context.stop.check()
            part, embedding = own.rows(inputs[start : start + self.batch])
            check_finite(part, positions[start : start + self.batch], "feature row")
            features.append(store_rows(part, self.layout))
            embeddings.append(embedding)
        return np.concatenate(features), np.concatenate(embeddings), content

    def rows_on_device(self, positions: Ids, view: int) -> tuple[Array, str]:
        """The same stored rows for work on the device, and the source hash.

        They are left there if torch has made them there, else they are the host's.

        Raises:
            DataError: a row is not finite; names the sample.
        """
        device = self.context.device
        if is_host(device) or not self._is_on_device:
            stored, _, content = self.rows(positions, view)
            return stored, content
        from krepes_ooc.jacobian.float16_rows import store_rows_on_device

        own = self.context.recipe.feature_map(self.opened(), device.torch)
        inputs, content = self.context.recipe.encode(positions, view)
        parts = []
        for start in range(0, len(positions), self.batch):
            self.context.stop.check()
            part = slice(start, start + self.batch)
            made, _ = own.tensors(inputs[part])
            rounded, sound = store_rows_on_device(made, self.layout)
            if not sound:
                self._look_at(made, positions[part])
            parts.append(device.from_torch(rounded))
        return array_namespace(*parts).concat(parts), content

    def _look_at(self, made: Any, positions: Ids) -> None:
        """Let the host say what is wrong with the rows of a batch, if anything is.

        Raises:
            DataError: a row is not finite; names the sample.
        """
        features = made.cpu().numpy()
        check_finite(features, positions, "feature row")
        store_rows(features, self.layout)

    @property
    def _is_on_device(self) -> bool:
        """Whether torch computes on the device of the blocks."""
        from krepes_ooc.network.torch_device import available_device

        return available_device(self.context.device.torch) == self.context.device.torch


@dataclass(frozen=True)
class WorkerFeaturizer(Featurizer):
    """The featurizer of a stage on a worker: the network is opened with the first rows.

    Args:
        probes: those of the client.
    """

    probes: npt.ArrayLike

    def opened(self) -> FeatureMap:
        """The shared feature map of this process.

        Raises:
            WorkspaceError: the network has other scales here: other weights or libraries.
        """
        known = self.context.settings
        own = isinstance(known, FeaturesSettings)
        settings = known if own else features_settings(self.context)
        shared = self.context.recipe.open_features(settings, self.probes)
        if shared.layout != self.layout:
            raise WorkspaceError(
                "the network gives other feature scales on this worker",
                where=self.context.recipe.network_spec.factory,
                expected="the same weights, code and libraries on every worker",
                advice="check that all workers see the same files",
            )
        return shared


def unscale_rows(values: Array, layout: FeatureLayout, device: Device = HOST) -> Any:
    """Float32 feature rows behind stored ones, on the device."""
    return inner_products.unscale(device.to_float32(values), layout)


def on_host(stored: Array, device: Device) -> Half:
    """Stored rows of either place, on the host."""
    return np.asarray(
        stored if isinstance(stored, np.ndarray) else device.to_host(stored), dtype=np.float16
    )


def row_chunks(stored: Array) -> Iterator[Array]:
    """Short row ranges of a block, whose float32 copies stay in the cache."""
    rows = stored.shape[0]
    return (stored[i : min(i + PART_ROWS, rows), ...] for i in range(0, rows, PART_ROWS))


def self_kernel(
    stored: Array, layout: FeatureLayout, device: Device = HOST
) -> npt.NDArray[np.float64]:
    """k(x, x) [sample] of stored rows."""
    rows = (unscale_rows(part, layout, device) for part in row_chunks(stored))
    return np.concatenate(
        [device.to_host(inner_products.self_kernel(part, layout)) for part in rows]
    )


def open_featurizer(context: StageContext) -> Featurizer:
    """The featurizer of a sealed features store, for landmarks, audited and new samples."""
    attributes = context.reader("features").attributes
    settings = features_settings(context)
    shared = context.recipe.open_features(settings, attributes["probes"])
    context.recipe.check_network_outputs(str(attributes["krepes"]["digest"]))
    layout = FeatureLayout.from_attributes(attributes["layout"])
    return Featurizer(context, shared, layout, settings.forward_batch)


def features_settings(context: StageContext) -> FeaturesSettings:
    """Settings that the sealed features were computed with."""
    begun = context.workspace.record("features", "features").begun() or {}
    return read_recorded_settings(FeaturesSettings, begun.get("settings"), "features")


# Rounding of another processor stays far below, another sample far above.
SAME = 1e-3


class RowSource(Protocol):
    """Stored feature rows of blocks; the same bits from any supply."""

    def rows(self, block: Block, view: int) -> Array:
        """Stored feature rows [sample, feature] of one block in one view, for the device.

        They lie there already, or on the host.
        """


@dataclass(frozen=True)
class StoredRowSource:
    """Rows that the features store keeps."""

    features: StoreReader

    def rows(self, block: Block, view: int) -> Half:
        """Rows as they lie on the disk."""
        return self.features.block("values", block, view)


@dataclass(frozen=True)
class ComputedRowSource:
    """Rows computed through the network, for a features store that keeps none."""

    featurizer: Featurizer
    features: StoreReader

    def rows(self, block: Block, view: int) -> Array:
        """Rows as the features stage computed them.

        Raises:
            DataError: k(x, x) is no longer what that stage noted; names the sample.
        """
        context = self.featurizer.context
        positions = context.recipe.order.positions(block.start, block.stop)
        stored, _ = self.featurizer.rows_on_device(positions, view)
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
    assert context.sizes is not None
    return context.sizes.keeps_features


def open_row_source(context: StageContext) -> RowSource:
    """The rows behind a sealed features store."""
    features = context.reader("features")
    if keeps_features(context):
        return StoredRowSource(features)
    return ComputedRowSource(open_featurizer(context), features)


def computing_bytes(shape: AuditSizes, rows: int | None = None) -> int:
    """Memory of a worker that computes some rows of one view: joining its batches, and one batch.

    Args:
        shape: sizes.
        rows: how many, by default those of a block.
    """
    rows, width = shape.plan.block_rows if rows is None else rows, shape.n_features
    return rows * width * 6 + 16 * shape.plan.forward_batch * width


def computing_flops(shape: AuditSizes) -> float:
    """Operations that all rows of all views take: three times the forward pass."""
    return 6.0 * shape.n_parameters * shape.plan.n_samples * shape.n_views
