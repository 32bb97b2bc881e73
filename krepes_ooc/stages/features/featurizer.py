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
from krepes_ooc.sources.base import check_finite
from krepes_ooc.stages.base.cost import Quantity, Term, f16, f32
from krepes_ooc.stages.base.inputs import VIEWED_BYTES, VIEWED_ITEMSIZE, Rows
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.features import inner_products
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.views.spec import CLEAN

Half = npt.NDArray[np.float16]
Ids = npt.NDArray[np.int64]
# Rows of one product over stored rows: a constant, because it decides bits of the centre.
PART_ROWS = 512
# Relative difference of k(x, x): rounding of another processor is smaller, another sample larger.
SAME = 1e-3
# Copies of the raw samples that views and encoding hold at their peak, measured.
VIEW_COPIES = 11


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
    forward_batch: int | Literal["auto"] = setting(
        256,
        about="samples of one forward pass; auto: as many, up to 256, as fit the memory",
        minimum=1,
    )

    def keeps_rows(self, layout: FeatureLayout, kernel_row_bytes: int) -> bool:
        """Whether feature rows are stored; decided once, when the features are begun.

        Args:
            layout: the factors of a feature row.
            kernel_row_bytes: bytes of a stored kernel row.
        """
        if self.persist != "auto":
            return self.persist == "always"
        # Exact factors longer than a kernel row are cheaper to compute again than to store.
        return layout.is_sketch or 2 * layout.n_features <= kernel_row_bytes


@dataclass(frozen=True)
class Featurizer:
    """Stored feature rows of any samples: encode, differentiate, scale and round.

    Args:
        recipe: source, network and views.
        context: the running stage, for device and stop flag.
        settings: settings of the features stage.
        shared: the feature map; every thread works on a copy.
        layout: layout of the stored rows.
    """

    recipe: RecipeInputs
    context: StageContext
    settings: FeaturesSettings
    shared: FeatureMap
    layout: FeatureLayout

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the probes; a worker loads the network from its files."""
        probes = self.shared.describe()["probes"]
        declared = (self.recipe, self.context, self.settings)
        return WorkerFeaturizer, (*declared, None, self.layout, probes)

    @property
    def batch(self) -> int:
        """Samples of one forward pass."""
        return self.context.plan.forward_batch

    def opened(self) -> FeatureMap:
        """The shared feature map."""
        return self.shared

    def rows(self, positions: Ids, view: int) -> tuple[Half, Rows, str]:
        """Stored feature rows [sample, feature], network embedding [sample, output], source hash.

        Raises:
            DataError: a row is not finite; names the sample.
        """
        feature_map = self.recipe.feature_map(self.opened(), self.context.device.torch)
        inputs, content = self.recipe.encode(positions, view)
        features = []
        embeddings = []
        # One forward and backward pass per batch bounds the memory of activations.
        for start in range(0, len(positions), self.batch):
            self.context.stop.check()
            part, embedding = feature_map.rows(inputs[start : start + self.batch])
            check_finite(part, positions[start : start + self.batch], "feature row")
            features.append(store_rows(part, self.layout))
            embeddings.append(embedding)
        return np.concatenate(features), np.concatenate(embeddings), content

    def embedding(self, positions: Ids) -> Rows:
        """Network embedding [sample, output] of clean samples, without their rows."""
        feature_map = self.recipe.feature_map(self.opened(), self.context.device.torch)
        inputs, _ = self.recipe.encode(positions, CLEAN)
        parts = []
        for start in range(0, len(positions), self.batch):
            self.context.stop.check()
            parts.append(feature_map.embedding(inputs[start : start + self.batch]))
        return np.concatenate(parts)

    def rows_on_device(self, positions: Ids, view: int) -> tuple[Array, str]:
        """Stored rows [sample, feature] as ``rows`` gives them, for products on the device.

        Rows that torch computed on the device stay there; otherwise they are on the host. The
        second value is the source hash.

        Raises:
            DataError: a row is not finite; names the sample.
        """
        device = self.context.device
        if is_host(device) or not self._is_on_device:
            stored, _, content = self.rows(positions, view)
            return stored, content
        from krepes_ooc.jacobian.float16_rows import store_rows_on_device

        feature_map = self.recipe.feature_map(self.opened(), device.torch)
        inputs, content = self.recipe.encode(positions, view)
        parts = []
        for start in range(0, len(positions), self.batch):
            self.context.stop.check()
            part = slice(start, start + self.batch)
            features, _ = feature_map.tensors(inputs[part])
            rounded, is_valid = store_rows_on_device(features, self.layout)
            # The device returns one flag per batch; the host finds the row and names its sample.
            if not is_valid:
                self._check_on_host(features, positions[part])
            parts.append(device.from_torch(rounded))
        return array_namespace(*parts).concat(parts), content

    def _check_on_host(self, features: Any, positions: Ids) -> None:
        """Check the rows of a batch, a tensor of the device, by the checks of the host.

        Raises:
            DataError: a row is not finite, or outside the range of float16; names the sample.
        """
        on_host = features.cpu().numpy()
        check_finite(on_host, positions, "feature row")
        store_rows(on_host, self.layout)

    @property
    def _is_on_device(self) -> bool:
        """Whether torch computes on the device of the blocks."""
        from krepes_ooc.network.torch_device import available_device

        return available_device(self.context.device.torch) == self.context.device.torch


@dataclass(frozen=True)
class WorkerFeaturizer(Featurizer):
    """Featurizer on a worker, which opens the network with the first rows.

    Args:
        probes: output probes that the client uses.
    """

    probes: npt.ArrayLike

    def opened(self) -> FeatureMap:
        """The shared feature map of this process.

        Raises:
            WorkspaceError: the network has other scales here: other weights or libraries.
        """
        # Scales are measured on calibration samples: other weights or libraries change them.
        shared = self.recipe.open_features(self.settings, self.probes)
        if shared.layout != self.layout:
            raise WorkspaceError(
                "the network gives other feature scales on this worker",
                where=self.recipe.network_spec.factory,
                expected="the same weights, code and libraries on every worker",
                advice="check that all workers see the same files",
            )
        return shared


def unscale_rows(values: Array, layout: FeatureLayout, device: Device = HOST) -> Any:
    """Float32 feature rows of stored rows, on the device: unscaled by their powers of two."""
    return inner_products.unscale(device.to_float32(values), layout)


def on_host(stored: Array, device: Device) -> Half:
    """Stored rows of host or device, on the host."""
    return np.asarray(
        stored if isinstance(stored, np.ndarray) else device.to_host(stored), dtype=np.float16
    )


def row_chunks(stored: Array) -> Iterator[Array]:
    """Short row ranges of a block, whose float32 copies fit the processor's cache."""
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


def open_featurizer(
    features: StoreReader, recipe: RecipeInputs, context: StageContext
) -> Featurizer:
    """The featurizer of a sealed features store, for landmarks, audited and further samples.

    Args:
        features: the store ``features``.
        recipe: source and network, and views for other rows than clean ones.
        context: the running stage.
    """
    attributes = features.attributes
    settings = features_settings(context)
    shared = recipe.open_features(settings, attributes["probes"])
    # The same weights and factory can still give other outputs, under another torch for example.
    recipe.check_network_outputs(str(attributes["krepes"]["digest"]))
    layout = FeatureLayout.from_attributes(attributes["layout"])
    return Featurizer(recipe, context, settings, shared, layout)


def features_settings(context: StageContext) -> FeaturesSettings:
    """Settings that the sealed features were computed with."""
    begun = context.workspace.record("features", "features").begun() or {}
    return read_recorded_settings(FeaturesSettings, begun.get("settings"), "features")


class RowSource(Protocol):
    """Source of the stored feature rows of blocks; every implementation gives the same bits."""

    def rows(self, block: Block, view: int) -> Array:
        """Stored feature rows [sample, feature] of one block in one view, on host or device."""


@dataclass(frozen=True)
class StoredRowSource:
    """Rows read from the features store.

    Args:
        features: the store ``features``.
    """

    features: StoreReader

    def rows(self, block: Block, view: int) -> Half:
        """Float16 rows [sample, feature] of one block in one view."""
        return self.features.block("values", block, view)


@dataclass(frozen=True)
class ComputedRowSource:
    """Rows computed by the network, for a features store without rows.

    Args:
        featurizer: of the sealed features.
        features: the store ``features``.
    """

    featurizer: Featurizer
    features: StoreReader

    def rows(self, block: Block, view: int) -> Array:
        """Rows [sample, feature] as the features stage computed them.

        Raises:
            DataError: k(x, x) differs from the stored one; names the sample.
        """
        featurizer = self.featurizer
        positions = featurizer.recipe.order.positions(block.start, block.stop)
        stored, _ = featurizer.rows_on_device(positions, view)
        # The stored k(x, x) detects a source, view or network that changed since the features.
        expected = self.features.block("self_kernel", block, view)
        computed = self_kernel(stored, featurizer.layout, featurizer.context.device)
        wrong = np.flatnonzero(~(np.abs(computed - expected) <= SAME * np.abs(expected)))
        if len(wrong):
            raise DataError(
                f"k(x, x) is {computed[wrong[0]]:.6g} and was {expected[wrong[0]]:.6g}",
                where=f"sample {int(positions[wrong[0]])}, view {view}",
                expected="the sample that the features stage saw",
                advice="undo the change of source, view or network, or set features.persist to "
                "always",
            )
        return stored


def keeps_features(context: StageContext) -> bool:
    """Whether the features store holds feature rows, as decided when it was begun."""
    assert context.sizes is not None
    return context.sizes.keeps_features


def open_row_source(
    features: StoreReader, recipe: RecipeInputs, context: StageContext
) -> RowSource:
    """The row source of a sealed features store.

    Args:
        features: the store ``features``.
        recipe: source, network and views; used only if the store holds no rows.
        context: the running stage.
    """
    if keeps_features(context):
        return StoredRowSource(features)
    return ComputedRowSource(open_featurizer(features, recipe, context), features)


def computing_terms(sizes: AuditSizes, rows: int | None = None) -> tuple[Term, ...]:
    """Memory of a worker that computes rows of one view.

    Args:
        sizes: sizes of the audit.
        rows: number of rows (default: those of a block).
    """
    rows = sizes.plan.block_rows if rows is None else rows
    return (
        Term(
            "feature rows of a view in float16, in batches and joined",
            f16(rows, sizes.n_features),
            3,
        ),
        *input_terms(sizes, rows),
        batch_term(sizes),
    )


def input_terms(sizes: AuditSizes, rows: int) -> tuple[Term, ...]:
    """Memory of reading and encoding so many samples, at most those of a block."""
    rows = min(rows, sizes.plan.block_rows, sizes.plan.n_samples)
    viewed = max(VIEWED_ITEMSIZE * sizes.n_values, sizes.row_bytes)
    return (
        Term("samples as the source reads them", rows * sizes.row_bytes),
        Term("network inputs", f32(rows, sizes.n_inputs)),
        Term("views of a few samples", min(rows * viewed, max(viewed, VIEWED_BYTES)), VIEW_COPIES),
    )


def batch_term(sizes: AuditSizes) -> Term:
    """Memory of one batch: as measured, and at least its rows in float32."""
    batch = f32(sizes.plan.forward_batch, sizes.n_features)
    if sizes.batch_bytes > 4 * batch:
        return Term("activations, gradients and rows of a batch, measured", sizes.batch_bytes)
    return Term("activations, gradients and rows of a batch", batch, 4)


def computing_bytes(sizes: AuditSizes, rows: int | None = None) -> int:
    """Sum of ``computing_terms``, in bytes."""
    return Quantity.of(*computing_terms(sizes, rows)).bytes


def computing_flops(sizes: AuditSizes) -> float:
    """Operations of the rows of all views."""
    return sizes.row_operations * sizes.plan.n_samples * sizes.n_views
