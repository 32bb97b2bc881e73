"""Stage features: Jacobian rows of every view of every sample, written block by block.

With ``persist: never`` the rows are computed, folded into the centre and condensed, and only what
later stages cannot do without is kept: k(x, x), the centre and the condensed rows of view 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.feature_layout import CONDENSED_WIDTH, FeatureLayout, sketch_layout
from krepes_ooc.core.files import Files, read_arrays, write_arrays
from krepes_ooc.core.settings import to_mapping
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.engine.executor import tree_reduce
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.inputs import CLEAN
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import block_name, partial_path, seal_blocks, write_unit
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.condensed import CountSketch
from krepes_ooc.stages.features.featurizer import (
    PART_ROWS,
    ComputedRowSource,
    FeaturesSettings,
    Featurizer,
    RowSource,
    StoredRowSource,
    computing_bytes,
    computing_flops,
    keeps_features,
    on_host,
    row_chunks,
    self_kernel,
    unscale_rows,
)
from krepes_ooc.stages.features.row_cost_record import describe_rows, save_row_cost
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_writer import StoreWriter

Values = list[tuple[str, int, npt.NDArray[Any]]]
_ALWAYS = ("self_kernel", "sample_id", "centre")
_FULL, _CONDENSED = ("values",), ("condensed", "condensed_self", "condensed_centre")


@dataclass(frozen=True)
class FeaturesInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    recipe: RecipeInputs = recipe_parts("source", "network", "views")


def run(inputs: FeaturesInputs, context: StageContext) -> None:
    """Compute and write the missing blocks, fold the centre, seal."""
    from krepes_ooc.jacobian.self_check import self_check

    settings, recipe, plan = context.settings, inputs.recipe, context.plan
    begun = _begun_attributes(context)
    shared = recipe.open_features(settings, begun.get("probes"))
    known = begun.get("layout")
    layout = shared.layout if known is None else FeatureLayout.from_attributes(known)
    recipe.check_network_outputs(context.digest)
    _note_placement(context)
    check_rows = recipe.order.positions(0, min(2, plan.n_samples))
    report = self_check(recipe.network, shared, recipe.encode(check_rows, CLEAN)[0])
    context.progress.note(f"self-check: {report.words}")
    words, cost = describe_rows(context.audit_inputs, shared, settings)
    save_row_cost(context.workspace, cost)
    context.progress.note("; ".join(f"{key}: {text}" for key, text in words.items()))
    writer = context.workspace.writer(_spec(context, layout), context.digest)
    writer.create()
    described = shared.describe()
    attributes = {
        "probes": described.pop("probes"),
        "layout": layout.to_attributes(),
        "network": described,
        "self_check": {k: v for k, v in to_mapping(report).items() if k != "seconds"},
        "block_plan": plan.to_attributes(),
        "views": recipe.views.describe(),
        "order": {"kind": recipe.source_spec.order, "seed": recipe.seed},
    }
    # Before the first block: a resumed run goes on with the same probes and scales.
    writer.set_attributes(attributes)
    work = FeatureShards(context, Featurizer(context, shared, layout, plan.forward_batch), writer)
    seal_blocks(context, writer, work.run(), work.write_centres(), attributes)


def _begun_attributes(context: StageContext) -> dict[str, Any]:
    """Attributes of this very store, if an earlier run began it."""
    if "features" not in context.workspace.stores():
        return {}
    attributes = context.reader("features").attributes
    context.workspace.drop_reader("features")
    own = dict(attributes.get("krepes", {})).get("digest") == context.digest
    return attributes if own else {}


def _note_placement(context: StageContext) -> None:
    """Say where the network runs, if that is not where blocks are computed."""
    from krepes_ooc.network.torch_device import available_device

    if available_device(context.device.torch) != context.device.torch:
        words = "this torch has no CUDA (pip install a build that has)"
        context.progress.note(f"the network runs on the CPU: {words}")


@dataclass(frozen=True)
class FeatureShards:
    """The shards of one run: a shard writes its missing blocks and folds all of its rows."""

    context: StageContext
    featurizer: Featurizer
    writer: StoreWriter

    @property
    def layout(self) -> FeatureLayout:
        return self.featurizer.layout

    @property
    def keeps_rows(self) -> bool:
        return keeps_features(self.context)

    @property
    def views(self) -> range:
        return range(self.context.recipe.view_spec.count)

    @cached_property
    def condenser(self) -> CountSketch:
        return CountSketch(self.layout, self.context.recipe.seed)

    @cached_property
    def recompute_source(self) -> RowSource:
        """Rows of blocks that an earlier run wrote but did not fold."""
        features = self.context.reader("features")
        return (
            StoredRowSource(features)
            if self.keeps_rows
            else ComputedRowSource(self.featurizer, features)
        )

    def run(self) -> Files:
        context, plan = self.context, self.context.plan
        done = context.record.done()
        context.progress.begin("features", plan.n_blocks, len(done))
        files = {key: value for unit in done.values() for key, value in unit.files.items()}
        shards = context.my_shards(range(plan.n_shards))
        for written in context.executor().map(partial(self._shard, done=set(done)), shards):
            files |= written
        context.stop_after_shard()
        return files

    def write_centres(self) -> dict[str, npt.NDArray[np.float64]]:
        """Mean feature moment over all views and samples, folded in fixed order, and condensed."""
        total = tree_reduce(self.context.plan.n_shards, self._partial, np.add)
        mean = np.asarray(total / (self.context.plan.n_samples * len(self.views)))
        centre, condensed = np.split(mean, [self.layout.n_moments])
        return {"centre": centre} | ({} if self.keeps_rows else {"condensed_centre": condensed})

    def _partial(self, index: int) -> npt.NDArray[np.float64]:
        folded, total = self._folded(index)
        if folded < len(self.context.plan.shard(index)):
            raise StageFailed(
                f"the partial centre of shard {index} is damaged",
                where="features",
                advice="run the same command again: it is computed anew",
            )
        return total

    def _folded(self, index: int) -> tuple[int, npt.NDArray[np.float64]]:
        """How many blocks of a shard are folded, and their sum."""
        part = read_arrays(partial_path(self.context, "centre", index))
        if part is not None:
            return int(part["blocks"]), part["centre"]
        return 0, np.zeros(self.layout.n_moments + (0 if self.keeps_rows else CONDENSED_WIDTH))

    def _shard(self, index: int, done: set[str]) -> Files:
        """Write the missing blocks of one shard and fold all of its rows; files written.

        Rows that are not kept are folded at once, and the sum is kept after every block, so that a
        killed run computes none of them again.
        """
        written: Files = {}
        blocks = self.context.plan.shard(index)
        folded, total = self._folded(index)
        for place, block in enumerate(blocks):
            self.context.stop.check()
            rows: list[Any] = []
            if block_name(block) not in done:
                rows, files = self._block(block)
                written |= files
            if place >= folded:
                total = total + self._fold(
                    rows or [self.recompute_source.rows(block, view) for view in self.views]
                )
                if not self.keeps_rows or place == len(blocks) - 1:
                    part = {"centre": total, "blocks": np.array(place + 1)}
                    path = partial_path(self.context, "centre", index)
                    write_arrays(path, part, self.context.record.temp)
        return written

    def _block(self, block: Block) -> tuple[list[Any], Files]:
        """Compute and write one block; its stored rows view by view, where they lie, and files."""
        device = self.context.device
        positions = self.context.recipe.order.positions(block.start, block.stop)
        values: Values = [("sample_id", 0, positions)]
        rows, content = [], ""
        for view in self.views:
            stored, content = self.featurizer.rows_on_device(positions, view)
            values.append(("self_kernel", view, self_kernel(stored, self.layout, device)))
            rows.append(stored)
        if self.keeps_rows:
            values += [
                ("values", view, on_host(stored, device)) for view, stored in enumerate(rows)
            ]
        else:
            parts = row_chunks(on_host(rows[0], device))
            condensed = np.concatenate(
                [self.condenser.rows(unscale_rows(part, self.layout)) for part in parts]
            )
            own = inner_products.self_kernel(condensed, sketch_layout(CONDENSED_WIDTH))
            values += [("condensed", 0, condensed), ("condensed_self", 0, np.asarray(own))]
        return rows, write_unit(self.context, self.writer, block, values, content)[1]

    def _fold(self, rows: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Sum of the stored rows' moments, and of their condensed form where that is needed."""
        total: Any = 0.0
        condensed, device = np.zeros(CONDENSED_WIDTH), self.context.device
        for part in (part for stored in rows for part in row_chunks(stored)):
            exact = unscale_rows(part, self.layout, device)
            total += inner_products.centre_sum(exact, self.layout)
            if not self.keeps_rows:
                short = self.condenser.rows(device.to_host(exact))
                condensed += short.sum(axis=0, dtype=np.float64)
        centre: npt.NDArray[np.float64] = device.to_host(total)
        return centre if self.keeps_rows else np.concatenate([centre, condensed])


def _spec(context: StageContext, layout: FeatureLayout) -> StoreSpec:
    sizes = {
        "view": context.recipe.view_spec.count,
        "sample": context.plan.n_samples,
        "feature": layout.n_features,
        "moment": layout.n_moments,
        "condensed_feature": CONDENSED_WIDTH,
    }
    arrays = _ALWAYS + (_FULL if keeps_features(context) else _CONDENSED)
    contract = load_contract("features")
    return StoreSpec(contract, sizes, block_rows=context.plan.block_rows, arrays=arrays)


def predict(shape: AuditSizes, settings: FeaturesSettings) -> Cost:
    """Three times the forward pass for each probe, and what is kept on disk.

    A worker holds one block of every view in float16, one view of it once more while its batches
    are joined, the activations and gradients of one batch, and the sums of the centre.
    """
    rows, width, views = shape.plan.block_rows, shape.n_features, shape.n_views
    need = MemoryNeed(
        8 * shape.n_moments,
        2 * rows * width * views + computing_bytes(shape) + 24 * shape.n_moments,
        shape.plan.n_shards,
    )
    # What torch has made there stays there until it is folded; a view once more while it is joined.
    there = 2 * rows * width * (views + 1) + 16 * PART_ROWS * width + 24 * shape.n_moments
    device = MemoryNeed(0, there)
    flops = computing_flops(shape) + 2.0 * shape.n_moments * shape.plan.n_samples * views
    fixed = 8 * shape.n_moments + 8 * shape.stored_rows * (views + 1)
    if shape.keeps_features:
        disk = fixed + 2 * shape.stored_rows * views * width
        return plain_cost(shape.plan.n_blocks, disk, need, flops, device=device)
    disk = fixed + shape.stored_rows * (4 * CONDENSED_WIDTH + 8) + 8 * CONDENSED_WIDTH
    scratch = 8 * shape.plan.n_shards * (shape.n_moments + CONDENSED_WIDTH)
    return plain_cost(shape.plan.n_blocks, disk, need, flops, scratch, device=device)


STAGE = Stage(
    name="features",
    version=2,
    inputs=FeaturesInputs,
    store="features",
    settings=FeaturesSettings,
    run=run,
    estimate_cost=predict,
    about="Jacobian rows of every view of every sample",
    parallel="shards",
)
