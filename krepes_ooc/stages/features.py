"""Stage features: Jacobian rows of every view of every sample, written block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.algebra import kernel
from krepes_ooc.blocks import Block
from krepes_ooc.engine.budget import Need
from krepes_ooc.engine.executor import tree_fold
from krepes_ooc.errors import StageFailed, WorkspaceError
from krepes_ooc.layout import FeatureLayout
from krepes_ooc.network.features import FeatureMap, FeatureSettings, store_rows
from krepes_ooc.settings import setting, to_mapping
from krepes_ooc.stages.base import Cost, Stage, StageContext
from krepes_ooc.stages.inputs import CLEAN, Rows, check_finite
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.stages.writing import block_name, partial_path, seal_blocks, write_unit
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.files import read_arrays, write_arrays
from krepes_ooc.storage.records import Files
from krepes_ooc.storage.writer import StoreWriter
from krepes_ooc.widen import to_float32

Half = npt.NDArray[np.float16]
PART_ROWS = 512  # decides bits of the centre: a constant
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeaturesSettings(FeatureSettings):
    """Recipe key ``stages.features``."""

    persist: Literal["always"] = setting("always", about="whether the feature rows are kept")
    block_rows: int | Literal["auto"] = setting(
        "auto", about="samples of one block, a power of two", minimum=1
    )
    forward_batch: int = setting(256, about="samples of one forward pass", minimum=1)


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
        return Reopened, (self.context, None, self.layout, self.batch, probes)

    def opened(self) -> FeatureMap:
        """The shared feature map."""
        return self.shared

    def rows(self, positions: Ids, view: int) -> tuple[Half, Rows, str]:
        """Stored feature rows [sample, feature], network embedding [sample, output], source hash.

        Raises:
            DataError: a row is not finite; names the sample.
        """
        own = self.context.inputs.feature_map(self.opened())
        inputs, content = self.context.inputs.encode(positions, view)
        features, embeddings = [], []
        for start in range(0, len(positions), self.batch):
            self.context.stop.check()
            part, embedding = own.rows(inputs[start : start + self.batch])
            check_finite(part, positions[start : start + self.batch], "feature row")
            features.append(store_rows(part, self.layout))
            embeddings.append(embedding)
        return np.concatenate(features), np.concatenate(embeddings), content


@dataclass(frozen=True)
class Reopened(Featurizer):
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
        shared = self.context.inputs.open_features(settings, self.probes)
        if shared.layout != self.layout:
            raise WorkspaceError(
                "the network gives other feature scales on this worker",
                where=self.context.inputs.network_spec.factory,
                expected="the same weights, code and libraries on every worker",
                advice="check that all workers see the same files",
            )
        return shared


def unscaled(values: npt.NDArray[Any], layout: FeatureLayout) -> Rows:
    """Float32 feature rows behind stored ones."""
    rows: Rows = kernel.unscale(to_float32(values), layout)
    return rows


def in_parts(stored: Half) -> Iterator[Half]:
    """Short row ranges of a block, whose float32 copies stay in the cache."""
    return (stored[start : start + PART_ROWS] for start in range(0, len(stored), PART_ROWS))


def open_featurizer(context: StageContext) -> Featurizer:
    """The featurizer of a sealed features store, for landmarks, audited and new samples."""
    attributes = context.reader("features").attributes
    settings = features_settings(context)
    shared = context.inputs.open_features(settings, attributes["probes"])
    context.inputs.check_bits(str(attributes["krepes"]["digest"]))
    layout = FeatureLayout.from_attributes(attributes["layout"])
    return Featurizer(context, shared, layout, settings.forward_batch)


def features_settings(context: StageContext) -> FeaturesSettings:
    """Settings that the sealed features were computed with."""
    from krepes_ooc.settings import read_settings

    begun = context.workspace.record("features", "features").begun() or {}
    return read_settings(FeaturesSettings, begun.get("settings"), "features")


def run(context: StageContext) -> None:
    """Compute and write the missing blocks, fold the centre, seal."""
    from krepes_ooc.network.selfcheck import self_check

    settings, inputs, plan = context.settings, context.inputs, context.plan
    shared = inputs.open_features(settings)
    inputs.check_bits(context.digest)
    check_rows = inputs.order.positions(0, min(2, plan.n_samples))
    report = self_check(inputs.network, shared, inputs.encode(check_rows, CLEAN)[0])
    context.progress.note(f"self-check: {report.words}")
    writer = context.workspace.writer(_spec(context, shared.layout), context.digest)
    writer.create()
    work = _Work(context, Featurizer(context, shared, shared.layout, plan.forward_batch), writer)
    files = work.run()
    described = shared.describe()
    attributes = {
        "probes": described.pop("probes"),
        "layout": shared.layout.to_attributes(),
        "network": described,
        "self_check": {k: v for k, v in to_mapping(report).items() if k != "seconds"},
        "block_plan": plan.to_attributes(),
        "views": inputs.views.describe(),
        "order": {"kind": inputs.source_spec.order, "seed": inputs.seed},
    }
    seal_blocks(context, writer, files, {"centre": work.centre()}, attributes)


@dataclass(frozen=True)
class _Work:
    """The shards of one run: a shard writes its missing blocks and folds all of its rows."""

    context: StageContext
    featurizer: Featurizer
    writer: StoreWriter

    @property
    def layout(self) -> FeatureLayout:
        return self.featurizer.layout

    def run(self) -> Files:
        context, plan = self.context, self.context.plan
        done = context.record.done()
        context.progress.begin("features", plan.n_blocks, len(done))
        files = {key: value for unit in done.values() for key, value in unit.files.items()}
        shards = context.mine(range(plan.n_shards))
        for written in context.executor().map(partial(self._shard, done=set(done)), shards):
            files |= written
        context.end_share()
        return files

    def centre(self) -> npt.NDArray[np.float64]:
        """Mean feature moment over all views and samples, folded in fixed order."""
        total = tree_fold(self.context.plan.n_shards, self._partial, np.add)
        return np.asarray(
            total / (self.context.plan.n_samples * self.context.inputs.view_spec.count)
        )

    def _partial(self, index: int) -> npt.NDArray[np.float64]:
        part = read_arrays(partial_path(self.context, "centre", index))
        if part is None:
            raise StageFailed(
                f"the partial centre of shard {index} is damaged",
                where="features",
                advice="run the same command again: it is computed anew",
            )
        return part["centre"]

    def _shard(self, index: int, done: set[str]) -> Files:
        """Write the missing blocks of one shard and fold all of its rows; files written."""
        written: Files = {}
        path = partial_path(self.context, "centre", index)
        folded = read_arrays(path) is not None
        total = np.zeros(self.layout.n_moments)
        for block in self.context.plan.shard(index):
            self.context.stop.check()
            if block_name(block) not in done:
                written |= self._block(block)
            if not folded:
                total += self._fold(block)
        if not folded:
            write_arrays(path, {"centre": total}, self.context.record.temp)
        return written

    def _block(self, block: Block) -> Files:
        positions, layout = (
            self.context.inputs.order.positions(block.start, block.stop),
            self.layout,
        )
        values: list[tuple[str, int, npt.NDArray[Any]]] = [("sample_id", 0, positions)]
        content = ""
        for view in range(self.context.inputs.view_spec.count):
            stored, _, content = self.featurizer.rows(positions, view)
            own = [
                np.asarray(kernel.self_kernel(unscaled(part, layout), layout))
                for part in in_parts(stored)
            ]
            values += [("values", view, stored), ("self_kernel", view, np.concatenate(own))]
        return write_unit(self.context, self.writer, block, values, content)[1]

    def _fold(self, block: Block) -> npt.NDArray[np.float64]:
        """Sum of the stored rows' moments; read back, so that a resumed fold has the same bits."""
        reader, layout = self.context.workspace.reader("features"), self.layout
        views = range(self.context.inputs.view_spec.count)
        sums = (
            kernel.centre_sum(unscaled(part, layout), layout)
            for view in views
            for part in in_parts(reader.block("values", block, view))
        )
        return np.asarray(sum(sums))


def _spec(context: StageContext, layout: FeatureLayout) -> StoreSpec:
    sizes = {
        "view": context.inputs.view_spec.count,
        "sample": context.plan.n_samples,
        "feature": layout.n_features,
        "moment": layout.n_moments,
    }
    contract = load_contract("features")
    return StoreSpec(contract, sizes, block_rows=context.plan.block_rows)


def predict(shape: AuditShape, settings: FeaturesSettings) -> Cost:
    """Three times the forward pass for each probe, and the rows on disk.

    A worker holds one block of every view in float16, one view of it once more while its batches
    are joined, the activations and gradients of one batch, and the sums of the centre.
    """
    rows, width = shape.plan.block_rows, shape.n_features
    block = rows * width * (2 * shape.n_views + 4)
    batch = 16 * shape.plan.forward_batch * width
    disk = shape.stored_rows * (shape.n_views * (2 * width + 8) + 8) + 8 * shape.n_moments
    passes = 6.0 * shape.n_parameters + 2.0 * shape.n_moments
    flops = passes * shape.plan.n_samples * shape.n_views
    need = Need(8 * shape.n_moments, block + batch + 24 * shape.n_moments)
    return Cost(shape.plan.n_blocks, disk, need, flops)


STAGE = Stage(
    name="features",
    version=2,
    reads=("source", "network", "views"),
    store="features",
    settings=FeaturesSettings,
    run=run,
    predict=predict,
    about="Jacobian rows of every view of every sample",
    spreads="shards",
)
